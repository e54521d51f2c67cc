"""Tables on a terminal, by rich."""

from __future__ import annotations

import rich.table
from rich import box
from rich.console import Console
from rich.text import Text

from backstage.cli.table import Table


def ruled(table: Table) -> rich.table.Table:
    drawn = rich.table.Table(box=box.SIMPLE_HEAD, show_footer=bool(table.footer), pad_edge=False)
    for at, heading in enumerate(table.headings):
        footer = table.footer[at] if table.footer else ""
        right = heading.startswith(">")
        drawn.add_column(heading.removeprefix(">"), footer, justify="right" if right else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))  # no markup: what others wrote is shown as it is
    return drawn


def draw(*tables: Table) -> None:
    console = Console()
    for table in tables:
        console.print(ruled(table))
