"""Broadcast: one message, handled once by everybody who listens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from backstage import broadcast as module
from backstage.broadcast import Broadcast
from backstage.client import Client
from backstage.config import RedisConfig, WorkerConfig
from backstage.errors import (
    ConfigError,
    DuplicateTask,
    InvalidName,
    NotSerializable,
    PayloadTooLarge,
    RedisRefused,
    RedisUnavailable,
    TaskError,
)
from backstage.service import Attachment, Life
from backstage.task import Run, TaskRegistry
from support.server import Server
from support.waiting import wait_until


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listeners look at the stream every few milliseconds, so that nothing here takes a second."""
    for name in ("BLOCK", "CHECK", "PAUSE"):
        monkeypatch.setattr(module, name, 0.01)


@pytest.fixture(autouse=True)
async def threads_end(nothing_left_running: None) -> AsyncIterator[None]:
    """Plain functions run in threads, whose last step comes a moment after their message is done."""
    yield
    await wait_until(lambda: not any(t.name.startswith("backstage") for t in threading.enumerate()))


@pytest.fixture
def listener(redis: Redis, prefix: str) -> Broadcast:
    return Broadcast(redis=redis, prefix=prefix, worker_id="w-1")


@pytest.fixture
def key(prefix: str) -> str:
    return f"{prefix}:broadcast"


@dataclass
class Change:
    key: str
    depth: int = 1


async def test_everybody_once(redis: Redis, prefix: str, url: str) -> None:
    """Each of three listeners, whatever its source, runs its handler once a message, in the order of sending."""
    heard: dict[str, list[object]] = {"a": [], "b": [], "c": []}
    async with Client(url=url, prefix=prefix) as client, contextlib.AsyncExitStack() as stack:
        listeners = {
            "a": Broadcast(redis=redis, prefix=prefix),
            "b": Broadcast(client=client),
            "c": Broadcast(client=client),
        }
        for name, each in listeners.items():
            each.on("note", heard[name].append)
            await stack.enter_async_context(each.running())
        for n in range(20):
            await Broadcast(client=client).send("note", n)
        await wait_until(lambda: all(len(got) == 20 for got in heard.values()))
    assert [sorted(map(str, got)) for got in heard.values()] == [sorted(map(str, range(20)))] * 3


async def test_entry(redis: Redis, listener: Broadcast, key: str) -> None:
    """`send` writes the three fields of the wire and returns the entry's id; senders need no start."""
    id = await listener.send("cache.invalidate", {"key": "users"})
    ((entry, fields),) = await redis.xrange(key)
    assert entry == id
    assert list(fields) == ["taskName", "payload", "enqueuedAt"]
    assert (fields["taskName"], fields["payload"]) == ("cache.invalidate", '{"key":"users"}')
    assert fields["enqueuedAt"].isdigit()


async def test_other_sdks(redis: Redis, listener: Broadcast, key: str) -> None:
    """An entry as the TypeScript SDK writes it is understood, and decoded to the handler's annotation."""
    heard: list[Change] = []

    @listener.on("cache.invalidate")
    async def invalidate(change: Change) -> None:
        heard.append(change)

    async with listener.running():
        await redis.xadd(
            key, {"taskName": "cache.invalidate", "payload": '{"key":"users"}', "enqueuedAt": "1795491213549"}
        )
        await wait_until(lambda: heard)
    assert heard == [Change("users")]


async def test_no_history(listener: Broadcast) -> None:
    """What was sent before the start is not replayed; neither is what was sent between two runs."""
    heard: list[object] = []
    listener.on("note", heard.append)
    for run in ("first", "second"):
        await listener.send("note", "before")
        async with listener.running():
            await listener.send("note", run)
            await wait_until(lambda run=run: run in heard)
    assert heard == ["first", "second"]


@pytest.mark.parametrize("empty", [True, False])
async def test_initialize_marks_the_end(listener: Broadcast, empty: bool) -> None:
    """What is sent after `initialize` returned is received once it starts, even if it is called again."""
    heard: list[object] = []
    listener.on("note", heard.append)
    if not empty:
        await listener.send("note", "before")
    await listener.initialize()
    await listener.send("note", "marked")
    await listener.initialize()
    async with listener.running():
        await wait_until(lambda: heard)
    assert heard == ["marked"]


@pytest.mark.parametrize("ahead", [0, 3_600_000])
async def test_new_stream(redis: Redis, listener: Broadcast, key: str, ahead: int) -> None:
    """A stream that is deleted and made again is read from its beginning, even with ids below the last one read."""
    heard: list[object] = []
    listener.on("note", heard.append)
    seconds, _ = await redis.time()
    fields: Any = {"taskName": "note", "payload": '"old"', "enqueuedAt": "1"}
    await redis.xadd(key, fields, id=f"{seconds * 1000 + ahead}-7")
    async with listener.running():
        await redis.delete(key)
        await listener.send("note", "new")
        await wait_until(lambda: heard)
        await listener.send("note", "newer")
        await wait_until(lambda: len(heard) == 2)
    assert heard == ["new", "newer"]


async def test_lost_end(redis: Redis, listener: Broadcast, key: str, caplog: pytest.LogCaptureFixture) -> None:
    """A server that came back without its last writes makes nobody handle again what it still has."""
    heard: list[object] = []
    listener.on("note", heard.append)
    await listener.send("note", "history")
    async with listener.running():
        await listener.send("note", 1)
        await wait_until(lambda: 1 in heard)
        dump = await redis.dump(key)
        assert dump is not None
        lost = await listener.send("note", 2)
        await wait_until(lambda: 2 in heard)
        await redis.restore(key, 0, dump, replace=True)
        await wait_until(lambda: "lost its end" in caplog.text)
        ms, seq = lost.split("-")
        await redis.xadd(key, {"taskName": "note", "payload": "3"}, id=f"{ms}-{int(seq) - 1}" if seq != "0" else lost)
        await wait_until(lambda: 3 in heard)
    assert heard == [1, 2, 3]


async def test_trimmed_gap(redis: Redis, listener: Broadcast, key: str, caplog: pytest.LogCaptureFixture) -> None:
    """Messages that were trimmed away before they were read are counted in the log; what is left is handled."""
    heard: list[object] = []
    listener.on("note", heard.append)
    await listener.send("note", "before")
    await listener.initialize()
    for n in range(5):
        await listener.send("note", n)
    await redis.xtrim(key, maxlen=2, approximate=False)
    async with listener.running():
        await wait_until(lambda: len(heard) == 2)
    assert heard == [3, 4]
    assert caplog.text.count("3 messages were trimmed before they were read") == 1


async def test_senders_trim(redis: Redis, listener: Broadcast, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream does not grow without bound."""
    monkeypatch.setattr(module, "KEEP", 50)
    for n in range(400):
        await listener.send("note", n)
    assert await redis.xlen(key) <= 200


async def test_failure(listener: Broadcast, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that fails, in whatever way, is logged with its traceback and not run again; the next one runs."""
    heard: list[str] = []

    @listener.on("bad")
    async def bad(how: str) -> None:
        heard.append(how)
        raise {"error": ValueError, "exit": SystemExit, "cancel": asyncio.CancelledError}[how](f"on purpose: {how}")

    listener.on("good", heard.append)
    async with listener.running():
        for how in ("error", "exit", "cancel"):
            await listener.send("bad", how)
        await listener.send("good", "next")
        await wait_until(lambda: "next" in heard)
        await wait_until(lambda: caplog.text.count("a handler failed") == 3)
    assert sorted(heard) == ["cancel", "error", "exit", "next"]
    assert "ValueError: on purpose: error" in caplog.text
    assert {record.__dict__.get("task") for record in caplog.records if record.levelno == logging.ERROR} == {"bad"}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"payload": "1"}, "has no taskName"),
        ({"taskName": "note"}, "has no payload"),
        ({"taskName": "note", "payload": "{"}, "can't be decoded"),
        ({"taskName": "note", "payload": b"\xff"}, "can't be decoded"),
        ({"taskName": "note", "payload": "[" * 100_000}, "can't be decoded"),
        ({"taskName": "change", "payload": '{"depth":2}'}, "can't be decoded"),
        ({"taskName": b"\xff", "payload": "1"}, "without a handler here"),
        ({"taskName": "unheard.of", "payload": "1"}, "without a handler here"),
    ],
)
async def test_passed_over(
    redis: Redis, listener: Broadcast, key: str, fields: Any, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A malformed message is logged as an error, one of an unknown name at debug level; the next one is handled."""
    caplog.set_level(logging.DEBUG, "backstage")
    heard: list[object] = []
    listener.on("note", heard.append)

    @listener.on("change")
    async def change(change: Change) -> None:
        heard.append(change)

    async with listener.running():
        await redis.xadd(key, fields)
        await listener.send("note", "next")
        await wait_until(lambda: heard)
    assert heard == ["next"]
    (record,) = [record for record in caplog.records if told in record.getMessage()]
    assert record.levelno == (logging.DEBUG if "handler" in told else logging.ERROR)


async def test_slow_handlers(listener: Broadcast, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow handler holds up nobody else, until as many run as may at once."""
    monkeypatch.setattr(module, "AT_ONCE", 3)
    gate, running, most = asyncio.Event(), 0, 0
    heard: list[object] = []

    @listener.on("slow")
    async def slow() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    @listener.on("note")
    async def note(what: str) -> None:
        heard.append(what)

    async with listener.running():
        await listener.send("slow")
        await listener.send("note", "past")
        await wait_until(lambda: heard)
        for _ in range(5):
            await listener.send("slow")
        await wait_until(lambda: running == 3)
        gate.set()
        await wait_until(lambda: running == 0)
        await listener.send("note", "end")
        await wait_until(lambda: len(heard) == 2)
    assert most == 3


async def test_def_in_a_thread(listener: Broadcast) -> None:
    """A plain function runs in a thread, where it may block; StopIteration is a failure like any other."""
    gate, threads = threading.Event(), list[str]()
    heard: list[object] = []

    @listener.on("block")
    def block() -> None:
        threads.append(threading.current_thread().name)
        assert gate.wait(5)
        raise StopIteration

    @listener.on("note")
    async def note(what: object) -> None:
        heard.append(what)

    async with listener.running():
        await listener.send("block")
        await listener.send("note")
        await wait_until(lambda: heard and threads)
        gate.set()
    assert threads[0] != threading.main_thread().name


async def test_grace(redis: Redis, prefix: str) -> None:
    """At a stop, running handlers may end within the grace period; stop() returns at once where none runs."""
    listener, begun, ended = Broadcast(redis=redis, prefix=prefix), asyncio.Event(), list[str]()

    @listener.on("slow")
    async def slow() -> None:
        begun.set()
        await asyncio.sleep(0.05)
        ended.append("slow")

    async with listener.running():
        await listener.send("slow")
        await begun.wait()
    assert ended == ["slow"]


async def test_grace_is_over(listener: Broadcast, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """After the grace period a handler is cancelled, and may tidy up."""
    monkeypatch.setattr(module, "GRACE", 0.02)
    begun, tidied = asyncio.Event(), list[str]()

    @listener.on("slow")
    async def slow() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            tidied.append("slow")

    async with listener.running():
        await listener.send("slow")
        await begun.wait()
    assert tidied == ["slow"]
    assert "the grace period is over" in caplog.text


async def test_prompt_stop(listener: Broadcast, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop doesn't wait for the read to end."""
    monkeypatch.setattr(module, "BLOCK", 60.0)
    loop = asyncio.get_running_loop()
    async with listener.running():
        await asyncio.sleep(0)
        begun = loop.time()
    assert loop.time() - begun < 1


async def test_stop_from_a_handler(listener: Broadcast) -> None:
    """`stop()` in a handler only asks, so that it doesn't wait for itself."""

    @listener.on("stop")
    async def stop() -> None:
        await listener.stop()

    starting = asyncio.create_task(listener.start(signals=False))
    await wait_until(lambda: listener._life is not None and listener._life.ready.is_set())
    await listener.send("stop")
    await asyncio.wait_for(starting, 5)


async def test_redis_away(own_server: Server, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """A listener outlives a restart of Redis that lost everything, and says once that it waits."""
    caplog.set_level(logging.INFO, "backstage")
    heard: list[object] = []
    async with Redis.from_url(own_server.url) as redis:
        listener = Broadcast(redis=redis, prefix=prefix)
        listener.on("note", heard.append)
        async with listener.running():
            await listener.send("note", 1)
            await wait_until(lambda: heard)
            own_server.kill()
            await wait_until(lambda: "waits, trying again" in caplog.text)
            own_server.start()
            await wait_until(lambda: "Redis answers again" in caplog.text)
            await listener.send("note", 2)
            await wait_until(lambda: len(heard) == 2)
    assert heard == [1, 2]
    assert caplog.text.count("waits, trying again") == 1


async def test_lost_reply(own_server: Server, prefix: str) -> None:
    """A send that meets a connection which the server has closed is tried again, and arrives once."""
    async with Redis.from_url(own_server.url) as redis:
        sender = Broadcast(redis=redis, prefix=prefix)
        await sender.send("note", 1)
        with own_server.client() as other:
            other.client_kill_filter(_type="normal", skipme=True)
            await sender.send("note", 2)
            assert other.xlen(f"{prefix}:broadcast") == 2


async def test_no_redis(own_server: Server, prefix: str) -> None:
    """Without Redis, `start` and `initialize` give up after connect_timeout, and `send` says that it wasn't there."""
    own_server.kill()
    async with Client(url=own_server.url, connect_timeout=timedelta(milliseconds=200)) as client:
        lost = Broadcast(client=client)
        for attempt in (lost.start(signals=False), lost.initialize(), lost.send("note")):
            with pytest.raises(RedisUnavailable):
                await attempt


async def test_wrong_type(redis: Redis, listener: Broadcast, key: str) -> None:
    """A key of another type is refused, to senders and at the start."""
    await redis.set(key, "x")
    for attempt in (listener.start(signals=False), listener.send("note")):
        with pytest.raises(RedisRefused, match="WRONGTYPE"):
            await attempt


async def test_send_refuses(redis: Redis, prefix: str, url: str, key: str) -> None:
    """A bad name or payload is refused before anything is sent."""
    async with Client(url=url, prefix=prefix, max_payload=100) as client:
        sender = Broadcast(client=client)
        for name, payload, error in (
            ("no name", None, InvalidName),
            ("note", "x" * 99, PayloadTooLarge),
            ("note", object(), NotSerializable),
        ):
            with pytest.raises(error):
                await sender.send(name, payload)
        await sender.send("note", "x" * 98)
    assert await redis.xlen(key) == 1


def _run_taker(payload: object, run: Run) -> None: ...


def _two(a: int, b: int) -> None: ...


@pytest.mark.parametrize(
    ("handler", "match"),
    [(_run_taker, "a message has no Run"), (_two, "'b' can't be filled"), (3, "can't be a handler")],
)
def test_handler_rule(listener: Broadcast, handler: Any, match: str) -> None:
    """A handler takes the payload or nothing; anything else is refused when it is registered."""
    with pytest.raises(TaskError, match=match):
        listener.on("note", handler)


def test_registering(listener: Broadcast) -> None:
    """A handler stays what it was; a Task serves too; a second one of a name, or `on` without a name, is refused."""
    tasks = TaskRegistry()

    @listener.on("a")
    def a() -> None: ...

    @tasks.on("b")
    async def b() -> None: ...

    assert listener.on("c", a) is a
    assert listener.on(b, b) is b
    with pytest.raises(DuplicateTask, match=r"test_broadcast\.py:\d+ and at .*test_broadcast\.py:\d+"):
        listener.on("b", a)
    with pytest.raises(TaskError, match=r'write @broadcast.on\("a"\)'):
        listener.on(a)  # type: ignore[call-overload]


class Host(Client):
    """What a broadcast sees of a worker."""

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__(RedisConfig(url=config.url, prefix=config.prefix))
        self._settings = config
        self.attached: list[Attachment] = []

    @property
    def config(self) -> WorkerConfig:
        return self._settings

    def _attach(self, attachment: Attachment, /) -> None:
        self.attached.append(attachment)


@contextlib.asynccontextmanager
async def hosting(host: Host) -> AsyncIterator[Callable[[], None]]:
    ready, life = asyncio.Event(), Life()
    (attached,) = host.attached
    running = asyncio.create_task(attached.run_attached(ready.set, life))
    await ready.wait()
    yield life.stop
    life.stop()
    await asyncio.gather(running, return_exceptions=True)


async def test_attached(url: str, prefix: str) -> None:
    """Attached, it listens while its worker runs, and gives handlers the worker's grace period."""
    begun, ended = asyncio.Event(), list[str]()
    async with Host(WorkerConfig(url=url, prefix=prefix, grace_period=10)) as host:
        listener = Broadcast(worker=host)

        @listener.on("slow")
        async def slow() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("slow")

        async with hosting(host):
            await listener.send("slow")
            await begun.wait()
        assert ended == ["slow"]
        with pytest.raises(ConfigError, match="starts and stops with its worker"):
            await listener.start(signals=False)


async def test_attached_in_a_hurry(url: str, prefix: str) -> None:
    """A worker in a hurry ends the handlers, whatever the grace period."""
    begun, ended = asyncio.Event(), list[str]()
    async with Host(WorkerConfig(url=url, prefix=prefix)) as host:
        listener = Broadcast(worker=host)

        @listener.on("slow")
        async def slow() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("slow")

        async with hosting(host) as stop:
            await listener.send("slow")
            await begun.wait()
            stop()  # and once more at the end of the block: that is the hurry
    assert ended == ["slow"]


@pytest.mark.parametrize("sources", [(), ("client", "redis"), ("worker", "client")])
def test_one_source(sources: tuple[str, ...]) -> None:
    """Exactly one source, else an error that names them."""
    given: dict[str, Any] = {"client": Client(), "redis": Redis(), "worker": Client()}
    with pytest.raises(ConfigError, match="exactly one of worker=, client= and redis="):
        Broadcast(**{name: given[name] for name in sources})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"worker": Client()}, "must be a Worker; for a Client give client="),
        ({"worker": 3}, "must be a Worker or a Client"),
        ({"client": "redis://"}, "must be a Worker or a Client"),
        ({"redis": 3}, r"must be a redis\.asyncio\.Redis"),
        ({"client": Client(), "prefix": "p"}, "go with redis="),
        ({"client": Client(), "worker_id": "w"}, "go with redis="),
    ],
)
def test_wrong_source(options: dict[str, Any], match: str) -> None:
    """A source of another kind is refused, and told apart."""
    with pytest.raises(ConfigError, match=match):
        Broadcast(**options)
