"""The soak's judgement: what grows is found, what only swings is not, and the chart shows both."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from soak.figures import Series, chart


def series(value: object, seconds: int = 200) -> Series:
    found = Series("figure", "MB", 0.05, 1.0)
    for at in range(seconds):
        found.add(float(at), value(at))  # type: ignore[operator]
    return found


@pytest.mark.parametrize(
    ("value", "level"),
    [
        (lambda at: 100.0, True),
        (lambda at: 100.0 + 5 * math.sin(at), True),
        (lambda at: 100.0 + 0.1 * at, False),
        (lambda at: 100.0 + 0.1 * at + 5 * math.sin(at), False),
        (lambda at: 100.0 - 0.1 * at, True),
        (lambda at: min(100.0, 2.0 * at), True),
        (lambda at: 100.0 + 0.01 * at, True),
    ],
    ids=["flat", "swings", "grows", "grows and swings", "shrinks", "settles", "within its bound"],
)
def test_growth_is_judged_by_a_fit_of_what_came_after_the_settling(value: object, level: bool) -> None:
    """Five per cent of the mean, or the floor, whichever is more, over the judged part."""
    assert series(value).level is level


def test_the_chart_is_an_svg_with_a_panel_for_each_figure() -> None:
    """Also of a run that was too short to be judged."""
    drawn = chart([series(lambda at: 1.0), series(lambda at: float(at)), series(lambda at: 1.0, 5)], "a < b")
    root = ElementTree.fromstring(drawn)
    assert root.tag.endswith("svg")
    assert len([each for each in root.iter() if each.tag.endswith("polyline")]) == 6
    assert "a < b" in "".join(root.itertext())
