"""Figures: what was measured beside its goal. Those of several runs add up to one."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import msgspec


class Figure(msgspec.Struct):
    """`found` is each case that should not be, of `of` cases (None: not counted)."""

    name: str
    found: list[str]
    of: int | None = None
    goal = "0"

    @property
    def measured(self) -> str:
        return f"{len(self.found)}" + (f" of {self.of:,}" if self.of is not None else "")

    @property
    def sampled(self) -> bool:
        """Whether there was a case of it at all: of a count of nothing nothing is known."""
        return self.of != 0

    @property
    def ok(self) -> bool:
        return not self.found and self.sampled

    @property
    def details(self) -> list[str]:
        return self.found

    def plus(self, other: Figure) -> Figure:
        of = None if self.of is None or other.of is None else self.of + other.of
        return Figure(self.name, self.found + other.found, of)


class Longest(Figure):
    """The longest of some times in seconds, or the one at p99. One that was not measured is missed."""

    times: list[tuple[float, str]] = []
    limit: float = 0.0
    share: float = 1.0

    @property
    def goal(self) -> str:  # type: ignore[override]
        return f"≤ {self.limit:g} s"

    @property
    def worst(self) -> float:
        return sorted(self.times)[min(int(len(self.times) * self.share), len(self.times) - 1)][0]

    @property
    def measured(self) -> str:
        return f"{self.worst:.3f} s (n = {len(self.times):,})" if self.times else "not measured"

    @property
    def sampled(self) -> bool:
        return bool(self.times)

    @property
    def ok(self) -> bool:
        return self.sampled and self.worst <= self.limit

    @property
    def details(self) -> list[str]:
        return [f"{seconds:.3f} s: {what}" for seconds, what in self.times if seconds > self.limit]

    def plus(self, other: Figure) -> Figure:
        assert isinstance(other, Longest)
        return Longest(self.name, [], None, self.times + other.times, self.limit, self.share)


class Most(Figure):
    """The most of some counts, one for each case; `limit` None: for information. Without a case it is missed."""

    counts: list[tuple[int, str]] = []
    limit: int | None = None

    @property
    def goal(self) -> str:  # type: ignore[override]
        return "" if self.limit is None else f"≤ {self.limit}"

    @property
    def measured(self) -> str:
        return f"{max(self.counts, default=(0, ''))[0]} (n = {len(self.counts)})"

    @property
    def sampled(self) -> bool:
        return bool(self.counts) or self.limit is None

    @property
    def ok(self) -> bool:
        return self.sampled and not self.details

    @property
    def details(self) -> list[str]:
        return [f"{n}: {what}" for n, what in self.counts if self.limit is not None and n > self.limit]

    def plus(self, other: Figure) -> Figure:
        assert isinstance(other, Most)
        return Most(self.name, [], None, self.counts + other.counts, self.limit)


class Enough(Figure):
    """A count that should be reached; `least` 0: for information."""

    count: int = 0
    least: int = 0

    @property
    def goal(self) -> str:  # type: ignore[override]
        return f"≥ {self.least:,}" if self.least else ""

    @property
    def measured(self) -> str:
        return f"{self.count:,}"

    @property
    def ok(self) -> bool:
        return self.count >= self.least

    @property
    def details(self) -> list[str]:
        return []

    def plus(self, other: Figure) -> Figure:
        assert isinstance(other, Enough)
        return Enough(self.name, [], None, self.count + other.count, self.least)


def together(runs: Iterable[list[Figure]]) -> list[Figure]:
    """One figure for each name."""
    found: dict[str, Figure] = {}
    for figure in chain.from_iterable(runs):
        before = found.get(figure.name)
        found[figure.name] = figure if before is None else before.plus(figure)
    return list(found.values())
