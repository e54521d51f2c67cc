"""A seed's schedule of strikes: the same seed, the same schedule."""

from __future__ import annotations

import random

import msgspec

from support.killpoints import POINTS

KINDS = {
    "kill-worker": 6, "kill-point": 3, "kill-producer": 2, "kill-scheduler": 2, "freeze-worker": 4, "term-worker": 3,
    "term-worker-twice": 2, "restart": 2, "crash": 2, "client-kill": 3, "pause": 2, "script-flush": 2,
    "group-destroy": 1, "cut": 4, "hole": 2, "mute": 2, "delay": 2, "memory": 2, "malformed": 4,
}  # fmt: skip
"""Every strike there is, and how often it is chosen.

`crash` is SIGKILL for the server, `hole` a network that goes silent, `mute` one that swallows replies.
"""

SWEEP = tuple(KINDS)


class Strike(msgspec.Struct, frozen=True):
    at: float
    """Seconds from the begin."""
    kind: str
    pick: float
    """Which of those that can be hit: a share of 1."""
    span: float
    """How long it lasts: a share of the most."""
    point: str
    """Of a kill point."""


def schedule(seed: int, seconds: float) -> list[Strike]:
    """Strikes 0.3 to 0.9 s apart, for so many seconds: first each kind once, in any order, then by luck."""
    dice = random.Random(seed)
    first = list(SWEEP)
    dice.shuffle(first)
    strikes, at = [], 0.0
    while (at := at + dice.uniform(0.3, 0.9)) < seconds:
        kind = first.pop() if first else dice.choices(list(KINDS), list(KINDS.values()))[0]
        strikes.append(Strike(round(at, 3), kind, dice.random(), dice.random(), dice.choice(POINTS)))
    return strikes


REST = 3.0
"""Seconds of calm between the storm and the coda."""

CODA = (
    ("kill-worker", 2.0), ("term-worker", 0.5), ("crash", 0.3), ("restart", 0.3), ("client-kill", 0.3),
    ("script-flush", 0.3), ("malformed", 0.3), ("hole", 0.0),
)  # fmt: skip
"""At the end, one by one, each with seconds of calm after it: what recovery takes when nothing else goes wrong."""
