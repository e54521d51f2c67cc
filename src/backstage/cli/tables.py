"""How tables are shown: ruled on a terminal, plain aligned columns everywhere else."""

from __future__ import annotations

import sys
from datetime import timedelta

import click

from backstage.cli.table import Table


def show(*tables: Table) -> None:
    if sys.stdout.isatty():
        from backstage.cli.ruled import draw  # rich is slow to import

        draw(*tables)
    else:
        click.echo("\n\n".join(table.plain() for table in tables))


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
