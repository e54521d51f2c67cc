"""Telling the day: a spinner and ticks on a terminal, plain lines everywhere else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence

import rich.table
from rich import box
from rich.console import Console
from rich.text import Text

from backstage.cli.demo.verdict import Row
from backstage.cli.table import Table


class Step:
    """One step while it runs."""

    note = ""
    """What came of it."""
    ok = True


class Progress:
    def __init__(self) -> None:
        self._console = Console(highlight=False)
        try:
            "✓✗".encode(sys.stdout.encoding or "utf-8")
        except UnicodeError:
            self._marks = {True: "ok", False: "NO"}
        else:
            self._marks = {True: "✓", False: "✗"}

    def say(self, text: str = "") -> None:
        self._console.print(Text(text), soft_wrap=True)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[Step]:
        """Shows `text` while the block runs, and what came of it afterwards. A failure is marked and raised."""
        step, began = Step(), time.monotonic()
        spinner = self._console.status(text) if self._console.is_terminal else contextlib.nullcontext()
        try:
            with spinner:
                yield step
        except BaseException:
            step.ok = False
            raise
        finally:
            self._told(text, step, time.monotonic() - began)

    def _told(self, text: str, step: Step, seconds: float) -> None:
        line = self._mark(step.ok)
        line.append(f" {text}")
        if step.note:
            line.append(f": {step.note}")
        line.append(f"  {seconds:.1f} s", style="dim")
        self._console.print(line, soft_wrap=True)

    def table(self, rows: Sequence[Row]) -> None:
        headings = ("FEATURE", "WHAT WAS DONE", "EXPECTED", "FOUND ON THE SERVER")
        if not self._console.is_terminal:
            table = Table("", *headings)
            for row in rows:
                table.add(self._marks[row.ok], *_cells(row))
            self.say(table.plain())
            return
        drawn = rich.table.Table("", *headings, box=box.SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            drawn.add_row(self._mark(row.ok), *(Text(cell) for cell in _cells(row)))
        self._console.print(drawn)

    def _mark(self, ok: bool) -> Text:
        return Text(self._marks[ok], style="green" if ok else "bold red")


def _cells(row: Row) -> tuple[str, ...]:
    return row.feature, row.done, row.expected, row.found
