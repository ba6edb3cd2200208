"""``cryptfs conflicts``: files that two devices changed at once, and which one is to stay."""

from __future__ import annotations

import base64
import os
import stat

import click

from cryptfs.cli.asking import SecretSource, agree, secret_options
from cryptfs.cli.display import (
    format_age,
    format_size,
    json_path,
    printable,
    say,
    show_json,
    show_table,
)
from cryptfs.cli.examples import examples
from cryptfs.cli.listing import ListingGroup
from cryptfs.cli.opening import ask_vault
from cryptfs.cli.places import Mounted, mount_of, the_mounted, without_links
from cryptfs.cli.sync import flush_kernel, publish_mounted
from cryptfs.control import Message, format_time
from cryptfs.errors import UsageError
from cryptfs.format.row_rules import MAX_NAME


@click.group(
    cls=ListingGroup,
    epilog=examples(
        "cryptfs conflicts ~/private",
        "cryptfs conflicts resolve --keep mine ~/private/letter.txt",
    ),
)
def conflicts() -> None:
    """Show the files that two devices changed at once, or resolve one of them.

    Both versions are kept: the one that was published first under the file's name, the other
    beside it, as "letter (conflict, laptop, 2026-11-23).txt". "cryptfs conflicts DIR" is short
    for "cryptfs conflicts list DIR".
    """


@conflicts.command(
    "list", epilog=examples("cryptfs conflicts list ~/private", "cryptfs conflicts --json")
)
@click.argument("place", metavar="[DIR|VAULT]", required=False)
@secret_options
@click.option("--json", "as_json", is_flag=True, help="Print as JSON, a list.")
def list_conflicts(place: str | None, secret: SecretSource, as_json: bool) -> None:
    """Show the conflicts that wait for somebody, with both files. A mounted vault needs no
    password.

    A conflict is over when one of the two files is gone, or both hold the same.
    """
    place = the_mounted().mountpoint if place is None else place
    found = ask_vault(place, secret, {"do": "conflicts"}, changes=False)["conflicts"]
    if as_json:
        show_json([_as_json(one) for one in found])
        return
    if not found:
        say("There are no conflicts.")
        return
    show_table(
        ("file", "its version", "the copy beside it", "the version of", "changed there"),
        [
            (
                printable(_text(one["original"])),
                _version(one["original"]),
                printable(_text(one["copy"])),
                printable(one["device"]),
                _version(one["copy"]),
            )
            for one in found
        ],
    )


@conflicts.command(
    epilog=examples(
        "cryptfs conflicts resolve --keep mine ~/private/letter.txt",
        "cryptfs conflicts resolve --keep both --name 'letter of May.txt' "
        "'letter (conflict, laptop, 2026-11-23).txt'",
    )
)
@click.argument("path", metavar="PATH")
@click.option(
    "--keep", type=click.Choice(["mine", "theirs", "both"]), required=True, help="Which one stays."
)
@click.option("--name", metavar="NAME", help="With --keep both: a new name for the copy.")
@click.option("--yes", is_flag=True, help="Do not ask before a file is replaced or removed.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def resolve(path: str, keep: str, name: str | None, yes: bool, as_json: bool) -> None:
    """Resolve the conflict of PATH, which is one of its two files in a mounted vault.

    \b
    Of "letter.txt" and "letter (conflict, laptop, 2026-11-23).txt" stays, with
        --keep mine    what laptop had, the device that the copy is named after:
                       the copy takes the place of letter.txt
        --keep theirs  letter.txt as it is: the copy is removed
        --keep both    both, and the conflict is over; --name gives the copy a new name

    What is replaced or removed stays in the restore points: it is published before.
    """
    if name is not None and keep != "both":
        raise UsageError("--name gives the copy a new name, and so goes with --keep both only")
    if as_json and not yes and keep != "both":
        raise UsageError("--json asks nobody; add --yes to resolve the conflict")
    wanted = without_links(path)
    mounted = mount_of(wanted, "list its conflicts with: cryptfs conflicts VAULT")
    flush_kernel(mounted.mountpoint)
    one = _find(mounted, wanted)
    original, copy = (_place(mounted, one[side]) for side in ("original", "copy"))
    result = original
    if keep == "both":
        result = copy if name is None else _rename(copy, name)
    else:
        _refuse_folders(original, copy)
        if not yes:
            _require_consent(one, keep)
        if not one["original" if keep == "mine" else "copy"]["is_published"]:
            publish_mounted(mounted)  # what goes is in a restore point then
        if keep == "mine":
            os.rename(copy, original)
        else:
            os.unlink(copy)
    mounted.ask({"do": "settle conflict", "copy": one["copy"]["inode"]})
    if as_json:
        show_json({"kept": keep, "path": os.fsdecode(result)})
        return
    shown = printable(os.fsdecode(result))
    if keep == "both":
        say(f"Both stay; the copy is {shown}.")
    elif keep == "mine":
        say(f"{shown} is what the copy was; what it was before is in the restore points.")
    else:
        say(f"{shown} stays as it is; the copy is in the restore points.")


def _find(mounted: Mounted, wanted: str) -> Message:
    """The one conflict that a path is a side of."""
    inside = os.fsencode(os.path.relpath(wanted, os.path.realpath(mounted.mountpoint)))
    every: list[Message] = mounted.ask({"do": "conflicts"})["conflicts"]
    found = [one for one in every if _path(one["copy"]) == inside]
    found = found or [one for one in every if _path(one["original"]) == inside]
    if len(found) == 1:
        return found[0]
    if found:
        copies = ", ".join(printable(_text(one["copy"])) for one in found)
        raise UsageError(f"{printable(wanted)} has several copies; name one of them: {copies}")
    raise UsageError(
        f"{printable(wanted)} has no open conflict; see which have: cryptfs conflicts "
        f"{mounted.mountpoint}"
    )


def _place(mounted: Mounted, side: Message) -> bytes:
    return os.path.join(os.fsencode(mounted.mountpoint), _path(side))


def _rename(copy: bytes, name: str) -> bytes:
    """Gives the copy a new name in its folder; never one that is taken."""
    target = os.path.join(os.path.dirname(copy), os.fsencode(name))
    if not name or "/" in name or name in (".", ".."):
        raise UsageError(f"{printable(name)!r} is no name of a file; give one without /")
    if len(os.fsencode(name)) > MAX_NAME:
        raise UsageError(f"the name is longer than {MAX_NAME} bytes; give a shorter one")
    if os.path.lexists(target):
        raise UsageError(f"{printable(os.fsdecode(target))} is there already; give another name")
    os.rename(copy, target)
    return target


def _refuse_folders(*paths: bytes) -> None:
    for path in paths:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            raise UsageError(
                f"{printable(os.fsdecode(path))} is a folder: move what you want out of it, and "
                "remove or rename it yourself; the conflict is over when one of both is gone"
            )


def _require_consent(one: Message, keep: str) -> None:
    stays, goes = ("copy", "original") if keep == "mine" else ("original", "copy")
    for what, side in (("stays", stays), ("goes", goes)):
        say(f"{what:6} {printable(_text(one[side]))}: {_version(one[side])}")
    question = (
        "Put the copy in the place of the file?" if keep == "mine" else "Remove the copy?"
    ) + " What goes stays in the restore points"
    agree(question, "add --yes to resolve the conflict")


# -- how they look -----------------------------------------------------------------------------


def _path(side: Message) -> bytes:
    return base64.b64decode(side["path_base64"])


def _text(side: Message) -> str:
    return os.fsdecode(_path(side))


def _version(side: Message) -> str:
    return f"{format_size(side['size_bytes'])}, {format_age(format_time(side['changed_ns']))}"


def _as_json(one: Message) -> Message:
    """A conflict as docs/COMMANDS.md describes it."""
    return {
        "device": one["device"],
        "time": format_time(one["time_ns"]),
        **{
            which: json_path(_path(one[which]))
            | {
                "size_bytes": one[which]["size_bytes"],
                "changed": format_time(one[which]["changed_ns"]),
            }
            for which in ("original", "copy")
        },
    }
