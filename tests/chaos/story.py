"""The histories of a run, put in order: who asked for what, who held it when, and who was out of reach."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from chaos.history import Event

ANSWERS = {"enq!": "added", "enq0": "duplicate", "enq-": "refused", "enq~": "unknown"}

SILENCE = 11.0
"""Seconds after which a connection that went silent has been given up by whoever waits at it."""

HARMLESS = {"script-flush", "kill-producer", "kill-scheduler", "malformed", "memory"}
"""Strikes that hold up no worker."""

Span = tuple[float, float, str]
"""From, until, whom ("" for all)."""


class Goals(msgspec.Struct):
    """What the processes of the run were given; seconds."""

    lease: float
    interval: float
    """Between two looks for leases that ended."""
    grace: float
    """After SIGTERM, for what runs."""
    concurrency: int
    deliveries: int = 5
    """Without a finish, after which a job is given up."""


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
    handed: float
    """Not before this the server gave it out: the entry was there, and the call that brought it was sent."""
    taken: float
    start: float | None = None
    started_wall: int = 0
    end: float | None = None
    how: str = ""
    kind: str = ""
    sent: Event | None = None
    """The first call with its outcome; `note` is the outcome."""
    settled: Event | None = None
    lost: float | None = None

    @property
    def queue(self) -> str:
        return self.entry.partition(":")[0]

    def did(self, *notes: str) -> float | None:
        """When the server had written its outcome for certain, if that is one of these."""
        event = self.settled
        return event.at if event is not None and event.verdict is True and event.note in notes else None


class Story:
    def __init__(self, events: list[Event], goals: Goals) -> None:
        self.events, self.goals = events, goals
        self.asked: dict[str, Ask] = {}
        self.holds: list[Hold] = []
        self.by_entry: dict[str, list[Hold]] = defaultdict(list)
        self.by_id: dict[str, list[Hold]] = defaultdict(list)
        self.killed: dict[str, float] = {}
        self.down: dict[str, tuple[float, int]] = {}
        self.told_to_end: dict[str, list[float]] = defaultdict(list)
        self.hears: set[str] = set()
        """Processes whose handlers of signals are in their place."""
        self.destroyed: list[Span] = []
        """Groups, by queue."""
        self.faults: list[Span] = []
        """Whatever may keep a worker from renewing."""
        self.blocked: list[Span] = []
        """Handlers that blocked the event loop: no reason to lose a lease, but nothing is taken there meanwhile."""
        self.silent: list[Span] = []
        """Connections that don't know yet that they are dead: no reason to lose a lease either."""
        self.renewed: dict[str, list[Event]] = defaultdict(list)
        self.gave_up: dict[str, list[Event]] = defaultdict(list)
        """When a worker let go all that it held, since it had not renewed for `span` seconds."""
        self.calls: dict[str, list[tuple[float, float]]] = defaultdict(list)
        """When each call with outcomes was sent and answered, by worker; answered ones only."""
        self._turns: dict[str, list[tuple[tuple[int, int], float]]] = defaultdict(list)
        self._open: dict[tuple[str, str, int], Hold] = {}
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
        """Whether faults kept its worker from renewing it for a lease, up to `until`.

        The server counts from the moment at which it heard of the last renewal, which is after that was sent. And the
        faults must have taken so much of that time that without them it would have been renewed: it is, three times a
        lease.
        """
        lease = self.goals.lease
        calls = [event for event in self.renewed[hold.worker] if hold.taken < event.at - event.span < until]
        sent = [hold.handed, *(event.at - event.span for event in calls)]
        answered = [*(event.at for event in calls), until]
        for last, then in zip(sent, answered, strict=True):
            gap = min(then, until) - last
            if gap > lease - 0.002 and gap - self.covered(self.faults, hold.worker, last, then) < lease * 2 / 3 + 0.2:
                return True
        return False

    def let_go(self, hold: Hold) -> bool:
        """Whether its worker let it go by itself, since faults kept it from renewing for a lease."""
        at = hold.lost or 0.0
        return any(
            event.span >= self.goals.lease and hold.taken < event.at <= at and self._hindered(event)
            for event in self.gave_up[hold.worker]
        )

    def _hindered(self, event: Event) -> bool:
        begun = event.at - event.span
        return event.span - self.covered(self.faults, event.process, begun, event.at) < self.goals.lease * 2 / 3 + 0.2

    @staticmethod
    def covered(spans: Sequence[Span], worker: str, begin: float, end: float) -> float:
        """How many seconds of this time lie in spans that touch this worker. `spans` in order."""
        total, at = 0.0, begin
        for a, b, whom in spans:
            if whom in ("", worker) and b > at and a < end:
                total += min(b, end) - max(a, at)
                at = min(b, end)
        return total

    def between(self, begin: float, end: float) -> list[Span]:
        """Faults that touch this time."""
        return [fault for fault in self.faults[: bisect_right(self.faults, (end, 1e18, ""))] if fault[1] >= begin]

    def calm(self, begin: float, end: float, but: str = "", *, all: bool = True) -> bool:
        """Whether no fault held up any worker but that one, no other one died, and `all` were taking jobs."""
        if any(whom != but or not but for _, _, whom in self.between(begin, end)):
            return False
        held_up = [*self.blocked, *self.silent] if all else []
        if any(a <= end and b >= begin - self.goals.lease and whom != but for a, b, whom in held_up):
            return False
        return not self.fewer(begin, end, but)

    def fewer(self, begin: float, end: float, but: str = "") -> bool:
        """Whether any other worker died: what it held comes back only when its lease has ended."""
        lease = self.goals.lease + self.goals.interval
        died = [at for who, (at, status) in self.down.items() if status and who.startswith("worker") and who != but]
        return any(begin - lease <= at <= end for at in died)

    def regrouped(self, hold: Hold, until: float) -> bool:
        """Whether its queue's group was destroyed while it held this: what is in the stream is then handed out again.

        Redis forgets who held what; the group that is made anew begins at the first entry.
        """
        return any(queue == hold.queue and hold.handed <= b and a <= until for a, b, queue in self.destroyed)

    def head_of_queue(self, entry: str) -> float:
        """When the entry before this one in its queue was first taken: until then this one had to wait its turn."""
        queue, _, id = entry.partition(":")
        if not self._turns:
            for each, holds in self.by_entry.items():
                self._turns[each.partition(":")[0]].append((_order(each.partition(":")[2]), holds[0].taken))
            for turns in self._turns.values():
                turns.sort()
        place = bisect_left(self._turns[queue], (_order(id), 0.0))
        return self._turns[queue][place - 1][1] if place else 0.0

    def past_limit(self, hold: Hold, until: float) -> bool:
        """Whether its hard limit could not be enforced, since its loop was blocked for OVERDUE after it and longer.

        Its lease is not renewed then, as the docs say: the job is handed out again and ends by that limit there.
        """
        if hold.kind != "hard" or hold.start is None:
            return False
        limit = hold.start + 0.15
        return self.covered(sorted(self.blocked), hold.worker, limit, until) >= 1.0

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
        # The entry's id tells when it came, by a clock that all processes here share; in whole milliseconds.
        came = event.at - (event.wall - int(event.entry.rpartition(":")[2].partition("-")[0])) / 1000 - 0.002
        handed = min(event.at, max(came, event.at - event.span))
        facts = (event.token, event.id, event.attempt, event.deliveries)
        hold = Hold(event.process, event.entry, *facts, handed, event.at)
        self.holds.append(hold)
        self.by_entry[event.entry].append(hold)
        self.by_id[event.id].append(hold)
        self._open[event.process, event.entry, event.deliveries] = hold
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

    def _sent(self, event: Event) -> None:
        hold = self._open.get((event.process, event.entry, event.deliveries))
        if hold is not None and hold.sent is None:
            hold.sent = event

    def _settled(self, event: Event) -> None:
        hold = self._open.get((event.process, event.entry, event.deliveries))
        if hold is not None:
            hold.settled = event
        self.calls[event.process].append((event.at - event.span, event.at))

    def _lost(self, event: Event) -> None:
        hold = self._open.get((event.process, event.entry, event.deliveries))
        if hold is not None and hold.lost is None:
            hold.lost = event.at

    def _renewed(self, event: Event) -> None:
        if event.number:  # with nothing to renew it asks nobody
            self.renewed[event.process].append(event)

    def _gaveup(self, event: Event) -> None:
        self.gave_up[event.process].append(event)

    def _hears(self, event: Event) -> None:
        self.hears.add(event.process)

    def _deaf(self, event: Event) -> None:
        self.hears.discard(event.process)

    def _stall(self, event: Event) -> None:
        # One that used the processor itself was held up by nobody else.
        if event.number < event.span * 500:
            self.faults.append((event.at - event.span, event.at, event.process))

    def _strike(self, event: Event) -> None:
        if event.note in ("kill-worker", "kill-producer", "kill-scheduler"):
            self.killed[event.target] = event.at
        if event.note.startswith("term"):
            self.told_to_end[event.target].append(event.at)

    def _over(self, event: Event) -> None:
        begun = event.at - event.span
        if event.note == "group-destroy":
            self.destroyed.append((begun, event.at, event.group))
        if event.note in HARMLESS or event.note.startswith(("kill", "term")):
            return
        if event.note in ("hole", "mute"):
            self.silent.append((begun, begun + SILENCE, event.target))
        after = 1.2 if event.note in ("hole", "mute") else 0.1  # the second until a silent connection is given up
        self.faults.append((begun, event.at + after, event.target))

    def _down(self, event: Event) -> None:
        self.down[event.target] = event.at, event.number
        if event.number == -9:
            self.killed.setdefault(event.target, event.at)


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number)


def first_after(times: Iterable[float], at: float) -> float:
    """The first of these after that; 1e18 for none."""
    return min((time for time in times if time > at), default=1e18)
