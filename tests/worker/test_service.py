"""Service: start, stop, running and run, for whatever runs until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from backstage.errors import ConfigError
from backstage.service import Life, Service, inside, loop_factory
from support.waiting import wait_until


class Sleeper(Service):
    """Gets ready, sleeps until it is stopped, then tidies up."""

    def __init__(self, *, tidy: Callable[[], Awaitable[None]] | None = None, fail: Exception | None = None) -> None:
        self.log: list[str] = []
        self._tidy, self._fail = tidy, fail

    async def _serve(self, life: Life) -> None:
        self.log.append("begins")
        if self._fail is not None:
            raise self._fail
        life.ready.set()
        await life.stopping.wait()
        if self._tidy is not None:
            await self._tidy()
        self.log.append("ends")


async def test_running() -> None:
    """Yields once it works, and is over when the block is."""
    service = Sleeper()
    async with service.running() as same:
        assert same is service
        assert service.log == ["begins"]
    assert service.log == ["begins", "ends"]


async def test_stop_waits() -> None:
    """For the end, whoever and however many call it."""
    gate = asyncio.Event()

    async def tidy() -> None:
        await gate.wait()

    service = Sleeper(tidy=tidy)
    starting = asyncio.create_task(service.start(signals=False))
    await wait_until(lambda: service.log)
    stopping = [asyncio.create_task(service.stop()) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in stopping)
    gate.set()
    await asyncio.gather(*stopping)
    assert service.log == ["begins", "ends"]
    await starting


async def test_stop_inside_only_asks() -> None:
    """In a handler it would wait for itself."""
    service = Sleeper()
    starting = asyncio.create_task(service.start(signals=False))
    await wait_until(lambda: service.log)
    inside.set(True)
    await service.stop()
    assert service.log == ["begins"]
    await starting
    assert service.log == ["begins", "ends"]


async def test_stop_of_what_does_not_run() -> None:
    """Is harmless."""
    await Sleeper().stop()


async def test_twice() -> None:
    """Started while it runs: an error. Started after it has ended: fine."""
    service = Sleeper()
    async with service.running():
        with pytest.raises(ConfigError, match="this Sleeper is running already"):
            await service.start()
        with pytest.raises(ConfigError, match="this Sleeper is running already"):
            async with service.running():
                pass
    async with service.running():
        pass
    assert service.log == ["begins", "ends"] * 2


async def test_an_error_while_it_serves() -> None:
    """Is raised by `start`, and by `running` before its block."""
    service = Sleeper(fail=LookupError("no server"))
    with pytest.raises(LookupError, match="no server"):
        await service.start(signals=False)
    with pytest.raises(LookupError, match="no server"):
        async with service.running():
            service.log.append("in the block")
    assert service.log == ["begins", "begins"]
    await service.stop()


async def test_cancelled() -> None:
    """Cancelling `start` stops in good order, and raises when all is over."""
    service = Sleeper()
    starting = asyncio.create_task(service.start(signals=False))
    await wait_until(lambda: service.log)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert service.log == ["begins", "ends"]


async def test_cancelled_twice() -> None:
    """The second time ends the grace period; it is still in good order."""
    hurried: list[bool] = []

    async def tidy() -> None:
        assert service._life is not None
        await service._life.hurrying.wait()
        hurried.append(True)

    service = Sleeper(tidy=tidy)
    starting = asyncio.create_task(service.start(signals=False))
    await wait_until(lambda: service.log)
    starting.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert hurried == [True]


async def test_an_error_in_the_block() -> None:
    """Stops the service, and is raised as it is."""
    service = Sleeper()
    with pytest.raises(LookupError):
        async with service.running():
            raise LookupError
    assert service.log == ["begins", "ends"]


async def test_cancelled_in_the_block() -> None:
    """Whoever is cancelled inside `running()` still tidies up."""
    service = Sleeper()

    async def work() -> None:
        async with service.running():
            await asyncio.sleep(60)

    working = asyncio.create_task(work())
    await wait_until(lambda: service.log)
    working.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await working
    assert service.log == ["begins", "ends"]


def test_run() -> None:
    """From sync code it runs until it ends, and returns."""

    class Short(Sleeper):
        async def _serve(self, life: Life) -> None:
            asyncio.get_running_loop().call_soon(life.stop)
            await super()._serve(life)

    service = Short()
    service.run()
    assert service.log == ["begins", "ends"]


def test_run_raises() -> None:
    """An error of the service is `run`'s."""
    with pytest.raises(LookupError, match="no server"):
        Sleeper(fail=LookupError("no server")).run()


def test_uvloop_where_it_is() -> None:
    """`run` uses uvloop where that is installed."""
    try:
        import uvloop
    except ImportError:
        assert loop_factory() is None
    else:
        assert loop_factory() is uvloop.new_event_loop
