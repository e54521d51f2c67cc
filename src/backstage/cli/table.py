"""A table as values: headings, rows of texts, perhaps a footer."""

from __future__ import annotations

from collections.abc import Sequence


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


def printable(text: str) -> str:
    """One line, without anything that would move a terminal's cursor: what others wrote may hold it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] if c != "\n" else " " for c in text)
