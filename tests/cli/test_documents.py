"""The commands that the documents tell people to type are there, with all their options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cryptfs.cli.listing import LIST, ListingGroup
from cryptfs.cli.main import cryptfs

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "docs/COMMANDS.md",
    ROOT / "docs/DESIGN.md",
    *sorted((ROOT / "docs/clouds").glob("*.md")),
]

QUOTED = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"(?:^|[\s(|&;])cryptfs ((?:[^|&;#\n`]|\|(?=\S))+)")
OPTION = re.compile(r"--[a-z][a-z-]+")


def commands_in(text: str) -> Iterator[str]:
    """What stands after ``cryptfs`` in code, up to the end of each command."""
    is_code = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            is_code = not is_code
            continue
        pieces = [line] if is_code or line.startswith("    ") else QUOTED.findall(line)
        for piece in pieces:
            yield from (found.strip() for found in COMMAND.findall(piece))


def problem_of(command: str) -> str | None:
    """What is wrong with a command; options that belong to none are wrong as well."""
    words = command.split()
    at: click.Command = cryptfs
    while isinstance(at, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0).partition("\\|")[0]  # of several in one, as a table writes it
        if name not in at.commands and isinstance(at, ListingGroup) and not name.isalpha():
            at = at.commands[LIST]  # which is meant then
            break
        if name not in at.commands:
            return f"there is no command {name}"
        at = at.commands[name]
    known = {name for option in at.params for name in option.opts} | {"--help", "--version"}
    unknown = set(OPTION.findall(" ".join(words))) - known
    return f"{at.name} has no {', '.join(sorted(unknown))}" if unknown else None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_of_a_document_can_be_typed(document: Path) -> None:
    found = list(commands_in(document.read_text()))
    assert found
    assert [(one, problem) for one in found if (problem := problem_of(one))] == []


@pytest.mark.parametrize(
    ("text", "commands", "problem"),
    [
        ("Say `cryptfs mount --at 5 V D`.", ["mount --at 5 V D"], None),
        ("    cryptfs check --data V | cat", ["check --data V"], None),
        (
            "```\ncryptfs init --yes V && cryptfs log V  # both\n```",
            ["init --yes V", "log V"],
            None,
        ),
        ("cryptfs is a program", [], None),
        ("`cryptfs mend V`", ["mend V"], "there is no command mend"),
        ("`cryptfs login icloud --fast`", ["login icloud --fast"], "icloud has no --fast"),
    ],
)
def test_the_check_itself(text: str, commands: list[str], problem: str | None) -> None:
    assert list(commands_in(text)) == commands
    assert [problem_of(one) for one in commands][:1] == ([problem] if commands else [])
