"""Signals: a worker finishes what it can in its grace period, hands over the rest, and ends with status 0."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from scene import Keyspace, Settings

from backstage import Client, Worker
from support.process import Process
from support.server import Server
from support.waiting import wait_until

GONE = 3.0
"""Seconds within which the process has ended, too: what it held runs elsewhere by then, and Python takes its time."""

SOURCE = """
@worker.on("long")
async def long():
    say("start")
    await asyncio.sleep(30)

@worker.on("short")
async def short(seconds):
    say("start")
    await asyncio.sleep(seconds)
    say("end")

@worker.on("stubborn")
async def stubborn():
    say("start")
    while True:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            say("swallowed")

@worker.on("hangs")
def hangs():
    say("start")
    time.sleep(30)

@worker.on("executor")
async def executor():
    say("start")
    await asyncio.to_thread(time.sleep, 30)
"""


@pytest.fixture
def standby(settings: Settings) -> Callable[[str], object]:
    """Another worker, which notes when it starts a job of that task."""

    @asynccontextmanager
    async def run(task: str) -> AsyncIterator[list[float]]:
        other, started = Worker(**settings), list[float]()
        other.on(task, lambda _payload=None: started.append(time.monotonic()))
        async with other.running():
            yield started

    return run


async def hand_over(
    task: str,
    signals: list[signal.Signals],
    grace: int,
    settings: Settings,
    client: Client,
    standby: Callable[[str], object],
) -> tuple[float, float]:
    """Seconds from the last signal until the job starts on the other worker, and until the process has ended."""
    with Process.worker(SOURCE, **settings, grace_period=grace) as worker:
        await worker.consuming()
        await client.enqueue(task)
        await worker.said("start")
        async with standby(task) as started:
            for at, number in enumerate(signals):
                if at:
                    await worker.logged(" stops")
                asked = time.monotonic()
                worker.signal(number)
            assert await worker.ended() == 0
            gone = time.monotonic()
            await wait_until(lambda: started)
        await asyncio.sleep(0)
    assert len(started) == 1
    return started[0] - asked, gone - asked


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=lambda number: number.name)
async def test_a_job_longer_than_the_grace_is_handed_over(
    number: signal.Signals, settings: Settings, client: Client, keyspace: Keyspace, standby: Callable[[str], object]
) -> None:
    """It starts on the other worker within a second after the grace period; the exit status is 0."""
    started, gone = await hand_over("long", [number], 500, settings, client, standby)
    assert 0.49 <= started < 1.5, "a loop's clock may be some milliseconds behind"
    assert gone < GONE
    assert await keyspace.settled()


async def test_a_second_signal_ends_the_grace_at_once(
    settings: Settings, client: Client, standby: Callable[[str], object]
) -> None:
    """With thirty seconds of grace, the job starts elsewhere within a second after the second SIGTERM."""
    started, gone = await hand_over("long", [signal.SIGTERM, signal.SIGTERM], 30_000, settings, client, standby)
    assert started < 1
    assert gone < GONE


async def test_a_job_shorter_than_the_grace_finishes_and_is_not_run_again(
    settings: Settings, client: Client, keyspace: Keyspace, standby: Callable[[str], object]
) -> None:
    """The worker waits for it, settles it, and ends with status 0; it leaves no consumer behind."""
    with Process.worker(SOURCE, **settings, grace_period=5_000, worker_id="leaver") as worker:
        await worker.consuming()
        await client.enqueue("short", 0.7)
        await worker.said("start")
        async with standby("short") as started:
            worker.signal(signal.SIGTERM)
            assert await worker.ended() == 0
            assert len(worker.facts("end")) == 1
            assert await keyspace.settled()
            assert not [name for name in await keyspace.consumers() if name.startswith("leaver~")]
    assert started == []


@pytest.mark.parametrize("task", ["stubborn", "hangs", "executor"])
async def test_a_run_that_does_not_end_when_cancelled_keeps_no_worker_alive(
    task: str, settings: Settings, client: Client, keyspace: Keyspace, standby: Callable[[str], object]
) -> None:
    """Swallowed cancellation, a `def` that hangs, a thread behind an await: handed over, and the process ends."""
    started, gone = await hand_over(task, [signal.SIGTERM], 300, settings, client, standby)
    assert started < 1.3
    assert gone < GONE
    assert await keyspace.settled()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_every_worker_of_a_process_hears_a_signal_and_former_handlers_come_back(
    loop: str, settings: Settings, client: Client, keyspace: Keyspace
) -> None:
    """Two workers in one process both stop; then the handlers are those of before. On either loop."""
    source = f"""
import {loop}
signals = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
for number in signals:
    signal.signal(number, lambda number, frame: say("mine", number))
before = [signal.getsignal(number) for number in signals]
workers = [Worker(**settings, worker_id=f"w{{n}}") for n in (1, 2)]
for worker in workers:
    @worker.on("job")
    async def job(worker=worker):
        say("start")
        await asyncio.sleep(0.3)
        say("end")

async def main():
    await asyncio.gather(*(worker.start() for worker in workers))
    say("stopped", type(asyncio.get_running_loop()).__module__)
    say("restored", before == [signal.getsignal(number) for number in signals])

with asyncio.Runner(loop_factory={loop}.new_event_loop) as runner:
    runner.run(main())
os.kill(os.getpid(), signal.SIGTERM)
"""
    with Process(source, **(settings | {"concurrency": 1})) as process:
        await client.enqueue("job")
        await client.enqueue("job")
        await process.said("start", times=2)
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0
        assert len(process.facts("end")) == 2
        assert process.facts("stopped")[0].words[1].startswith(loop)
        assert process.facts("restored", True)
        assert len(process.facts("mine", signal.SIGTERM.value)) == 1
    assert await keyspace.settled()


async def test_a_worker_stops_while_redis_is_away(own_server: Server) -> None:
    """Idle, in the midst of an outage or before it ever connected: status 0 within two seconds after SIGTERM."""
    knocks: list[float] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        knocks.append(time.monotonic())
        writer.transport.abort()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as nobody:
        nowhere = f"redis://127.0.0.1:{nobody.sockets[0].getsockname()[1]}"
        with (
            Process.worker(SOURCE, url=own_server.url) as idle,
            Process.worker(SOURCE, url=nowhere, connect_timeout=30_000) as early,
        ):
            await idle.consuming()
            await asyncio.to_thread(own_server.kill)
            await idle.logged("can't take jobs")
            await wait_until(lambda: len(knocks) > 1, timeout=10)
            asked = time.monotonic()
            for worker in (idle, early):
                worker.signal(signal.SIGTERM)
            assert [await idle.ended(), await early.ended()] == [0, 0]
            assert time.monotonic() - asked < 2
