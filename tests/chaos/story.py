"""The histories of a run, put in order: who asked for what, who held it when, and who was out of reach."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from itertools import pairwise

import msgspec

from chaos.history import Event

ANSWERS = {"enq!": "added", "enq0": "duplicate", "enq-": "refused", "enq~": "unknown"}

SILENCE = 11.0
"""Seconds after which a connection that went silent has been given up by whoever waits at it."""

HARMLESS = {"script-flush", "kill-producer", "kill-scheduler", "malformed", "memory"}
"""Strikes that hold up no worker."""


class Goals(msgspec.Struct):
    """What the processes of the run were given; seconds."""

    lease: float
    interval: float
    """Between two looks for leases that ended."""
    concurrency: int


class Ask(msgspec.Struct):
    """One call of enqueue."""

    kind: str
    group: str
    delay: int
    wall: int
    verdict: str = "unknown"
    id: str = ""
    answered: int = 0


class Hold(msgspec.Struct, eq=False):
    """One delivery in one worker's hands, and its run."""

    worker: str
    entry: str
    token: str
    id: str
    attempt: int
    deliveries: int
    taken: float
    start: float | None = None
    started_wall: int = 0
    end: float | None = None
    how: str = ""
    kind: str = ""
    settled: Event | None = None
    lost: float | None = None


class Story:
    def __init__(self, events: list[Event], goals: Goals) -> None:
        self.events, self.goals = events, goals
        self.asked: dict[str, Ask] = {}
        self.holds: list[Hold] = []
        self.by_entry: dict[str, list[Hold]] = defaultdict(list)
        self.by_id: dict[str, list[Hold]] = defaultdict(list)
        self.killed: dict[str, float] = {}
        self.down: dict[str, tuple[float, int]] = {}
        self.told_to_end: dict[str, float] = {}
        self.destroyed: list[float] = []
        self.faults: list[tuple[float, float, str]] = []
        """From, until, whom ("" for all): whatever may keep a worker from renewing."""
        self.blocked: list[tuple[float, float, str]] = []
        """Handlers that blocked the event loop, connections that don't know yet that they are dead: no reason to lose a
        lease, but nothing is taken there meanwhile."""
        self.renewed: dict[str, list[float]] = defaultdict(list)
        self.beats: dict[str, list[float]] = defaultdict(list)
        """The same, and when there was nothing to renew."""
        self._open: dict[tuple[str, str], Hold] = {}
        self._waiting: dict[tuple[str, str], list[Hold]] = defaultdict(list)
        for event in events:
            getattr(self, "_" + event.what.rstrip("!?~-0"), self._pass)(event)
        self.faults.sort()

    # ---- questions ---------------------------------------------------------------------------------------------------

    def gone(self, hold: Hold) -> float:
        """When the hold's run was over: it ended, or its process did."""
        if hold.end is not None:
            return hold.end
        return min(self.killed.get(hold.worker, 1e18), self.down.get(hold.worker, (1e18, 0))[0])

    def out_of_reach(self, hold: Hold, until: float) -> bool:
        """Whether its worker could at some time not renew for a lease, up to `until`, and a fault explains it."""
        times = self.renewed[hold.worker]
        between = times[bisect_right(times, hold.taken) : bisect_left(times, until)]
        for last, then in pairwise([hold.taken, *between, until]):
            if then - last > self.goals.lease - 0.15 and self.hit(hold.worker, last - 0.1, then):
                return True
        return False

    def gave_up(self, hold: Hold, at: float) -> bool:
        """Whether its worker let it go because Redis was away for a lease, counted from its last renewal."""
        times = self.beats[hold.worker]
        place = bisect_left(times, at)
        last = times[place - 1] if place else 0.0
        return at - last > self.goals.lease - 0.15 and self.hit(hold.worker, last - 0.1, at)

    def hit(self, worker: str, begin: float, end: float) -> bool:
        """Whether a fault touched this worker then."""
        return any(whom in ("", worker) for _, _, whom in self.between(begin, end))

    def between(self, begin: float, end: float) -> list[tuple[float, float, str]]:
        """Faults that touch this time."""
        return [fault for fault in self.faults[: bisect_right(self.faults, (end, 1e18, ""))] if fault[1] >= begin]

    def calm(self, begin: float, end: float, but: str = "", *, all: bool = True) -> bool:
        """Whether no fault held up any worker but that one, no other one died, and `all` were taking jobs."""
        if any(whom != but or not but for _, _, whom in self.between(begin, end)):
            return False
        if all and any(a <= end and b >= begin - self.goals.lease for a, b, whom in self.blocked if whom != but):
            return False
        return not self.fewer(begin, end, but)

    def fewer(self, begin: float, end: float, but: str = "") -> bool:
        """Whether any other worker died: what it held comes back only when its lease has ended."""
        lease = self.goals.lease + self.goals.interval
        died = [at for who, (at, status) in self.down.items() if status and who.startswith("worker") and who != but]
        return any(begin - lease <= at <= end for at in died)

    def regrouped(self, begin: float, end: float) -> bool:
        """Whether a group was destroyed then: what was pending in it is handed out again."""
        # The server hands an entry out a moment before its worker says that it has it.
        return any(begin - 0.1 <= at <= end + 0.5 for at in self.destroyed)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def _pass(self, event: Event) -> None:
        pass

    def _enq(self, event: Event) -> None:
        if event.what == "enq?":
            self.asked[event.token] = Ask(event.note, event.group, event.delay, event.wall)
        else:
            ask = self.asked[event.token]
            ask.verdict, ask.id, ask.answered = ANSWERS[event.what], event.id, event.wall

    def _take(self, event: Event) -> None:
        hold = Hold(event.process, event.entry, event.token, event.id, event.attempt, event.deliveries, event.at)
        self.holds.append(hold)
        self.by_entry[event.entry].append(hold)
        self.by_id[event.id].append(hold)
        self._open[event.process, event.entry] = hold
        self._waiting[event.process, event.token].append(hold)

    def _start(self, event: Event) -> None:
        # `fast` tells no more than its token. One that was given back before it started may have been taken again.
        for hold in reversed(self._waiting[event.process, event.token]):
            if hold.start is None and event.id in ("", hold.id) and event.deliveries in (0, hold.deliveries):
                hold.start, hold.started_wall, hold.kind = event.at, event.wall, event.note
                return
        raise AssertionError(f"{event.process} started {event.token} without having taken it")

    def _end(self, event: Event) -> None:
        for hold in reversed(self._waiting[event.process, event.token]):
            known = event.id in ("", hold.id) and event.deliveries in (0, hold.deliveries)
            if hold.start is not None and hold.end is None and known:
                hold.end, hold.how = event.at, event.note
                if hold.kind == "blocking":
                    self.blocked.append((hold.start, hold.end, hold.worker))
                return

    def _settled(self, event: Event) -> None:
        hold = self._open.get((event.process, event.entry))
        if hold is not None:
            hold.settled = event

    def _lost(self, event: Event) -> None:
        hold = self._open.get((event.process, event.entry))
        if hold is not None and hold.lost is None:
            hold.lost = event.at

    def _renewed(self, event: Event) -> None:
        self.beats[event.process].append(event.at)
        if event.number:  # with nothing to renew it asks nobody
            self.renewed[event.process].append(event.at)

    def _stall(self, event: Event) -> None:
        self.faults.append((event.at - event.span, event.at, event.process))

    def _strike(self, event: Event) -> None:
        if event.note in ("kill-worker", "kill-producer", "kill-scheduler"):
            self.killed[event.target] = event.at
        if event.note.startswith("term"):
            self.told_to_end.setdefault(event.target, event.at)

    def _over(self, event: Event) -> None:
        if event.note == "group-destroy":
            self.destroyed.append(event.at)
        if event.note in HARMLESS or event.note.startswith(("kill", "term")):
            return
        begun = event.at - event.span
        if event.note in ("hole", "mute"):
            self.blocked.append((begun, begun + SILENCE, event.target))
        after = 1.2 if event.note in ("hole", "mute") else 0.1  # the second until a silent connection is given up
        self.faults.append((begun, event.at + after, event.target))

    def _down(self, event: Event) -> None:
        self.down[event.target] = event.at, event.number
        if event.number == -9:
            self.killed.setdefault(event.target, event.at)
