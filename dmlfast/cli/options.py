"""Options in groups: the help of a command lists them under titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

__all__ = ["GroupedCommand", "GroupedOption"]


class GroupedOption(click.Option):
    """An option that is listed under one or more titles.

    Args:
        groups: what the help says of it, by title.
    """

    def __init__(self, *given: Any, groups: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(*given, **attributes)
        self.groups = groups


class GroupedCommand(click.Command):
    """A command whose help has its options under their titles, and all others at the end.

    Args:
        titles: the titles, in their order.
    """

    def __init__(self, *given: Any, titles: Sequence[str], **attributes: Any) -> None:
        super().__init__(*given, **attributes)
        self._titles = titles

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each title."""
        others = "Other"
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in self._titles}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            names, text = record
            groups = parameter.groups if isinstance(parameter, GroupedOption) else {others: text}
            for title, own in groups.items():
                sections.setdefault(title, []).append((names, own))
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
