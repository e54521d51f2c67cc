"""Configuration: from arguments, else the environment, else defaults."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from backstage import (
    DEFAULT_QUEUES,
    Backoff,
    Client,
    ConfigError,
    InvalidName,
    RedisConfig,
    TaskRegistry,
    Worker,
    WorkerConfig,
)

VARIABLES = {
    "REDIS_HOST": "db.internal",
    "REDIS_PORT": "6380",
    "REDIS_USERNAME": "app",
    "REDIS_PASSWORD": "s3cret",
    "REDIS_DB": "2",
    "BACKSTAGE_PREFIX": "shop",
    "BACKSTAGE_CONSUMER_GROUP": "shop-workers",
    "BACKSTAGE_WORKER_ID": "worker-7",
    "BACKSTAGE_CONCURRENCY": "16",
}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("REDIS_URL", *VARIABLES):
        monkeypatch.delenv(variable, raising=False)


def test_defaults() -> None:
    """Without a word: Redis on this machine, a hundred jobs at once, five attempts, a lease of 30 s."""
    config = Worker().config
    assert config.address == "redis://localhost:6379/0"
    assert (config.url, config.host, config.port, config.db) == (None, "localhost", 6379, 0)
    assert (config.username, config.password, config.prefix) == (None, None, "backstage")
    assert (config.connect_timeout, config.max_payload) == (5_000, 1_048_576)
    assert (config.consumer_group, config.worker_id, config.queues) == ("backstage-workers", None, DEFAULT_QUEUES)
    assert (config.tasks, config.schedules, config.middleware, config.concurrency) == ((), (), (), 100)
    assert (config.attempts, config.timeout) == (5, None)
    assert config.backoff == Backoff("exponential", 1_000, 60_000, 0.2)
    assert (config.idle_timeout, config.reclaimer_interval, config.block_timeout) == (30_000, 5_000, 5_000)
    assert (config.max_deliveries, config.grace_period, config.delete_on_ack) == (5, 30_000, True)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What isn't given is taken from the environment."""
    for variable, value in VARIABLES.items():
        monkeypatch.setenv(variable, value)
    config = Worker().config
    assert config.address == "redis://app@db.internal:6380/2"
    assert (config.password, config.prefix) == ("s3cret", "shop")
    assert (config.consumer_group, config.worker_id, config.concurrency) == ("shop-workers", "worker-7", 16)
    assert Worker().worker_id == "worker-7"
    assert Client().config.address == "redis://app@db.internal:6380/2"


def test_arguments_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument beats its variable, which isn't even read then."""
    monkeypatch.setenv("BACKSTAGE_CONCURRENCY", "many")
    monkeypatch.setenv("BACKSTAGE_PREFIX", "from-env")
    config = Worker(concurrency=3).config
    assert (config.concurrency, config.prefix) == (3, "from-env")
    with pytest.raises(ConfigError, match="BACKSTAGE_CONCURRENCY='many'"):
        Worker()


@pytest.mark.parametrize(
    ("arguments", "environment", "address"),
    [
        ({}, {"REDIS_URL": "redis://url:1/3", "REDIS_HOST": "host"}, "redis://url:1/3"),
        ({"host": "mine"}, {"REDIS_URL": "redis://url:1/3", "REDIS_PORT": "9"}, "redis://mine:6379/0"),
        ({"db": 5}, {"REDIS_HOST": "host"}, "redis://localhost:6379/5"),
        ({"url": "redis://mine:7"}, {"REDIS_URL": "nonsense", "REDIS_PORT": "nonsense"}, "redis://mine:7/0"),
        ({}, {"REDIS_URL": "", "REDIS_HOST": "host", "REDIS_PORT": ""}, "redis://host:6379/0"),
        ({"url": "unix:///run/redis.sock?db=2"}, {}, "unix:///run/redis.sock?db=2"),
        ({"url": "embedded:///var/lib/app"}, {}, "embedded:///var/lib/app"),
        ({"url": "rediss://user:p%40ss@db:6380/1"}, {}, "rediss://user@db:6380/1"),
    ],
    ids=str,
)
def test_the_address_comes_from_one_place(
    monkeypatch: pytest.MonkeyPatch, arguments: Any, environment: dict[str, str], address: str
) -> None:
    """Arguments if any is part of it, else REDIS_URL, else the other REDIS_*; an empty variable is unset."""
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert Client(**arguments).config.address == address


def test_a_config_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Worker(WorkerConfig(…))` and `Client(RedisConfig(…))` take what is there, and further arguments over it."""
    for variable, value in VARIABLES.items():
        monkeypatch.setenv(variable, value)
    assert Worker(WorkerConfig(port=7)).config.address == "redis://localhost:7/0"
    assert Client(RedisConfig(), prefix="mine").config.prefix == "mine"
    assert WorkerConfig.from_env(port=7).concurrency == 16


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"concurency": 5}, TypeError, "did you mean 'concurrency'"),
        ({"concurrency": 0}, ConfigError, "concurrency=0: must be a whole number, 1 or more"),
        ({"concurrency": 2.5}, ConfigError, "concurrency=2.5"),
        ({"port": 70_000}, ConfigError, "from 1 to 65535"),
        ({"host": "redis://db"}, ConfigError, "for a URL give url="),
        ({"url": "http://db"}, ConfigError, "unknown scheme 'http'; it must look like redis://"),
        ({"url": "redis://db", "host": "db"}, ConfigError, "url and host are both given"),
        ({"prefix": ""}, ConfigError, "1 to 256 printable characters"),
        ({"consumer_group": "a b"}, InvalidName, "consumer_group name 'a b'"),
        ({"worker_id": "ü"}, InvalidName, "worker_id name 'ü'"),
        ({"idle_timeout": 1.5}, TypeError, r"timedelta\(seconds=1.5\)"),
        ({"idle_timeout": 0}, ConfigError, "at least 1 ms"),
        ({"grace_period": -1}, ConfigError, "at least 0 ms"),
        ({"attempts": 0}, ConfigError, "1 or more"),
        ({"backoff": {"type": "linear"}}, ConfigError, "'fixed' or 'exponential'"),
        ({"delete_on_ack": 1}, ConfigError, "must be True or False"),
        ({"tasks": TaskRegistry()}, ConfigError, r"must be a list of TaskRegistry, like \["),
        ({"queues": [3]}, ConfigError, "3 is wrong there"),
        ({"middleware": ["log"]}, ConfigError, "async callables"),
        ({"max_payload": 0}, ConfigError, "1 or more"),
        ({"serializer": object()}, ConfigError, "encode and decoder"),
        ({"schedules": ["* * * * *"]}, ConfigError, "must hold CronTask"),
    ],
    ids=str,
)
def test_what_cannot_be_is_told_at_once(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    """A bad value is an error where the worker is built, which names the setting and what would be right."""
    with pytest.raises(error, match=says):
        Worker(**arguments)
    with pytest.raises(error, match=says):
        WorkerConfig(**arguments)


def test_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Kubernetes puts into REDIS_PORT for a Service named `redis` is recognised and explained."""
    monkeypatch.setenv("REDIS_PORT", "tcp://10.0.0.7:6379")
    with pytest.raises(ConfigError, match=r"REDIS_PORT='tcp://10.0.0.7:6379': Kubernetes sets this"):
        Worker()


def test_durations() -> None:
    """A duration is a timedelta, or an int of milliseconds; it is kept in milliseconds."""
    config = WorkerConfig(idle_timeout=timedelta(minutes=1), grace_period=500, timeout=timedelta(seconds=2))
    assert (config.idle_timeout, config.grace_period, config.timeout) == (60_000, 500, 2_000)


def test_none_means_not_given() -> None:
    """A setting that is None has its default."""
    assert Worker(concurrency=None, url=None, prefix=None, queues=None).config == WorkerConfig()


async def test_configure_before_the_first_connection(url: str, prefix: str) -> None:
    """`configure` changes settings of a worker or client that hasn't connected yet; after that it is an error."""
    worker = Worker(host="nowhere.invalid", concurrency=7)
    client = Client(host="nowhere.invalid")
    for each in (worker, client):
        each.configure(url=url, prefix=prefix)
        assert each.config.url == url
    assert (worker.config.concurrency, worker.config.host) == (7, "localhost")
    async with worker, client:
        await worker.enqueue("t")
        await client.enqueue("t")
        assert await client.redis.xlen(f"{prefix}:default") == 2
        for each in (worker, client):
            with pytest.raises(ConfigError, match="comes too late"):
                each.configure(prefix="other")


def test_configure_adds_tasks() -> None:
    """Registries that `configure` is given are included like those of the constructor."""
    tasks = TaskRegistry()
    worker = Worker()
    worker.configure(tasks=[tasks], concurrency=2)

    @tasks.on("t")
    async def handle() -> None: ...

    assert (list(worker.tasks), worker.config.concurrency) == (["t"], 2)


def test_frozen() -> None:
    """Settings don't change behind one's back; `replace` gives others."""
    config = WorkerConfig(concurrency=2)
    with pytest.raises(AttributeError):
        config.concurrency = 3  # type: ignore[misc]
    assert (config.replace(concurrency=3).concurrency, config.concurrency) == (3, 2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"password": "s3cret"},
        {"url": "redis://user:s3cret@db/0"},
        {"url": "redis://:s3cret@db"},
        {"url": "redis://s3cret@db"},
    ],
    ids=str,
)
async def test_passwords_are_told_nowhere(arguments: Any, caplog: pytest.LogCaptureFixture) -> None:
    """No repr, no error and no line of the log has a password."""
    worker = Worker(**arguments, connect_timeout=1)
    worker.on("t", lambda: None)
    with pytest.raises(Exception) as error:  # noqa: PT011 - whatever it is
        await worker.start(signals=False)
    await worker.aclose()
    told = f"{worker!r} {worker.config!r} {worker.config} {error.value} {caplog.text}"
    assert "s3cret" not in told


def test_a_bad_url_is_not_quoted() -> None:
    """The error about a URL doesn't show it, for its password may be anywhere in it."""
    with pytest.raises(ConfigError) as error:
        Worker(url="redis://user:s3cret#x@db")
    assert "s3cret" not in str(error.value)
