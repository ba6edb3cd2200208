"""``cryptfs devices``: who uses this vault, and who does not any more."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping

import click

from cryptfs.cli.asking import SecretSource, agree, secret_options
from cryptfs.cli.display import count, format_age, printable, say, show_json, show_table, warn
from cryptfs.cli.examples import examples
from cryptfs.cli.listing import ListingGroup
from cryptfs.cli.opening import ask_vault
from cryptfs.cli.places import device_name, the_mounted
from cryptfs.control import Message, format_time
from cryptfs.errors import UsageError
from cryptfs.upkeep.devices import UNSEEN_DAYS


@click.group(
    cls=ListingGroup,
    epilog=examples(
        "cryptfs devices ~/private",
        "cryptfs devices name ~/private 'kitchen laptop'",
        "cryptfs devices forget ~/private 'old phone'",
    ),
)
def devices() -> None:
    """Show the devices that use a vault, name this one, or let one go.

    "cryptfs devices DIR" is short for "cryptfs devices list DIR".
    """


@devices.command(
    "list", epilog=examples("cryptfs devices list ~/private", "cryptfs devices --json")
)
@click.argument("place", metavar="[DIR|VAULT]", required=False)
@secret_options
@click.option("--json", "as_json", is_flag=True, help="Print as JSON, a list.")
def list_devices(place: str | None, secret: SecretSource, as_json: bool) -> None:
    """Show each device of the vault: its number and name, the last epoch that it published, and
    when. A mounted vault needs no password.

    A device that publishes has seen all before it. What nobody needs leaves the vault when every
    device has seen that it was set aside: "waits for it" says whom that waits for.
    """
    place = the_mounted().mountpoint if place is None else place
    found = ask_vault(place, secret, {"do": "devices"}, changes=False)["devices"]
    if as_json:
        show_json([device_json(one) for one in found])
        return
    show_table(
        ("number>", "name", "epoch>", "published", "clean-up"),
        [
            (
                str(one["number"]),
                printable(one["name"]) + (" (this device)" if one["this_device"] else ""),
                "-" if one["epoch"] is None else str(one["epoch"]),
                when_text(one),
                "waits for it" if one["holds_up_clean_up"] else "",
            )
            for one in found
        ],
    )
    for one in found:
        if one["unseen_days"] >= UNSEEN_DAYS and not one["this_device"]:
            warn(unseen_text(one, place))


@devices.command(
    "name",
    epilog=examples("cryptfs devices name ~/private laptop"),
)
@click.argument("place", metavar="DIR|VAULT")
@click.argument("name", metavar="NAME")
@secret_options
@click.option("--json", "as_json", is_flag=True, help="Print this device as JSON.")
def name_device(place: str, name: str, secret: SecretSource, as_json: bool) -> None:
    """Call this device NAME from now on, in the log and in the names of conflict copies.

    Only the device itself can be named: others learn of it with what it publishes next. A mounted
    vault needs no password.
    """
    device_name(name)  # refused before anybody types a password
    answer = ask_vault(place, secret, {"do": "name device", "name": name}, changes=True)
    if as_json:
        show_json(device_json(answer))
    else:
        say(f"This device is called {printable(name)!r} from now on.")


@devices.command(
    "forget",
    epilog=examples(
        "cryptfs devices forget ~/private 'old phone'",
        "cryptfs devices forget --yes ~/private 4711",
    ),
)
@click.argument("place", metavar="DIR|VAULT")
@click.argument("device", metavar="DEVICE")
@secret_options
@click.option("--yes", is_flag=True, help="Do not ask before the device is let go.")
@click.option("--json", "as_json", is_flag=True, help="Print the device as JSON.")
def forget_device(place: str, device: str, secret: SecretSource, yes: bool, as_json: bool) -> None:
    """Let DEVICE go, a name or a number: the clean-up does not wait for it any more.

    For a device that is lost, or was set up anew. Everything that it published stays. Should it
    come back it goes on as a new device; but of what it changed and did not publish, content
    that it only shared with files that were deleted meanwhile may be gone. A mounted vault needs
    no password.
    """
    if not yes:
        if as_json:
            raise UsageError("--json asks nobody; add --yes to let the device go")
        found = ask_vault(place, secret, {"do": "find device", "device": device}, changes=False)
        _require_consent(found)
        device = str(found["number"])
    answer = ask_vault(place, secret, {"do": "forget device", "device": device}, changes=True)
    if as_json:
        show_json(device_json(answer))
    else:
        say(f"{printable(answer['name'])} (device {answer['number']}) is let go.")


def _require_consent(found: Message) -> None:
    if found["this_device"]:
        raise UsageError(
            f"{printable(found['name'])!r} is this device, and it uses the vault now; forget it "
            "from another one"
        )
    say(
        f"{printable(found['name'])} (device {found['number']}) published last "
        f"{when_text(found)}.\nLet go, it may lose content that it did not publish and that is "
        "stored nowhere else. If it comes back it is a new device."
    )
    agree("Let it go?", "add --yes to let the device go")


# -- how they look -----------------------------------------------------------------------------


def device_texts(names: Mapping[int, str]) -> dict[int, str]:
    """What to call devices, by their numbers: of several with one name each with its number."""
    several = {name for name, count in Counter(names.values()).items() if count > 1}
    return {
        number: printable(name) + (f" ({number})" if name in several else "")
        for number, name in names.items()
    }


def when_text(one: Message) -> str:
    """When a device published last, for a person."""
    if one["time_ns"] is None:
        return "never published"
    return ("" if one["time_is_exact"] else "by ") + format_age(format_time(one["time_ns"]))


def unseen_text(one: Message, place: str) -> str:
    """That a device was not seen for long, and the command that lets it go."""
    return (
        f"{printable(one['name'])} (device {one['number']}) published nothing for "
        f"{count(one['unseen_days'], 'day')}, and the clean-up waits for it. If it is not used "
        f"any more: cryptfs devices forget {shlex.quote(place)} {one['number']}"
    )


def device_json(one: Message) -> Message:
    """A device as docs/COMMANDS.md describes it."""
    shown = {key: value for key, value in one.items() if key != "time_ns"}
    time_ns = one["time_ns"]
    return shown | {"time": None if time_ns is None else format_time(time_ns)}
