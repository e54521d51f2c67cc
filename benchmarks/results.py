"""Every figure of every round, and the medians of figures and of ratios within a round."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.measures import Figures


class Spread(NamedTuple):
    median: float
    low: float
    high: float


@dataclass
class Results:
    date: str
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    scale: float
    rounds: list[dict[str, Figures]] = field(default_factory=list)

    def begin(self) -> None:
        self.rounds.append({})

    def add(self, system: str, figures: Figures) -> None:
        self.rounds[-1].setdefault(system, {}).update(figures)

    def of(self, system: str, measure: str) -> Spread | None:
        return _spread([figures[measure] for each in self.rounds if measure in (figures := each.get(system, {}))])

    def ratio(self, ours: tuple[str, str], theirs: tuple[str, str]) -> Spread | None:
        """Of two figures of the same round: what the machine's own speed did between rounds is not in it."""
        found = []
        for each in self.rounds:
            a, b = (each.get(system, {}).get(measure) for system, measure in (ours, theirs))
            if a is not None and b:
                found.append(a / b)
        return _spread(found)

    def fastest_peer(self) -> str | None:
        """The peer with the highest median of `drain`."""
        drains = {name: spread.median for name in self.versions if (spread := self.of(name, "drain"))}
        return max(drains, key=drains.__getitem__, default=None)

    def as_json(self) -> dict[str, object]:
        names = {(system, measure) for each in self.rounds for system, found in each.items() for measure in found}
        medians: dict[str, dict[str, Spread | None]] = {}
        for system, measure in sorted(names):
            medians.setdefault(system, {})[measure] = self.of(system, measure)
        return {
            "date": self.date,
            "command": self.command,
            "machine": self.machine,
            "versions": self.versions,
            "scale": self.scale,
            "median, low, high": medians,
            "rounds": self.rounds,
        }


def _spread(values: list[float]) -> Spread | None:
    return Spread(statistics.median(values), min(values), max(values)) if values else None
