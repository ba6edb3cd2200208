"""What ``scripts/quickstart`` shows once everything is installed; DIR is empty or absent.

::

    DIR/vault            what the provider has
    DIR/mount            what you see
    DIR/cryptfs          the program, with this demo's own local state
    DIR/state            the local state of this device …
    DIR/state-of-another … and of the second one, which knows nothing but the key
    DIR/restored         what the second device got back
    DIR/password, DIR/key
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.filesize import decimal
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from scripts.sample_export import write_export

BIN = Path(sys.executable).parent
KEY_LINE = re.compile(r"(?<![\d ])(\d{4} \d{4} \d{4} \d{4})(?![\d ])")

# What would give the chat away, were it anywhere in the vault.
TELLTALES = ("result.json", "messages.html", "voice_messages", "photo_1@", "Lindqvist", "JFIF")

MOST_OBJECTS = 20

console = Console(highlight=False)


class Stopped(Exception):
    """A step failed; the text is what the person should read."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def step(title: str) -> Iterator[None]:
    """One line on the screen: what is done, and how long it took."""
    start = time.monotonic()
    with console.status(title):
        yield
    console.print(f"[green]✓[/] {title} [dim]{time.monotonic() - start:.1f} s[/]")


def cryptfs(*arguments: str, state: Path) -> str:
    """What the command prints. Its state folder is no secret, so the environment may carry it."""
    done = subprocess.run(
        [str(BIN / "cryptfs"), *arguments],
        env={**os.environ, "CRYPTFS_STATE_DIR": str(state)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise Stopped(f"cryptfs {arguments[0]}: {said}", done.returncode)
    return done.stdout


def private_file(path: Path, text: str) -> None:
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)


def write_launcher(path: Path, state: Path) -> None:
    text = f"""#!/bin/sh
# cryptfs with the local state of this demo.
CRYPTFS_STATE_DIR={shlex.quote(str(state))} exec {shlex.quote(str(BIN / "cryptfs"))} "$@"
"""
    path.write_text(text)
    path.chmod(0o755)


def key_in(printed: str) -> str:
    lines = KEY_LINE.findall(printed)
    if len(lines) != 4:
        raise Stopped("cryptfs init did not print a key of 4 lines")
    return "\n".join(lines) + "\n"


def files_below(folder: Path) -> list[tuple[str, int]]:
    """Every file's path below ``folder``, and its size."""
    return sorted(
        (os.path.relpath(f"{here}/{name}", folder), os.lstat(f"{here}/{name}").st_size)
        for here, _, names in os.walk(folder)
        for name in names
    )


def seen_by_you(mount: Path) -> Group:
    files = files_below(mount)
    lines = [Text(total(files, "files"), "bold"), Text()]
    export = files[0][0].split("/")[0]
    lines.append(Text(f"{export}/"))
    folders: dict[str, list[tuple[str, int]]] = {}
    for path, size in files:
        top, _, rest = path.removeprefix(f"{export}/").partition("/")
        folders.setdefault(top if rest else "", []).append((rest or top, size))
    beside = folders.pop("")
    for folder, inside in folders.items():
        lines.append(Text.assemble("├─ ", (f"{folder}/", "bold"), (f"  {len(inside):,}", "dim")))
        lines.append(Text.assemble(f"│   └─ {inside[0][0]}, …"))
    lines += [Text.assemble(f"├─ {name}  ", (decimal(size), "dim")) for name, size in beside[:2]]
    lines.append(Text(f"└─ … {len(beside) - 2} more"))
    return one_line_each(lines)


def seen_by_the_provider(vault: Path) -> Group:
    files = files_below(vault)
    lines = [Text(total(files, "objects"), "bold"), Text()]
    lines += [Text.assemble((f"{size:>10,}  ", "dim"), path) for path, size in files[:MOST_OBJECTS]]
    if len(files) > MOST_OBJECTS:
        lines.append(Text(f"… {len(files) - MOST_OBJECTS} more"))
    pack = max(files, key=lambda file: file[1])[0]
    with (vault / pack).open("rb") as file:
        beginning = file.read(88)
    lines += [Text(), Text("The largest begins:", "dim")]
    lines += [Text(beginning[at : at + 11].hex(" "), "dim") for at in range(0, 88, 11)]
    return one_line_each(lines)


def total(files: list[tuple[str, int]], what: str) -> str:
    return f"{len(files):,} {what}, {decimal(sum(size for _, size in files))}"


def one_line_each(lines: list[Text]) -> Group:
    """Cut where the panel ends, so that both sides stay side by side."""
    for line in lines:
        line.no_wrap = True
        line.overflow = "ellipsis"
    return Group(*lines)


def show_both(mount: Path, vault: Path) -> None:
    both = Table.grid(expand=True, padding=(0, 1))
    both.add_column(ratio=1)
    both.add_column(ratio=1)
    both.add_row(
        Panel(seen_by_you(mount), title="what you see", border_style="green"),
        Panel(seen_by_the_provider(vault), title="what the provider sees", border_style="red"),
    )
    console.print(both)


def search_vault(vault: Path) -> None:
    patterns = [part for text in TELLTALES for part in ("-e", text)]
    found = subprocess.run(["grep", "-rlaF", *patterns, str(vault)], capture_output=True, text=True)
    if found.returncode != 1:
        raise Stopped(f"something of the chat is readable in the vault: {found.stdout}")


def compare(original: Path, restored: Path) -> int:
    """How many files are equal in content, name, mode and time: all, or it stops."""
    different = subprocess.run(
        ["diff", "-r", "--no-dereference", str(original), str(restored)],
        capture_output=True,
        text=True,
    )
    if different.returncode != 0:
        raise Stopped(f"the restored files differ:\n{different.stdout}{different.stderr}")
    count = 0
    for path, _ in files_below(original):
        here, there = (original / path).lstat(), (restored / path).lstat()
        if (here.st_mode, here.st_mtime_ns) != (there.st_mode, there.st_mtime_ns):
            raise Stopped(f"the restored file {path} has another mode or time")
        count += 1
    return count


def tour(place: Path) -> None:
    vault, mount, restored = place / "vault", place / "mount", place / "restored"
    state, another = place / "state", place / "state-of-another"
    password, key = place / "password", place / "key"
    for folder in (place, mount, state, another):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_launcher(place / "cryptfs", state)
    private_file(password, secrets.token_urlsafe(18) + "\n")

    with step(f"Made a vault in {vault}"):
        printed = cryptfs(
            "init", str(vault), "--password-file", str(password), "--yes", state=state
        )
        private_file(key, key_in(printed))
    for line in key.read_text().splitlines():
        console.print(f"    {line}", style="bold")
    console.print(
        "  These 64 digits open the vault, and so does its password. In this demo both lie in\n"
        "  files beside it. Really, keep the digits on paper and the password in your head.",
        soft_wrap=True,
    )

    with step(f"Mounted it at {mount}"):
        cryptfs("mount", str(vault), str(mount), "--password-file", str(password), state=state)
    with step("A messenger wrote its export into it"):
        write_export(mount / "ChatExport_2024-06-30")
    with step("Published: the vault folder has everything"):
        cryptfs("sync", str(mount), state=state)

    show_both(mount, vault)
    with step("Searched the vault for names and words of the chat: nothing there"):
        search_vault(vault)
    with step("On another device that knows nothing: restored with the 64 digits alone"):
        cryptfs("restore", str(vault), str(restored), "--key-file", str(key), state=another)
    with step("Compared both, byte for byte"):
        count = compare(mount, restored)
    console.print(f"  {count:,} files are the same: contents, names, modes and times.\n")
    say_what_next(place)


def say_what_next(place: Path) -> None:
    program = shlex.quote(str(place / "cryptfs"))
    mount = shlex.quote(str(place / "mount"))
    vault = shlex.quote(str(place / "vault"))
    password = shlex.quote(str(place / "password"))
    console.print("The vault stays mounted. What next:")
    for what, command in (
        ("look around, or open it in your file manager", f"xdg-open {mount}"),
        ("see how it stands", f"{program} status {mount}"),
        ("unmount it", f"{program} umount {mount}"),
        ("mount it again", f"{program} mount {vault} {mount} --password-file {password}"),
        ("delete the demo", f"{program} umount {mount} && rm -r {shlex.quote(str(place))}"),
        ("make a vault of your own", f"{shlex.quote(str(BIN / 'cryptfs'))} init FOLDER"),
    ):
        console.print(f"  {what}", style="dim")
        # Never wrapped by us: a command is there to be copied.
        console.print(f"    {command}", markup=False, soft_wrap=True)


def main() -> int:
    # Whatever the person's umask, keys and plaintext here are nobody else's.
    os.umask(0o077)
    place = Path(os.path.abspath(sys.argv[1]))
    try:
        tour(place)
    except Stopped as stopped:
        console.print(str(stopped), style="red", markup=False)
        exit_code = stopped.exit_code
    except KeyboardInterrupt:
        exit_code = 130
    else:
        return 0
    console.print(f"Stopped. What was made so far is in {place}.", markup=False)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
