"""Slots: what is ready, what runs, how much room there is; close and drain."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from backstage.job import Delivery
from backstage.outcome import DONE, Dead, Outcome, Released
from backstage.worker.slots import BATCH, UNSETTLED, Slots
from support.waiting import wait_until

numbers = iter(range(1, 1_000_000))


def entry(queue: str = "default") -> Delivery:
    return Delivery(queue, f"{next(numbers)}-0".encode(), [])


class Bench:
    """Slots whose jobs end when they are told to."""

    def __init__(
        self, size: int = 2, execute: Callable[[Delivery], Coroutine[Any, Any, Outcome]] | None = None
    ) -> None:
        self.started: list[Delivery] = []
        self.ended: list[Delivery] = []
        self.settled: list[tuple[Delivery, Outcome]] = []
        self.unsettled = 0
        self.go_on: dict[Delivery, asyncio.Event] = {}
        self.slots = Slots(
            size, ["urgent", "default", "low"], execute or self.execute, self.settle, lambda: self.unsettled, {}
        )

    async def execute(self, delivery: Delivery) -> Outcome:
        self.started.append(delivery)
        event = self.go_on[delivery] = asyncio.Event()
        try:
            await event.wait()
        except asyncio.CancelledError:
            return Released()
        finally:
            self.ended.append(delivery)
        return DONE

    def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        self.settled.append((delivery, outcome))

    def feed(self, *queues: str) -> list[Delivery]:
        deliveries = [entry(queue) for queue in queues]
        self.slots.feed(deliveries)
        return deliveries


Make = Callable[..., Bench]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes benches, and ends what still runs in their slots."""
    made: list[Bench] = []

    def build(*args: Any, **options: Any) -> Bench:
        made.append(Bench(*args, **options))
        return made[-1]

    yield build
    for bench in made:
        bench.slots.close()
        await bench.slots.drain(0)


async def test_runs_and_settles(make: Make) -> None:
    """A delivery is executed in a free slot, and its outcome settled."""
    bench = make()
    (one,) = bench.feed("default")
    await wait_until(lambda: bench.started == [one])
    assert bench.settled == []
    bench.go_on[one].set()
    await wait_until(lambda: bench.settled == [(one, DONE)])
    assert bench.slots.running == {}


async def test_a_job_that_never_waits(make: Make) -> None:
    """Is run and settled like any other; a whole batch of them too."""

    async def at_once(delivery: Delivery) -> Outcome:
        return DONE

    bench = make(2, at_once)
    fed = bench.feed(*["default"] * 1_000)
    await wait_until(lambda: len(bench.settled) == 1_000)
    assert [delivery for delivery, _ in bench.settled] == fed
    assert bench.slots.running == {}


async def test_never_where_they_arrive(make: Make) -> None:
    """`feed` starts nothing itself: the next read must leave first."""
    bench = make()
    bench.feed("default")
    assert bench.started == []
    await wait_until(lambda: bench.started)


async def test_no_more_than_slots(make: Make) -> None:
    """Beyond `size` deliveries wait; a slot that gets free takes the next one."""
    bench = make(size=2)
    one, two, three = bench.feed("default", "default", "default")
    await wait_until(lambda: bench.started == [one, two])
    bench.go_on[one].set()
    await wait_until(lambda: bench.started == [one, two, three])


async def test_best_queue_first(make: Make) -> None:
    """Whatever the order in which they were fed."""
    bench = make(size=1)
    low, default, urgent = bench.feed("low", "default", "urgent")
    for delivery in (urgent, default, low):
        await wait_until(lambda delivery=delivery: bench.started[-1:] == [delivery])
        bench.go_on[delivery].set()
    await wait_until(lambda: len(bench.settled) == 3)
    assert bench.started == [urgent, default, low]


async def test_room(make: Make) -> None:
    """Free slots less what waits; nothing once closed, or while too much waits to become durable."""
    bench = make(size=3)
    assert bench.slots.room() == 3
    bench.feed("default")
    assert bench.slots.room() == 2
    await wait_until(lambda: bench.started)
    assert bench.slots.room() == 2
    bench.unsettled = UNSETTLED + 1
    assert bench.slots.room() == 0
    bench.unsettled = 0
    bench.slots.close()
    assert bench.slots.room() == 0
    assert make(size=10_000).slots.room() == BATCH


async def test_free_waits_for_room(make: Make) -> None:
    """It answers when a slot gets free, when outcomes became durable, and 0 once closed."""
    bench = make(size=1)
    assert await bench.slots.free() == 1
    (one,) = bench.feed("default")
    await wait_until(lambda: bench.started)
    free = asyncio.create_task(bench.slots.free())
    await asyncio.sleep(0)
    assert not free.done()
    bench.go_on[one].set()
    assert await free == 1
    bench.unsettled = UNSETTLED + 1
    free = asyncio.create_task(bench.slots.free())
    await asyncio.sleep(0)
    assert not free.done()
    bench.unsettled = 0
    bench.slots.eased()
    assert await free == 1
    (two,) = bench.feed("default")
    await wait_until(lambda: two in bench.started)
    free = asyncio.create_task(bench.slots.free())
    await asyncio.sleep(0)
    bench.slots.close()
    assert await free == 0
    bench.go_on[two].set()
    await bench.slots.drain(1)


async def test_what_stalls_is_given_back(make: Make) -> None:
    """While all slots are full and nothing starts, what was fetched ahead goes back to whoever has a free slot."""
    bench = make(size=1)
    one, two, three = bench.feed("default", "urgent", "low")
    await wait_until(lambda: len(bench.settled) == 2)
    assert bench.started == [two]
    assert bench.settled == [(one, Released()), (three, Released())]


async def test_a_task_and_a_context_for_each(make: Make) -> None:
    """What one job sets in a context variable, no other sees."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    seen: list[tuple[int, asyncio.Task[Any] | None]] = []

    async def execute(delivery: Delivery) -> Outcome:
        seen.append((variable.get(), asyncio.current_task()))
        variable.set(7)
        await asyncio.sleep(0)
        return DONE

    bench = make(5, execute)
    bench.feed("default", "default", "default")
    await wait_until(lambda: len(bench.settled) == 3)
    assert [value for value, _ in seen] == [0, 0, 0]
    assert len({task for _, task in seen}) == 3


# ---- the end ---------------------------------------------------------------------------------------------------------


async def test_drain(make: Make) -> None:
    """What runs may finish; what has not started, and what still arrives, is given back."""
    bench = make(size=1)
    one, two = bench.feed("default", "default")
    await wait_until(lambda: bench.started == [one])
    bench.slots.close()
    bench.slots.close()
    draining = asyncio.create_task(bench.slots.drain(10))
    await wait_until(lambda: bench.settled == [(two, Released())])
    (late,) = bench.feed("default")
    assert bench.settled[-1] == (late, Released())
    bench.go_on[one].set()
    assert await draining == []
    assert bench.settled[-1] == (one, DONE)
    assert not bench.slots.cut


async def test_grace(make: Make) -> None:
    """After it what runs is cancelled, and given back by its own outcome, once."""
    bench = make()
    one, two = bench.feed("default", "default")
    await wait_until(lambda: len(bench.started) == 2)
    bench.slots.close()
    assert await bench.slots.drain(0.01) == []
    assert sorted(bench.settled, key=lambda pair: pair[0].entry_id) == [(one, Released()), (two, Released())]
    assert bench.slots.running == {}
    assert bench.slots.cut


async def test_hurry(make: Make) -> None:
    """Ends the grace period now."""
    bench = make()
    bench.feed("default")
    await wait_until(lambda: bench.started)
    bench.slots.close()
    draining = asyncio.create_task(bench.slots.drain(60))
    await asyncio.sleep(0)
    bench.slots.hurry()
    assert await asyncio.wait_for(draining, 2) == []
    assert len(bench.settled) == 1


async def test_what_would_not_end(make: Make) -> None:
    """A run that swallows its cancellation is given back all the same, and told."""
    go_on = asyncio.Event()

    async def stubborn(delivery: Delivery) -> Outcome:
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue
        return DONE

    bench = make(1, stubborn)
    (one,) = bench.feed("default")
    await wait_until(lambda: bench.slots.running)
    bench.slots.close()
    (left,) = await bench.slots.drain(0)
    assert bench.settled == [(one, Released())]
    go_on.set()
    await left
    await asyncio.sleep(0)
    assert bench.settled == [(one, Released())]


async def test_drain_with_nothing(make: Make) -> None:
    """Is over at once."""
    bench = make()
    bench.slots.close()
    assert await bench.slots.drain(60) == []


# ---- giving up -------------------------------------------------------------------------------------------------------


async def test_abandon(make: Make) -> None:
    """A run past its hard limit: settled now, cancelled, and what it still returns is dropped."""
    bench = make(size=1)
    dead = Dead("timeout")
    (one,) = bench.feed("default")
    await wait_until(lambda: bench.started)
    bench.slots.abandon(one, "hard", dead)
    bench.slots.abandon(one, "hard", dead)
    assert bench.settled == [(one, dead)]
    assert bench.slots.why[one] == "hard"
    await wait_until(lambda: not bench.slots.running)
    assert bench.settled == [(one, dead)]
    assert bench.slots.why == {}
    assert bench.slots.room() == 1


async def test_abandon_what_has_ended(make: Make) -> None:
    """Is harmless."""
    bench = make()
    bench.slots.abandon(entry(), "hard", Dead("timeout"))
    assert bench.settled == []


async def test_lost(make: Make) -> None:
    """Leases that are somebody else's by now: runs are cancelled, what waits is forgotten, and nothing is settled."""
    bench = make(size=1)
    one, two, three = bench.feed("default", "default", "default")
    await wait_until(lambda: bench.started == [one])
    assert bench.slots.lose([one, two]) == 2
    await wait_until(lambda: bench.ended == [one])
    await wait_until(lambda: bench.started == [one, three])
    assert bench.settled == []
    bench.go_on[three].set()
    await wait_until(lambda: bench.settled == [(three, DONE)])
    assert bench.slots.lose([one, two, three]) == 0, "what has ended, or was lost before, is nobody's loss"


async def test_lost_before_its_first_step(make: Make) -> None:
    """A run that is cancelled before it began leaves its slot."""
    bench = make(size=1)
    (one,) = bench.feed("default")
    bench.slots._pump()
    bench.slots.lose([one])
    await wait_until(lambda: not bench.slots.running)
    assert bench.settled == []
    assert bench.slots.room() == 1


async def test_current(make: Make) -> None:
    """Whose handler has the loop, for the thread that notices that it is blocked."""
    seen: list[Delivery | None] = []

    async def execute(delivery: Delivery) -> Outcome:
        seen.append(bench.slots.current())
        await asyncio.sleep(0)
        seen.append(bench.slots.current())
        return DONE

    bench = make(2, execute)
    (one,) = bench.feed("default")
    await wait_until(lambda: bench.settled)
    assert seen == [one, one]


@pytest.mark.parametrize("count", [1, 3])
async def test_a_slot_for_each_that_ends(make: Make, count: int) -> None:
    """Runs that end make exactly their own room."""
    bench = make(size=3)
    fed = bench.feed(*["default"] * 3)
    await wait_until(lambda: len(bench.started) == 3)
    for delivery in fed[:count]:
        bench.go_on[delivery].set()
    await wait_until(lambda: len(bench.settled) == count)
    assert bench.slots.room() == count
