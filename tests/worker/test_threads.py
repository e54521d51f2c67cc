"""Threads: plain functions beside the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator

import pytest

from backstage.worker.threads import Threads
from support.waiting import wait_until


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads(3)
    yield made
    made.close()


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("backstage job thread")]


async def test_result(threads: Threads) -> None:
    """What the function returns, from another thread than the loop's."""
    assert await threads.run(lambda: 7) == 7
    assert await threads.run(threading.current_thread) is not threading.current_thread()


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()], ids=repr)
async def test_error(threads: Threads, error: BaseException) -> None:
    """Whatever it raises is raised to whoever waits; the thread goes on."""

    def fail() -> None:
        raise error

    future = threads.run(fail)
    await asyncio.wait([future])
    assert future.exception() is error
    assert await threads.run(lambda: 1) == 1
    assert len(ours()) == 1


@pytest.mark.parametrize("error", [StopIteration, GeneratorExit])
async def test_errors_that_no_await_can_carry(threads: Threads, error: Callable[[], BaseException]) -> None:
    """They are told by name."""

    def fail() -> None:
        raise error()

    with pytest.raises(RuntimeError, match=f"handler raised {error.__name__}"):  # type: ignore[attr-defined]
        await threads.run(fail)


async def test_idle_ones_first(threads: Threads) -> None:
    """A thread is started only where none is idle."""
    for _ in range(5):
        await threads.run(lambda: None)
    assert len(ours()) == 1


async def test_at_most_so_many(threads: Threads) -> None:
    """Beyond `size` functions wait for a thread."""
    go_on, begun = threading.Event(), []

    def wait() -> None:
        begun.append(1)
        go_on.wait(5)

    futures = [threads.run(wait) for _ in range(5)]
    await wait_until(lambda: len(begun) == 3)
    assert len(ours()) == 3
    go_on.set()
    await asyncio.gather(*futures)
    assert len(begun) == 5


async def test_context(threads: Threads) -> None:
    """The function sees a copy of the caller's context variables."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    variable.set("mine")

    def read_and_set() -> str:
        seen = variable.get()
        variable.set("its own")
        return seen

    assert await threads.run(read_and_set) == "mine"
    assert variable.get() == "mine"


async def test_close(threads: Threads) -> None:
    """Idle threads end, busy ones when they are done; they are daemons, so none holds up the process."""
    go_on = threading.Event()
    busy = threads.run(lambda: go_on.wait(5))
    await threads.run(lambda: None)
    assert all(thread.daemon for thread in ours())
    threads.close()
    await wait_until(lambda: len(ours()) == 1)
    go_on.set()
    await busy
    await wait_until(lambda: not ours())


async def test_nobody_waits_any_more(threads: Threads) -> None:
    """A cancelled future is left alone when the thread comes back."""
    go_on = threading.Event()
    future = threads.run(lambda: go_on.wait(5))
    future.cancel()
    go_on.set()
    assert await threads.run(lambda: 1) == 1


def test_the_loop_has_gone() -> None:
    """A thread that comes back after its loop was closed ends quietly."""
    go_on = threading.Event()

    async def begin() -> None:
        Threads(1).run(lambda: go_on.wait(5))

    asyncio.run(begin())
    (thread,) = ours()
    go_on.set()
    thread.join(5)
    assert not thread.is_alive()
