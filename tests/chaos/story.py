"""The histories of a run, put in order: who asked for what, who held it when, and who was out of reach."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from chaos.history import Event

ANSWERS = {"enq!": "added", "enq0": "duplicate", "enq-": "refused", "enq~": "unknown"}

SILENCE = 11.0
"""Seconds after which a connection that went silent has been given up by whoever waits at it."""

BEARABLE = {"delay", "group-destroy"}
"""Strikes that hold up what a worker takes, but make no renewal fail: a slow network, and a group that is gone."""

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
    pause: int = 0
    """Ms before each retry."""


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

    @property
    def unsure(self) -> float | None:
        """When a success was answered among others of which some were not this worker's any more."""
        event = self.settled
        return event.at if event is not None and event.verdict is None and event.note == "done" else None


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
        """Whatever may keep a worker from taking jobs."""
        self.severed: list[Span] = []
        """Whatever may make a renewal fail."""
        self.stood: list[Span] = []
        """Processes that were frozen, or got no processor."""
        self.silent: list[Span] = []
        """Connections that don't know yet that they are dead: no reason to lose a lease either."""
        self.renewed: dict[str, list[Event]] = defaultdict(list)
        self.tried: dict[str, list[Event]] = defaultdict(list)
        """Renewals, and those that failed."""
        self.gave_up: dict[str, list[Event]] = defaultdict(list)
        """When a worker let go all that it held, since it had not renewed for `span` seconds."""
        self.calls: dict[str, list[tuple[float, float]]] = defaultdict(list)
        """When each call with outcomes was sent and answered, by worker; answered ones only."""
        self.takes: dict[str, list[float]] = defaultdict(list)
        self._vacant: list[Span] | None = None
        self._backlogs: list[tuple[float, float]] | None = None
        self._open: dict[tuple[str, int], Hold] = {}
        self._behind = events[0].at - events[0].wall / 1000 if events else 0.0
        for event in events:
            getattr(self, "_" + event.what.rstrip("!?~-0"), self._pass)(event)
        self.blocked = [(h.start, self.gone(h), h.worker) for h in self.holds if h.kind == "blocking" and h.start]
        """Handlers that blocked the event loop: no reason to lose a lease, but nothing is taken or finished then."""
        for spans in (self.faults, self.severed, self.stood, self.blocked):
            spans.sort()

    # ---- questions ---------------------------------------------------------------------------------------------------

    def gone(self, hold: Hold) -> float:
        """When the hold's run was over: it ended, or its process did."""
        if hold.end is not None:
            return hold.end
        return min(self.killed.get(hold.worker, 1e18), self.down.get(hold.worker, (1e18, 0))[0])

    def out_of_reach(self, hold: Hold, until: float) -> bool:
        """Whether faults kept its worker from renewing it for a lease, up to `until`.

        The server counts from the moment at which it heard of the last renewal, which is after that was sent.
        """
        calls = [event for event in self.renewed[hold.worker] if hold.taken < event.at - event.span < until]
        sent = [hold.handed, *(event.at - event.span for event in calls)]
        answered = [*(event.at for event in calls), until]
        return any(
            min(then, until) - last > self.goals.lease - 0.002 and self._hindered(hold.worker, last)
            for last, then in zip(sent, answered, strict=True)
        )

    def let_go(self, hold: Hold) -> bool:
        """Whether its worker let it go by itself, since faults kept it from renewing for a lease."""
        at = hold.lost or 0.0
        return any(
            event.span >= self.goals.lease and hold.taken < event.at <= at
            and self._hindered(hold.worker, event.at - event.span)
            for event in self.gave_up[hold.worker]
        )  # fmt: skip

    def _hindered(self, worker: str, begin: float) -> bool:
        """Whether a worker did all it could to renew within a lease from `begin`, and faults kept it from that.

        It has to try each third of a lease (and 0.2 s for a busy machine), but while it stood still; and for each try
        that failed, a fault has to have hit it or the connection that it found.
        """
        at = before = begin
        for event in self.tried[worker]:
            if event.at < begin:  # the connection was sound then, and nobody has asked on it since
                before = event.at if event.what == "unrenewed" else event.at - event.span
        end, longest = begin + self.goals.lease, self.goals.lease / 3 + 0.2
        for event in self.tried[worker]:
            begun, failed = event.at - event.span, event.what == "unrenewed"
            if not begin < begun < end or not (failed or self._touched(worker, begun, event.at)):
                continue  # where an answer took long and no fault was near, that is no excuse
            if begun - at - self.covered(self.stood, worker, at, begun) > longest:
                return False
            if not self._touched(worker, before, event.at):
                return False
            at, before = max(at, event.at), event.at if failed else begun  # one that failed drops its connection
        return end - at - self.covered(self.stood, worker, at, end) <= longest

    def _touched(self, worker: str, begin: float, end: float) -> bool:
        return any(a <= end and b >= begin and whom in ("", worker) for a, b, whom in (*self.severed, *self.stood))

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
        if all and any(a <= end and b >= begin for a, b, _ in self.vacant()):
            return False
        return not self.fewer(begin, end, but)

    def manned(self, begin: float, end: float) -> bool:
        """Whether one of the places had a worker that took jobs, all of this time."""
        places = {place for _, _, place in self.vacant()}
        return bool(places - {place for a, b, place in self.vacant() if a <= end and b >= begin})

    def vacant(self) -> list[Span]:
        """When a worker was missing at a place: from its order to end, or its death, until its successor took a job."""
        if self._vacant is None:
            self._vacant = []
            places: dict[str, list[str]] = defaultdict(list)
            for worker in self.takes:
                places[worker.rpartition("-")[0]].append(worker)
            for place, workers in places.items():
                since = 0.0
                for worker in sorted(workers, key=lambda each: self.takes[each][0]):
                    self._vacant.append((since, self.takes[worker][0], place))
                    since = min(self.told_to_end.get(worker, [1e18])[0], self.down.get(worker, (1e18, 0))[0])
                self._vacant.append((since, 1e18, place))
        return self._vacant

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

    def heard(self, worker: str, order: float) -> float:
        """When a worker could hear a signal: at once, or when the handler that blocked its loop had ended."""
        return max([order, *(b for a, b, whom in self.blocked if whom == worker and a <= order <= b)])

    def grace_ends(self, worker: str) -> float:
        """When a worker that was told to end may give back what runs: a second signal ends its grace."""
        told = self.told_to_end.get(worker)
        orders = [self.heard(worker, order) for order in told or ()]
        return min([orders[0] + self.goals.grace, *orders[1:]]) if orders else 1e18

    def backlog(self, entry: str) -> float:
        """Since when somebody always waited for long, up to the moment at which this entry came into its queue.

        A fault fills the queues; until they are empty again, what comes has to wait for what was there before it.
        """
        if self._backlogs is None:
            self._backlogs = []
            waits = sorted((self.came(each), holds[0].taken) for each, holds in self.by_entry.items())
            for came, taken in waits:
                if taken - came < 0.1:
                    continue
                if self._backlogs and came <= self._backlogs[-1][1]:
                    begun, ended = self._backlogs.pop()
                    came, taken = begun, max(taken, ended)
                self._backlogs.append((came, taken))
        came = self.came(entry)
        place = bisect_right(self._backlogs, (came, 1e18))
        begun, ended = self._backlogs[place - 1] if place else (came, came)
        return begun if ended >= came else came

    def came(self, entry: str) -> float:
        """When it came into its queue, by the server's clock, which is this machine's."""
        return int(entry.rpartition(":")[2].partition("-")[0]) / 1000 + self._behind

    def past_limit(self, hold: Hold, until: float) -> bool:
        """Whether its hard limit could not be enforced, since its loop was blocked for OVERDUE after it and longer.

        Its lease is not renewed then, as the docs say: the job is handed out again and ends by that limit there.
        """
        if hold.kind != "hard" or hold.start is None:
            return False
        limit = hold.start + 0.15
        return self.covered(self.blocked, hold.worker, limit, until) >= 1.0

    # ---- reading -----------------------------------------------------------------------------------------------------

    def _pass(self, event: Event) -> None:
        pass

    def _enq(self, event: Event) -> None:
        if event.what == "enq?":
            self.asked[event.token] = Ask(event.note, event.group, event.delay, event.wall, pause=event.number)
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
        self.takes[event.process].append(event.at)
        self._open[event.process, event.number] = hold

    def _start(self, event: Event) -> None:
        hold = self._open[event.process, event.number]
        hold.start, hold.started_wall, hold.kind = event.at, event.wall, event.note

    def _end(self, event: Event) -> None:
        hold = self._open[event.process, event.number]
        hold.end, hold.how = event.at, event.note

    def _sent(self, event: Event) -> None:
        hold = self._open[event.process, event.number]
        hold.sent = hold.sent or event

    def _settled(self, event: Event) -> None:
        self._open[event.process, event.number].settled = event
        self.calls[event.process].append((event.at - event.span, event.at))

    def _lost(self, event: Event) -> None:
        hold = self._open[event.process, event.number]
        hold.lost = hold.lost or event.at

    def _renewed(self, event: Event) -> None:
        if event.number:  # with nothing to renew it asks nobody
            self.renewed[event.process].append(event)
            self.tried[event.process].append(event)

    def _unrenewed(self, event: Event) -> None:
        self.tried[event.process].append(event)

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
            self.stood.append((event.at - event.span, event.at, event.process))

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
        fault = begun, event.at + after, event.target
        self.faults.append(fault)
        if event.note == "freeze":
            self.stood.append((begun, event.at, event.target))
        elif event.note not in BEARABLE:
            self.severed.append(fault)

    def _down(self, event: Event) -> None:
        self.down[event.target] = event.at, event.number
        if event.number == -9:
            self.killed.setdefault(event.target, event.at)


def first_after(times: Iterable[float], at: float) -> float:
    """The first of these after that; 1e18 for none."""
    return min((time for time in times if time > at), default=1e18)
