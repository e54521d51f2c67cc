"""Series of samples: a linear fit of each, whether it grows, and all of them as a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

SETTLING, AT_LEAST = 0.4, 30.0
"""Share of a run, and seconds, that are not judged: caches fill, and what lapses by time (markers of calls, after 20 s)
has to lapse for the first time."""


@dataclass
class Series:
    """One figure over time. `share` and `floor` bound its growth over the judged part: of its mean, or in its unit."""

    name: str
    unit: str
    share: float
    floor: float
    points: list[tuple[float, float]] = field(default_factory=list)

    def add(self, at: float, value: float) -> None:
        self.points.append((at, value))

    @property
    def judged(self) -> list[tuple[float, float]]:
        since = max(SETTLING * self.points[-1][0], AT_LEAST) if self.points else 0.0
        return [point for point in self.points if point[0] >= since]

    @property
    def slope(self) -> float:
        """Least squares, in units a second."""
        points = self.judged
        n = len(points)
        if n < 2:
            return 0.0
        x, y = sum(p[0] for p in points) / n, sum(p[1] for p in points) / n
        spread = sum((p[0] - x) ** 2 for p in points)
        return sum((p[0] - x) * (p[1] - y) for p in points) / spread if spread else 0.0

    @property
    def growth(self) -> float:
        """Of the fit, over the judged part."""
        points = self.judged
        return self.slope * (points[-1][0] - points[0][0]) if points else 0.0

    @property
    def bound(self) -> float:
        points = self.judged
        mean = sum(value for _, value in points) / len(points) if points else 0.0
        return max(self.floor, self.share * mean)

    @property
    def level(self) -> bool:
        """Whether it ends where it began."""
        return self.growth <= self.bound

    def row(self) -> str:
        points = self.judged or [(0.0, 0.0)]
        values = [f"{value:>10,.1f}" for value in (points[0][1], points[-1][1], self.growth, self.bound)]
        return f"{self.name:<24} {self.unit:<4} {' '.join(values)}  {'ok' if self.level else 'GROWS'}"


HEAD = f"{'figure':<24} {'unit':<4} {'begin':>10} {'end':>10} {'growth':>10} {'bound':>10}"

_WIDE, _HIGH, _LEFT, _TOP = 640, 90, 210, 40


def chart(series: Sequence[Series], title: str) -> str:
    """An SVG of all series, one below the other, each from 0 to a little above its highest value; the fit dashed."""
    height = _TOP + len(series) * (_HIGH + 20)
    box, fonts = f"0 0 {_LEFT + _WIDE + 20} {height}", 'font-family="system-ui, sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" {fonts}>',
        f'<rect width="100%" height="100%" fill="#fff"/><text x="12" y="22" font-size="15">{escape(title)}</text>',
    ]
    for at, each in enumerate(series):
        parts.append(_panel(each, _TOP + at * (_HIGH + 20)))
    return "\n".join([*parts, "</svg>\n"])


def _panel(series: Series, top: float) -> str:
    if not series.points:
        return ""
    end, most = series.points[-1][0] or 1.0, max(value for _, value in series.points) * 1.1 or 1.0

    def place(at: float, value: float) -> str:
        return f"{_LEFT + at / end * _WIDE:.1f},{top + _HIGH - value / most * _HIGH:.1f}"

    line = " ".join(place(*point) for point in series.points)
    judged = series.judged
    fit = ""
    if judged:
        mean, half = sum(value for _, value in judged) / len(judged), series.growth / 2
        fit = f"{place(judged[0][0], mean - half)} {place(judged[-1][0], mean + half)}"
    color = "#2563eb" if series.level else "#dc2626"
    told = f"{series.points[-1][1]:,.1f} {series.unit}, growth {series.growth:+,.1f}"
    return (
        f'<text x="12" y="{top + 18}">{escape(series.name)}</text>'
        f'<text x="12" y="{top + 36}" fill="#666">{escape(told)}</text>'
        f'<line x1="{_LEFT}" y1="{top + _HIGH}" x2="{_LEFT + _WIDE}" y2="{top + _HIGH}" stroke="#ccc"/>'
        f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.2"/>'
        f'<polyline points="{fit}" fill="none" stroke="#111" stroke-dasharray="4 3"/>'
    )
