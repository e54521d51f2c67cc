"""What is given as an argument is taken, or refused with an error of ours that says what was wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from backstage import (
    Backoff,
    Client,
    CronTask,
    Dedupe,
    Job,
    LoggerConfig,
    Next,
    Queue,
    Retry,
    Stream,
    TaskRegistry,
    Worker,
)
from backstage.config import RedisConfig, WorkerConfig
from backstage.connection import Connector
from backstage.durations import to_ms, until
from backstage.errors import BackstageError
from backstage.keys import Keys
from backstage.queue import check_name
from fuzz.evil import TEXTS, VALUES, refuses_or_takes, texts, values
from support import profiles

Take = Callable[[Any], Any]


def registered(**options: Any) -> object:
    """A task with these options."""
    return TaskRegistry().on("t", **options)(lambda: None)


TAKES: dict[str, Take] = {
    "task name": Job,
    "queue name": Queue,
    "group name": lambda v: WorkerConfig(consumer_group=v),
    "worker id": lambda v: WorkerConfig(worker_id=v),
    "prefix": Keys,
    "prefix of a config": lambda v: RedisConfig(prefix=v),
    "schedule name": lambda v: CronTask("* * * * *", "t", name=v),
    "registered name": lambda v: TaskRegistry().on(v)(lambda: None),
    "queue option": lambda v: Job("t", queue=v),
    "priority option": lambda v: Job("t", priority=v),
    "delay": lambda v: Job("t", delay=v),
    "attempts": lambda v: Job("t", attempts=v),
    "timeout": lambda v: Job("t", timeout=v),
    "backoff": lambda v: Job("t", backoff=v),
    "backoff type": lambda v: Backoff(v),
    "backoff delay": lambda v: Backoff("fixed", delay=v),
    "backoff max_delay": lambda v: Backoff("fixed", max_delay=v),
    "backoff jitter": lambda v: Backoff("fixed", jitter=v),
    "dedupe": lambda v: Job("t", dedupe=v),
    "dedupe key": Dedupe,
    "dedupe ttl": lambda v: Dedupe("k", ttl=v),
    "job id": lambda v: Job("t", id=v),
    "next": lambda v: Next(v, queue=v),
    "retry delay": lambda v: Retry("", delay=v),
    "duration": lambda v: to_ms(v, "x"),
    "moment": lambda v: until(v, "when"),
    "cron expression": lambda v: CronTask(v, "t"),
    "time zone": lambda v: CronTask("* * * * *", "t", timezone=v),
    "catch_up": lambda v: CronTask("* * * * *", "t", catch_up=v),
    "queue of a schedule": lambda v: CronTask("* * * * *", "t", v),
    "url": lambda v: RedisConfig(url=v),
    "credentials": lambda v: RedisConfig(username=v, password=v),
    "logger": lambda v: LoggerConfig(level=v, json=v, file=v),
    "consumer of a stream": lambda v: Stream(Redis(), consumer=v),
    "group of a stream": lambda v: Stream(Redis(), v),
    "queues of a stream": lambda v: Stream(Redis(), queues=v),
    "prefix of a stream": lambda v: Stream(Redis(), prefix=v),
    "task limits": lambda v: registered(soft_timeout=v, hard_timeout=v),
    "task attempts": lambda v: registered(attempts=v, max_retries=v),
    **{
        f"setting {name}": lambda v, name=name: WorkerConfig(**{name: v})
        for name in ("host", "port", "db", "connect_timeout", "max_payload", "serializer", "queues", "tasks",
                     "schedules", "concurrency", "attempts", "backoff", "timeout", "idle_timeout", "reclaimer_interval",
                     "block_timeout", "max_deliveries", "grace_period", "delete_on_ack", "middleware")
    },
}  # fmt: skip


@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
def test_every_argument(take: Take) -> None:
    """By hand and by chance; what was taken can be shown, briefly."""

    @profiles.examples(40)
    @given(values)
    def chance(value: Any) -> None:
        refuses_or_takes(lambda: take(value))

    for value in VALUES:
        taken = refuses_or_takes(lambda value=value: take(value))
        if not isinstance(taken, BackstageError):
            repr(taken)
    chance()


@profiles.examples(300)
@given(texts)
def test_a_name_that_was_taken_is_harmless(text: str) -> None:
    """It is of the characters that the rule names: none that Redis, a log or a shell would read as something else."""
    taken = refuses_or_takes(lambda: check_name(text, "task"))
    if not isinstance(taken, BackstageError):
        assert taken.isascii()
        assert not set(taken) & set(" :{}*~/\\\r\n\0")


parts = st.one_of(
    st.sampled_from(["*", "*/5", "1-5", "1,2", "MON", "L", "?", "#", "1#2", "5L", "0-59/7", "60", "-1", "*/0", "1-",
                     ",", "1/2/3", "JAN", "7", "W", "٣", "²", "9" * 900, "31", "30", "2", "29", "1," * 400 + "1",
                     "@daily"]),
    st.text("0123456789*/,-#LW?abc@ ", max_size=12),
)  # fmt: skip


@profiles.examples(300)
@given(
    st.one_of(st.lists(parts, min_size=4, max_size=6).map(" ".join), texts), st.sampled_from(["UTC", "Europe/Berlin"])
)
def test_cron_expressions(text: str, zone: str) -> None:
    """Refused at once, or good for its next runs; neither takes long."""
    begun = time.monotonic()
    task = refuses_or_takes(lambda: CronTask(text, "t", timezone=zone))
    if not isinstance(task, BackstageError):
        first = task.next_run(datetime(2026, 2, 28, 12, tzinfo=UTC))
        assert refuses_or_takes(lambda: task.next_run(first))
        refuses_or_takes(lambda: task.next_run(datetime.max.replace(tzinfo=UTC)))
        refuses_or_takes(lambda: task.next_run(datetime.min.replace(tzinfo=UTC)))
    assert time.monotonic() - begun < 2


urls = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(["redis://", "rediss://", "unix://", "embedded://", "sentinel://", "cluster://", "http://", "",
                     "redis:"]),
    st.sampled_from(["", "user@", "user:pass@", ":pass@", ":p%40ss@", ":p@ss@", ":p/ss@", ":p#s@", "%ff@", ":%@"]),
    st.one_of(st.sampled_from(["h", "h:1", "h:0", "h:99999", "[::1]", "[::1", "h:x", "h:١", "", "a,b",
                               "h:" + "9" * 5_000]), texts),
    st.sampled_from(["", "/", "/0", "/x", "/1/2", "//", "/" + "9" * 5_000, "/a/b", "/\0"]),
    st.sampled_from(["", "?", "?db=1", "?db=x", "?db=" + "9" * 5_000, "?a", "?a=b", "?socket_timeout=x", "?protocol=9",
                     "?ssl_cert_reqs=x", "?ssl_ca_certs=/nowhere", "#x", "?max_connections=x", "?decode_responses=1"]),
)  # fmt: skip


@profiles.examples(400)
@given(st.one_of(urls, texts))
def test_urls(url: str) -> None:
    """Refused at once; or it can be shown, without the password, and is as good as any other to the client."""
    config = refuses_or_takes(lambda: RedisConfig(url=url))
    if isinstance(config, BackstageError):
        assert "pass" not in str(config).replace("redis://user:password@host", "").replace("password", "")
        return
    assert "pass" not in repr(config)
    if not url.startswith("embedded:"):
        refuses_or_takes(Connector(config).client)


VARIABLES = ["REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_DB", "BACKSTAGE_PREFIX", "BACKSTAGE_CONCURRENCY",
             "BACKSTAGE_WORKER_ID", "BACKSTAGE_CONSUMER_GROUP"]  # fmt: skip


@pytest.mark.parametrize("variable", VARIABLES)
def test_environment(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for arguments; the error names the variable."""
    for text in TEXTS:
        if "\0" in text or "\ud800" in text:
            continue  # no environment can hold it
        monkeypatch.setenv(variable, text)
        refused = refuses_or_takes(WorkerConfig.from_env)
        if isinstance(refused, BackstageError):
            assert variable in str(refused)
        else:
            repr(refused)


async def test_payloads(url: str, prefix: str) -> None:
    """Enqueued, or refused before anything is sent; the error tells no payload."""
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    async with Client(url=url, prefix=prefix, max_payload=1_000) as client:
        for payload in [*VALUES, {1: {2: object()}}, [[b"\xff"]], nested]:
            refused = ""
            try:
                await client.enqueue("t", payload)
            except BackstageError as exc:
                refused = str(exc)
            assert len(refused) < 500
    while nested:  # taken apart from the outside, for its own end would recurse
        nested = nested[0]


async def test_a_worker_says_no_before_it_starts(url: str, prefix: str) -> None:
    """Every setting is checked when it is given: nothing is left to fail later."""
    worker = Worker(url=url, prefix=prefix)
    for value in VALUES:
        refuses_or_takes(lambda value=value: worker.on("t", queue=value))
        refuses_or_takes(lambda value=value: worker.configure(prefix=value))
        refuses_or_takes(lambda value=value: worker.include(value))
