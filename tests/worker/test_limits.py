"""Limits: one timer for all runs; a soft limit interrupts, a hard one expires."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from backstage.errors import SoftTimeout
from backstage.job import Delivery
from backstage.worker.limits import Interruptible, Limits
from support.waiting import wait_until


def entry(n: int = 1) -> Delivery:
    return Delivery("default", f"{n}-0".encode(), [])


class Bench:
    def __init__(self) -> None:
        self.expired: list[Delivery] = []
        self.limits = Limits(self.expired.append)

    async def run(
        self, handler: Callable[[], Awaitable[object]], soft: int | None, hard: int | None = None, stopped: bool = False
    ) -> object:
        """As the executor does it."""
        delivery = entry()

        async def call() -> object:
            return await handler()

        async def within() -> object:
            watch = self.limits.begin(delivery, soft, hard)
            try:
                return await Interruptible(call(), watch, lambda: stopped)
            finally:
                self.limits.end(delivery)

        return await asyncio.create_task(within())


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    made.limits.close()


async def test_in_time(bench: Bench) -> None:
    """What ends in time gives its result, or its error."""

    async def handler() -> int:
        await asyncio.sleep(0)
        return 7

    async def failing() -> int:
        await asyncio.sleep(0)
        raise LookupError("mine")

    assert await bench.run(handler, 60_000) == 7
    with pytest.raises(LookupError, match="mine"):
        await bench.run(failing, 60_000)


async def test_soft(bench: Bench) -> None:
    """At the limit the await where the handler stands raises SoftTimeout, once."""
    raised: list[str] = []

    async def handler() -> str:
        try:
            await asyncio.sleep(60)
        except SoftTimeout as limit:
            raised.append(str(limit))
        await asyncio.sleep(0.03)  # it isn't interrupted again
        return "tidied up"

    assert await bench.run(handler, 10) == "tidied up"
    assert raised == ["ran longer than its soft limit of 10 ms"]


async def test_the_task_is_not_left_cancelled(bench: Bench) -> None:
    """After a SoftTimeout nothing is left of the cancellation: `asyncio.timeout` works in the clean-up."""

    async def handler() -> str:
        with contextlib.suppress(SoftTimeout):
            await asyncio.sleep(60)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        except TimeoutError:
            return "timed out by itself"
        return ""

    assert await bench.run(handler, 10) == "timed out by itself"


async def test_a_cancellation_from_elsewhere(bench: Bench) -> None:
    """Is handed through as what it is."""
    begun = asyncio.Event()

    async def handler() -> None:
        begun.set()
        await asyncio.sleep(60)

    running = asyncio.create_task(bench.run(handler, 60_000))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await running
    assert not isinstance(cancelled.value, SoftTimeout)


async def test_soft_while_the_worker_stops(bench: Bench) -> None:
    """A run that the worker cancelled is cancelled, though its soft limit passed at the same moment."""

    async def handler() -> None:
        await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError) as cancelled:
        await bench.run(handler, 5, stopped=True)
    assert not isinstance(cancelled.value, SoftTimeout)


async def test_hard(bench: Bench) -> None:
    """At the hard limit `expire` is called, once; what it does with the run is its business."""
    delivery = entry()
    bench.limits.begin(delivery, None, 10)
    await wait_until(lambda: bench.expired == [delivery])
    bench.limits.end(delivery)


async def test_in_any_order(bench: Bench) -> None:
    """One timer serves all, whichever limit comes first."""
    late, early, middle = entry(1), entry(2), entry(3)
    bench.limits.begin(late, None, 60)
    bench.limits.begin(early, None, 10)
    bench.limits.begin(middle, None, 30)
    await wait_until(lambda: len(bench.expired) == 3)
    assert bench.expired == [early, middle, late]


async def test_ended(bench: Bench) -> None:
    """What has ended is watched no more; to end it twice is harmless."""
    ended, other = entry(1), entry(2)
    bench.limits.begin(ended, None, 5)
    bench.limits.begin(other, None, 10)
    bench.limits.end(ended)
    bench.limits.end(ended)
    await wait_until(lambda: bench.expired)
    assert bench.expired == [other]


async def test_overdue(bench: Bench) -> None:
    """Tells, to the thread that renews leases, which runs nothing could end at their hard limit."""
    delivery = entry()
    bench.limits.begin(delivery, None, 1)
    assert not bench.limits.overdue(delivery, 60)
    begun = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() < begun + 0.01:
        pass  # the loop is blocked: the limit can't act
    assert bench.limits.overdue(delivery, 0.001)
    assert not bench.limits.overdue(entry(2), 0)


async def test_closed() -> None:
    """After `close` nothing fires."""
    bench = Bench()
    bench.limits.begin(entry(), None, 5)
    bench.limits.close()
    await asyncio.sleep(0.02)
    assert bench.expired == []
