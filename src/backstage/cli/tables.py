"""Tables: ruled on a terminal, plain aligned columns everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta

import click


class Table:
    """Rows of texts under headings. A heading that begins with `>` stands to the right, as numbers do."""

    def __init__(self, *headings: str, footer: Sequence[str] = ()) -> None:
        self.headings, self.rows, self.footer = headings, list[Sequence[str]](), footer

    def add(self, *cells: str) -> None:
        self.rows.append([printable(cell) for cell in cells])

    def plain(self) -> str:
        lines = [[heading.removeprefix(">") for heading in self.headings], *self.rows]
        lines += [self.footer] if self.footer else []
        widths = [max(len(line[at]) for line in lines) for at in range(len(self.headings))]
        right = [heading.startswith(">") for heading in self.headings]
        return "\n".join(
            "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
            for line in lines
        )


def show(*tables: Table) -> None:
    if sys.stdout.isatty():
        from backstage.cli.ruled import draw  # rich is slow to import

        draw(*tables)
    else:
        click.echo("\n\n".join(table.plain() for table in tables))


def printable(text: str) -> str:
    """One line, without anything that would move a terminal's cursor: what others wrote may hold it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] if c != "\n" else " " for c in text)


def short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def age(time: timedelta | None) -> str:
    """Two units at most: `0.4s`, `12s`, `3m 20s`, `5h 10m`, `2d 4h`."""
    if time is None:
        return "-"
    seconds = max(0.0, time.total_seconds())
    if seconds < 10:
        return f"{seconds:.1f}s"
    for size, unit, smaller, rest in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit} {int(seconds % size // smaller)}{rest}"
    return f"{int(seconds)}s"
