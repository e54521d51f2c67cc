"""Running: a worker's life, from the first connection to the last."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from redis.asyncio import Redis

from backstage import Client, ConfigError, RedisUnavailable, TaskRegistry, Worker
from support.waiting import wait_until

SRC = Path(__file__).parents[2] / "src"


async def test_running(worker: Worker, client: Client) -> None:
    """`async with worker.running()` works in the background: it consumes when the block begins, and not after it."""
    handled: list[int] = []
    worker.on("n", handled.append)
    async with worker.running() as same:
        assert same is worker
        await client.enqueue("n", 1)
        await wait_until(lambda: handled == [1])
    await client.enqueue("n", 2)
    assert await worker.redis.xlen(f"{worker.config.prefix}:default") == 1
    assert handled == [1]


async def test_start_and_stop(worker: Worker) -> None:
    """`start` runs until `stop`, which waits for the end; stopping twice, or what doesn't run, is harmless."""
    handled: list[int] = []
    worker.on("n", handled.append)
    await worker.stop()
    running = asyncio.create_task(worker.start())
    await worker.enqueue("n", 1)
    await wait_until(lambda: handled == [1])
    await asyncio.gather(worker.stop(), worker.stop())
    assert running.done()
    await running
    await worker.stop()


async def test_stopped_by_a_handler(worker: Worker) -> None:
    """Called from a handler `stop` only asks, for it would wait for itself; the handler ends first."""
    seen: list[str] = []

    @worker.on("last")
    async def last() -> None:
        await worker.stop()
        await asyncio.sleep(0.01)
        seen.append("finished")

    running = asyncio.create_task(worker.start())
    await worker.enqueue("last")
    await running
    assert seen == ["finished"]
    assert await worker.redis.xlen(f"{worker.config.prefix}:default") == 0


async def test_cancelled(worker: Worker) -> None:
    """Cancelling `start` takes the same road: what runs is finished, and then it is cancelled."""
    seen: list[str] = []
    begun, go_on = asyncio.Event(), asyncio.Event()

    @worker.on("slow")
    async def slow() -> None:
        begun.set()
        await go_on.wait()
        seen.append("finished")

    running = asyncio.create_task(worker.start())
    await worker.enqueue("slow")
    await begun.wait()
    running.cancel()
    await asyncio.sleep(0)
    assert not running.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert seen == ["finished"]


async def test_again(worker: Worker) -> None:
    """A worker that has stopped may be started again; one that runs may not."""
    handled: list[int] = []
    worker.on("n", handled.append)
    for n in range(3):
        async with worker.running():
            with pytest.raises(ConfigError, match="running already"):
                await worker.start()
            await worker.enqueue("n", n)
            await wait_until(lambda n=n: handled == [*range(n + 1)])


def test_in_another_loop(url: str, prefix: str) -> None:
    """One worker object survives a new event loop."""
    handled: list[int] = []
    worker = Worker(url=url, prefix=prefix)
    worker.on("n", handled.append)

    async def once(n: int) -> None:
        async with worker.running():
            await worker.enqueue("n", n)
            await wait_until(lambda: n in handled)

    asyncio.run(once(1))
    asyncio.run(once(2))
    assert handled == [1, 2]


async def test_two_in_one_process(url: str, prefix: str) -> None:
    """Several workers may run in one process and loop; each job is run by one of them."""
    handled: list[tuple[str, int]] = []
    workers = [Worker(url=url, prefix=prefix, worker_id=name, concurrency=2) for name in ("a", "b")]
    for worker in workers:
        worker.on("n", lambda n, name=worker.worker_id: handled.append((name, n)))
    async with workers[0].running(), workers[1].running():
        for n in range(50):
            await workers[0].enqueue("n", n)
        await wait_until(lambda: len(handled) == 50)
    assert sorted(n for _, n in handled) == list(range(50))


async def test_an_error_at_the_start(prefix: str) -> None:
    """Where no Redis answers, a worker gives up after `connect_timeout` with an error that names the address."""
    worker = Worker(host="127.0.0.1", port=1, prefix=prefix, connect_timeout=50)
    worker.on("n", _nothing)
    with pytest.raises(RedisUnavailable, match=r"no Redis at redis://127\.0\.0\.1:1/0"):
        async with worker.running():
            pass
    with pytest.raises(RedisUnavailable):
        await worker.start()
    await worker.aclose()


async def test_an_error_in_the_block(worker: Worker) -> None:
    """An error inside `running()` stops the worker, and is raised as it is."""
    worker.on("n", _nothing)
    with pytest.raises(LookupError, match="mine"):
        async with worker.running():
            raise LookupError("mine")
    await worker.stop()


async def test_concurrency(url: str, prefix: str) -> None:
    """At most `concurrency` jobs run at once, and as many do where there is work."""
    running, most = 0, 0
    go_on = asyncio.Event()
    worker = Worker(url=url, prefix=prefix, concurrency=3)

    @worker.on("t")
    async def handle() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go_on.wait()
        running -= 1

    async with worker.running():
        for _ in range(10):
            await handle.enqueue()
        await wait_until(lambda: running == 3)
        go_on.set()
        await wait_until(lambda: running == 0)
    assert most == 3


async def test_what_waits_here_is_left_to_others(url: str, prefix: str) -> None:
    """A worker whose slots are full of long jobs holds nothing that another one could start."""
    busy = Worker(url=url, prefix=prefix, concurrency=1, worker_id="busy")
    free = Worker(url=url, prefix=prefix, concurrency=10, worker_id="free")
    go_on = asyncio.Event()
    seen: list[str] = []

    def register(worker: Worker) -> None:
        @worker.on("t")
        async def handle(n: int) -> None:
            seen.append(worker.worker_id)
            if worker is busy:
                await go_on.wait()

    register(busy)
    register(free)
    async with busy.running():
        for n in range(8):
            await busy.enqueue("t", n)
        await wait_until(lambda: seen == ["busy"])
        async with free.running():
            await wait_until(lambda: len(seen) == 8)
        go_on.set()
    assert seen.count("busy") == 1


async def test_a_context_for_each_job(worker: Worker) -> None:
    """Each job has an asyncio task of its own; one that a handler starts and forgets harms no other job."""
    tasks: list[asyncio.Task[object] | None] = []

    @worker.on("t")
    async def handle() -> None:
        tasks.append(asyncio.current_task())
        await asyncio.sleep(0)

    async with worker.running():
        await handle.enqueue()
        await handle.enqueue()
        await wait_until(lambda: len(tasks) == 2)
    assert tasks[0] is not tasks[1]


async def test_worker_id(url: str, prefix: str, redis: Redis) -> None:
    """`worker_id` is the configured one, or host and pid; it is the consumer's name before its `~`."""
    assert Worker().worker_id.endswith(f"-{os.getpid()}")
    worker = Worker(url=url, prefix=prefix, worker_id="mailer-1")
    worker.on("n", _nothing)
    async with worker.running():
        assert worker.worker_id == "mailer-1"
        await worker.enqueue("n", 1)

        async def consumers() -> list[str]:
            return [each["name"] for each in await redis.xinfo_consumers(f"{prefix}:default", "backstage-workers")]

        (name,) = await wait_until(consumers)
        assert name.startswith("mailer-1~")
        assert await redis.zcard(f"{prefix}:workers") == 1
    assert await redis.zcard(f"{prefix}:workers") == 0
    assert await consumers() == []


async def test_redis_for_ones_own_use(worker: Worker) -> None:
    """`worker.redis` is a redis-py client of the same server."""
    worker.on("n", _nothing)
    async with worker.running():
        assert await worker.redis.ping()
        assert isinstance(worker.redis, Redis)


async def test_consumer_group(url: str, prefix: str, redis: Redis) -> None:
    """`consumer_group` names the group; a second one on a queue makes a worker that deletes refuse to start."""
    first = Worker(url=url, prefix=prefix, consumer_group="mailers")
    first.on("n", _nothing)
    async with first.running():
        groups = await redis.xinfo_groups(f"{prefix}:default")
    assert [group["name"] for group in groups] == ["mailers"]
    second = Worker(url=url, prefix=prefix)
    second.on("n", _nothing)
    with pytest.raises(ConfigError, match=r"has 2 consumer groups.*delete_on_ack=False"):
        async with second.running():
            pass
    kept = Worker(url=url, prefix=prefix, consumer_group="mailers", delete_on_ack=False)
    kept.on("n", _nothing)
    async with kept.running():
        pass


def test_without_the_main_thread(url: str, prefix: str) -> None:
    """In another thread a worker runs as well; it leaves the signals alone."""
    handled: list[int] = []
    worker = Worker(url=url, prefix=prefix)
    worker.on("n", handled.append)
    before = signal.getsignal(signal.SIGTERM)

    async def main() -> None:
        starting = asyncio.create_task(worker.start())
        await worker.enqueue("n", 1)
        await wait_until(lambda: handled == [1])
        await worker.stop()
        await starting
        await worker.aclose()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    thread.join(10)
    assert handled == [1]
    assert signal.getsignal(signal.SIGTERM) is before


PROGRAM = """
import sys
from backstage import Worker

worker = Worker(url=sys.argv[1], prefix=sys.argv[2])

@worker.on("hello")
async def hello(name: str) -> None:
    print(f"hello {name}", flush=True)

worker.run()
print("bye", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=lambda s: s.name)
def test_run(url: str, prefix: str, number: signal.Signals) -> None:
    """`worker.run()` from sync code runs until a signal, logs INFO to stderr, and returns: exit status 0."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url, prefix],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SRC), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip

    async def greet() -> None:
        async with Client(url=url, prefix=prefix) as client:
            await client.enqueue("hello", "Ada")

    asyncio.run(greet())
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "hello Ada\n"
        process.send_signal(number)
        out, log = process.communicate(timeout=10)
    finally:
        process.kill()
    assert (out, process.returncode) == ("bye\n", 0)
    assert "INFO" in log
    assert "consumes urgent, default, low" in log
    assert "stops" in log


async def test_signals_stop_every_worker(url: str, prefix: str) -> None:
    """A signal reaches every started worker of the process; the handlers of before are restored."""
    before = signal.getsignal(signal.SIGTERM)
    workers = [Worker(url=url, prefix=prefix, tasks=[_registry()]) for _ in range(2)]
    starting = [asyncio.create_task(worker.start()) for worker in workers]
    await wait_until(lambda: all(worker._life and worker._life.ready.is_set() for worker in workers))
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(asyncio.gather(*starting), 5)
    assert signal.getsignal(signal.SIGTERM) is before


async def test_signals_can_be_left_alone(worker: Worker) -> None:
    """`start(signals=False)` takes none, and `running()` neither."""
    before = signal.getsignal(signal.SIGTERM)
    worker.on("n", _nothing)
    starting = asyncio.create_task(worker.start(signals=False))
    await wait_until(lambda: worker._life and worker._life.ready.is_set())
    assert signal.getsignal(signal.SIGTERM) is before
    await worker.stop()
    await starting
    async with worker.running():
        assert signal.getsignal(signal.SIGTERM) is before


async def _nothing(payload: object) -> None: ...


def _registry() -> TaskRegistry:
    tasks = TaskRegistry()
    tasks.on("n", _nothing)
    return tasks


def test_nothing_is_opened_by_constructing() -> None:
    """A worker can be built where no Redis is: at import, in a test, before a fork."""
    worker = Worker(host="127.0.0.1", port=1)
    worker.on("n", _nothing)
    assert worker._link is None
