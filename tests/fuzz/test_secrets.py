"""A password and a payload, each of a word that stands nowhere else: no log, repr, traceback or error has them."""

from __future__ import annotations

import asyncio
import copy
import enum
import io
import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import click.testing
import msgspec
import pytest
import redis

from backstage import Broadcast, Client, CronTask, Inspector, Job, Next, Run, Scheduler, Worker
from backstage.cli import main
from backstage.config import RedisConfig, WorkerConfig
from backstage.errors import BackstageError
from backstage.job import Delivery
from backstage.logs import JsonFormatter, TextFormatter
from backstage.outcome import Again, Dead, Done
from support.server import Server
from support.waiting import wait_until

PASSWORD = "hunter2canary"
PAYLOAD = "4111canary1111"


class Ear(logging.Handler):
    """All that is logged at INFO and above, by anybody, as both formats write it."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.text = io.StringIO()

    def emit(self, record: logging.LogRecord) -> None:
        for formatter in (TextFormatter(), JsonFormatter()):
            self.text.write(formatter.format(record) + "\n")


@pytest.fixture
def heard() -> Iterator[Callable[[], str]]:
    """What the log says so far."""
    ear, loggers = Ear(), [logging.getLogger(name) for name in ("", "backstage", "asyncio")]
    for logger in loggers:
        logger.addHandler(ear)
    level = loggers[1].level
    loggers[1].setLevel(logging.DEBUG)
    yield ear.text.getvalue
    loggers[1].setLevel(level)
    for logger in loggers:
        logger.removeHandler(ear)


def told(call: Callable[[], Any]) -> str:
    """All that an error shows of itself: its text, its repr, its traceback with causes; or the repr of the answer."""
    try:
        return repr(call())
    except Exception as exc:
        return shown(exc)


def shown(exc: BaseException) -> str:
    return "\n".join([str(exc), repr(exc), *traceback.format_exception(exc)])


def clean(text: str) -> None:
    for secret in (PASSWORD, PAYLOAD):
        at = text.find(secret)
        assert at < 0, f"a secret is told: …{text[max(0, at - 300) : at + 50]}…"


BAD_URLS = [
    f"redis://:{PASSWORD}@localhost:6379/0", f"redis://user:{PASSWORD}@localhost:x", f"redis://:{PASSWORD}@[::1",
    f"redis://:{PASSWORD}/x@localhost", f"redis://:{PASSWORD}#x@localhost", f"redis://:{PASSWORD}@localhost/x",
    f"redis://{PASSWORD}@localhost", f"redis://localhost:{PASSWORD}", f"redis://localhost/{PASSWORD}", f"{PASSWORD}",
    f"redis:{PASSWORD}", f"redis://a b:{PASSWORD}@h", f"http://:{PASSWORD}@h", f"redis://h?password={PASSWORD}&db=x",
    f"redis://h?password={PASSWORD}", f"redis://h?socket_timeout={PASSWORD}", f"rediss://:{PASSWORD}@h?ssl_cert_reqs=x",
    f"unix://:{PASSWORD}@/tmp/s", f"unix://{PASSWORD}/tmp/s", f"embedded://:{PASSWORD}@/tmp/s", f"sentinel://:{PASSWORD}@h/m",
    f"sentinel://:{PASSWORD}@h", f"cluster://:{PASSWORD}@a,b", f"cluster://:{PASSWORD}@a,b/7", f"redis://:{PASSWORD}%zz@h:0",
]  # fmt: skip


@pytest.mark.parametrize("url", BAD_URLS)
def test_urls(url: str, heard: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a password stands in one, right or wrong: neither the error nor what is made of it shows it."""
    monkeypatch.setenv("REDIS_URL", url)
    for make in (RedisConfig.from_env, WorkerConfig.from_env, Client, Worker, partial(Scheduler, schedules=[])):
        clean(told(make))
    clean(told(lambda: RedisConfig(url=url).address))
    clean(told(lambda: RedisConfig(url=url).replace(db=3)))
    clean(told(lambda: RedisConfig(url=url, host="h")))
    clean(told(lambda: RedisConfig(url=url).replace(prefix=7)))  # type: ignore[arg-type]
    if not url.startswith("embedded:"):
        result = click.testing.CliRunner().invoke(main, ["info"], prog_name="backstage")
        clean(result.output)
    clean(heard())


def test_parts_of_an_address() -> None:
    """Given as options of their own."""
    secret: Any
    for secret in (PASSWORD, [PASSWORD], PASSWORD.encode()):
        for name in ("password", "username", "host"):
            if name != "username":
                clean(told(lambda name=name, secret=secret: WorkerConfig(**{name: secret}, port=0)))
                clean(told(lambda name=name, secret=secret: WorkerConfig(**{name: secret}, url="redis://h")))
        clean(told(lambda secret=secret: Worker(password=secret)))
    clean(told(lambda: RedisConfig(host=f"redis://:{PASSWORD}@h")))


async def test_a_server_that_refuses_or_is_away(own_server: Server, prefix: str, heard: Callable[[], str]) -> None:
    """A wrong password, none at all, nobody there: of producers, workers, schedulers, broadcasts and inspectors."""
    with own_server.client() as admin:
        admin.config_set("requirepass", "right")
    port = own_server.port
    for url in (
        f"redis://:{PASSWORD}@127.0.0.1:{port}",
        f"redis://{PASSWORD}:{PASSWORD}@127.0.0.1:{port}",
        f"redis://:{PASSWORD}@127.0.0.1:1",
    ):
        for make in (Client, Worker, partial(Scheduler, schedules=[CronTask("* * * * *", "t", args=PAYLOAD)])):
            subject: Any = make(url=url, prefix=prefix, connect_timeout=200)
            with pytest.raises(BackstageError) as refused:
                async with (
                    subject if isinstance(subject, Client) and not isinstance(subject, Worker) else subject.running()
                ):
                    await subject.enqueue("t", PAYLOAD)
            clean(shown(refused.value))
            clean(repr(subject))
        async with Client(url=url, prefix=prefix, connect_timeout=200) as client:
            for ask in (
                lambda c=client: Inspector(c).queues(),
                lambda c=client: Broadcast(client=c).send("m", PAYLOAD),
            ):
                with pytest.raises(BackstageError) as refused:
                    await ask()
                clean(shown(refused.value))
    clean(heard())
    with redis.Redis(unix_socket_path=own_server.socket, password="right") as admin:
        admin.config_set("requirepass", "")


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Card:
    number: int


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    x: int


class Cat(msgspec.Struct, tag="cat"):
    x: int


class Dog(msgspec.Struct, tag="dog"):
    x: int


TYPES: dict[str, tuple[Any, object]] = {
    "enum": (Colour, PAYLOAD), "literal": (Literal["a"], PAYLOAD), "number": (int, PAYLOAD),
    "dataclass": (Card, PAYLOAD), "field": (Card, {"number": PAYLOAD}), "tag": (Cat | Dog, {"type": PAYLOAD}),
    "unknown field": (Strict, {"x": 1, PAYLOAD: 1}), "enum in a list": (list[Colour], [PAYLOAD]),
    "enum in a dict": (dict[str, Colour], {PAYLOAD: PAYLOAD}), "mapping": (dict[int, int], {PAYLOAD: 1}),
    "quotes": (Colour, f"' - at `$` {PAYLOAD}\n{PAYLOAD}"),
}  # fmt: skip


async def test_a_workers_life(url: str, prefix: str, redis: Any, heard: Callable[[], str]) -> None:
    """Payloads that don't fit, runs that fail, time out, are discarded, block the loop, never end: none is told."""
    worker = Worker(url=url, prefix=prefix, attempts=2, backoff={"type": "fixed", "delay": 1}, grace_period=0)
    broadcast = Broadcast(worker=worker)
    for at, (kind, _) in enumerate(TYPES.values()):

        def handler(payload: Any) -> None: ...

        handler.__annotations__ = {"payload": kind}
        worker.on(f"typed-{at}")(handler)
        broadcast.on(f"typed-{at}")(copy.copy(handler))

    @worker.on("fails")
    async def fails(payload: Any, run: Run) -> None:
        clean(repr(run))
        raise ValueError("failed")

    @worker.on("late", soft_timeout=20)
    async def late(payload: Any) -> None:
        await asyncio.sleep(5)

    @worker.on("hard", hard_timeout=20)
    async def hard(payload: Any) -> None:
        await asyncio.sleep(5)

    @worker.on("next")
    async def following(payload: Any) -> Next:
        return Next("fails", {"f": object(), "p": payload})

    @worker.on("stays")
    async def stays(payload: Any) -> None:
        await asyncio.sleep(30)

    tasks = ["fails", "late", "hard", "next"]
    async with worker.running():
        for at, (_, payload) in enumerate(TYPES.values()):
            await worker.enqueue(f"typed-{at}", payload)
            await broadcast.send(f"typed-{at}", payload)
        for task in [*tasks, "stays", "unknown"]:
            await worker.enqueue(task, PAYLOAD)
        await redis.xadd(f"{prefix}:default", {"taskName": "fails", "payload": PAYLOAD})
        await redis.xadd(f"{prefix}:default", {"taskName": PAYLOAD * 0, "x": PAYLOAD})
        await redis.zadd(f"{prefix}:scheduled", {PAYLOAD: 1})
        expected = len(TYPES) + len(tasks) + 3
        await wait_until(lambda: redis.xlen(f"{prefix}:default:dead-letter"), message="dead")
        await wait_until(lambda: _all(redis, prefix, expected), 10, message="all are dead")
        jobs = await Inspector(worker).dead("default")
        clean(repr(jobs))
        clean("\n".join(job.error + job.traceback for job in jobs))
        clean(repr(asyncio.all_tasks()))
    clean(heard())
    assert "job can't be read" in heard()


async def _all(redis: Any, prefix: str, n: int) -> bool:
    return await redis.xlen(f"{prefix}:default:dead-letter") >= n


async def test_what_a_producer_is_told(url: str, prefix: str, heard: Callable[[], str]) -> None:
    """Payloads that can't be sent, too large ones, mixed-up arguments, a key of the wrong type."""
    async with Client(url=url, prefix=prefix, max_payload=100) as client:
        await client.redis.set(f"{prefix}:wrong", "x")
        calls: list[Callable[[], Any]] = [
            lambda: client.enqueue("t", [PAYLOAD, object()]),
            lambda: client.enqueue("t", {"a": PAYLOAD + "\ud800"}),
            lambda: client.enqueue("t", PAYLOAD * 100),
            lambda: client.enqueue({"number": PAYLOAD}),  # type: ignore[call-overload]
            lambda: client.enqueue("t", PAYLOAD, queue="wrong"),
            lambda: client.enqueue("t", PAYLOAD, queue="no such name"),
            lambda: client.enqueue("t", PAYLOAD, delay=-1),
            lambda: client.enqueue_many([Job("t", PAYLOAD, queue="wrong")]),
            lambda: Broadcast(client=client).send("m", PAYLOAD * 100),
        ]
        for call in calls:
            with pytest.raises(BackstageError) as refused:
                await call()
            clean(shown(refused.value))
    clean(heard())


def test_reprs() -> None:
    """Of everything that carries a payload."""
    job, delivery = Job("t", PAYLOAD), Delivery("default", b"1-1", [b"taskName", b"t", b"payload", PAYLOAD.encode()])
    for value in (
        job, Next("t", PAYLOAD), Run(job), delivery, CronTask("* * * * *", "t", args=PAYLOAD), Done((job,)),
        Again(1), Dead("error"),
        [(delivery, Done((job,)))],
    ):  # fmt: skip
        clean(repr(value) + str(value))
