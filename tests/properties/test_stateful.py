"""Every script of the data path, in any order, against the model of what is promised. The invariants: world.py."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import seed, settings
from hypothesis.stateful import run_state_machine_as_test

from properties.machine import Machine
from support import profiles
from support.server import Server

STEPS, ROUNDS = 50, 4


class Counting(Machine):
    """Remembers what its histories reached."""

    seen: ClassVar[Counter[str]]

    def finished(self) -> None:
        self.seen.update(self.world.reached)
        self.seen["histories"] += 1


WINS, NOTHING = "wins", "changes nothing"
OUTCOMES = [
    (kind, who, WINS if who == "holder" or kind == "done" else NOTHING)
    for kind in ("done", "again", "dead", "released")
    for who in ("holder", "ghost", "zombie")
]
REACHED = [
    *(f"{kind} by the {who}: {what}" for kind, who, what in OUTCOMES if (kind, who, what) != ("done", "zombie", WINS)),
    "done by the zombie: wins", "done by the zombie: changes nothing", "finish repeated", "finish refused",
    "plain, all", "plain, not all",
    "added", "not added", "enqueue repeated", "call repeated late", "cron slot", "cron slot again",
    "taken", "taken, reply lost", "recovered", "reclaimed, reply lost", "group made",
    "reclaimed released", "reclaimed own", "reclaimed foreign", "reclaimed aged",
    "renewed in time", "renewed late", "renewed lost", "promoted", "pruned", "dead job put back", "dedupe key lapsed",
    "deleted leased", "deleted ready", "trimmed", "stream deleted", "group destroyed", "acknowledged by another SDK",
]  # fmt: skip


@pytest.mark.timeout(900)
def test_no_history_breaks_an_invariant(own_server: Server) -> None:
    """After each step all invariants hold, and at the end all drains. The histories reach every outcome there is."""

    class Run(Counting):
        server = own_server
        seen: ClassVar[Counter[str]] = Counter()

    missing = REACHED
    for number in range(ROUNDS):  # another hypothesis may need more of them than this one
        if not profiles.LONG:
            seed(number)(Run)
        run_state_machine_as_test(Run, settings=settings(profiles.examples(250), stateful_step_count=STEPS))
        missing = [what for what in REACHED if not Run.seen[what]]
        if not missing:
            break
    assert not missing
