"""``cryptfs devices DIR`` as a shorter ``cryptfs devices list DIR``, and likewise for others."""

from __future__ import annotations

import click

LIST = "list"


class ListingGroup(click.Group):
    """A group whose command ``list`` is meant where none is named.

    A folder that is called as a command is: ``./list``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts the word in where it was left out."""
        is_about_group = bool(args) and args[0] in ctx.help_option_names
        if not args or (args[0] not in self.commands and not is_about_group):
            args = [LIST, *args]
        return super().parse_args(ctx, args)
