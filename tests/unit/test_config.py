import os
import pickle
from datetime import timedelta
from typing import Any

import pytest

from backstage.config import RedisConfig, WorkerConfig
from backstage.cron import CronTask
from backstage.errors import ConfigError, InvalidName
from backstage.job import Backoff
from backstage.queue import DEFAULT_QUEUES, NAME, Queue
from backstage.retry import DEFAULT_BACKOFF
from backstage.serializer import JsonSerializer
from backstage.task import Run, TaskRegistry


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test sets the variables that it means."""
    for name in list(os.environ):
        if name.startswith(("REDIS_", "BACKSTAGE_")):
            monkeypatch.delenv(name)


def test_defaults() -> None:
    """The table of docs/reference: durations in milliseconds."""
    config = WorkerConfig()
    assert {name: getattr(config, name) for name in WorkerConfig.__dataclass_fields__} == {
        "url": None, "host": "localhost", "port": 6379, "username": None, "password": None, "db": 0,
        "credential_provider": None, "prefix": "backstage", "keyspaces": 1,
        "connect_timeout": 5_000, "max_payload": 1_048_576, "serializer": JsonSerializer(),
        "consumer_group": "backstage-workers", "worker_id": None, "queues": DEFAULT_QUEUES, "tasks": (),
        "schedules": (), "concurrency": 100, "attempts": 5, "backoff": DEFAULT_BACKOFF, "timeout": None,
        "idle_timeout": 30_000, "reclaimer_interval": 5_000, "block_timeout": 5_000, "max_deliveries": 5,
        "grace_period": 30_000, "delete_on_ack": True, "middleware": (),
    }  # fmt: skip


def test_given_values_are_kept_in_one_form() -> None:
    """timedelta → ms, names → queues in order, mappings → values, lists → tuples; None is not given."""

    async def middleware(run: Run, call_next: Any) -> object:
        return await call_next()

    tasks = TaskRegistry()
    config = WorkerConfig(
        idle_timeout=timedelta(seconds=1), timeout=timedelta(seconds=2), queues=["emails", "urgent"], tasks=[tasks],
        schedules=[CronTask("@daily", "t")], backoff={"type": "fixed", "maxDelay": 5}, middleware=[middleware],
        concurrency=None, grace_period=0,
    )  # fmt: skip
    assert (config.idle_timeout, config.timeout, config.grace_period, config.concurrency) == (1_000, 2_000, 0, 100)
    assert config.queues == (DEFAULT_QUEUES[0], Queue("emails"))
    assert config.backoff == Backoff("fixed", 1_000, 5)
    assert (config.tasks, config.middleware) == ((tasks,), (middleware,))
    assert isinstance(config.schedules, tuple)


def test_a_config_is_a_value() -> None:
    """Frozen, equal by content, hashable, and it can be sent to another process."""
    config = WorkerConfig(port=7, queues=["a"])
    with pytest.raises(AttributeError):
        config.port = 8  # type: ignore[misc]
    assert config == WorkerConfig(port=7, queues=["a"]) == pickle.loads(pickle.dumps(config))
    assert len({config, WorkerConfig(port=7, queues=["a"])}) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"host": 5}, "^host"),
        ({"host": "redis://h"}, "^host: .*for a URL give url="),
        ({"port": True}, "^port=True"),
        ({"port": "6379"}, "^port='6379'"),
        ({"port": 65_536}, "^port=65536: .*1 to 65535"),
        ({"db": -1}, "^db=-1"),
        ({"username": 5}, "^username: must be text"),
        ({"password": 5}, "^password: must be text$"),
        ({"prefix": ""}, "^prefix=''"),
        ({"connect_timeout": 0}, "^connect_timeout=0"),
        ({"connect_timeout": 1.5}, "^connect_timeout=1.5.*timedelta"),
        ({"max_payload": 0}, "^max_payload=0"),
        ({"serializer": object()}, "^serializer=.*encode and decoder"),
        ({"queues": "emails"}, r"^queues='emails': must be a list.*\['emails'\]"),
        ({"queues": [5]}, "^queues: 5"),
        ({"tasks": TaskRegistry()}, "^tasks=.*must be a list"),
        ({"tasks": [print]}, "^tasks: "),
        ({"schedules": [5]}, "^schedules: 5"),
        ({"schedules": [CronTask("@daily", "t"), CronTask("@hourly", "t")]}, "^schedules: two are named 't'"),
        ({"concurrency": 0}, "^concurrency=0"),
        ({"concurrency": 1.0}, "^concurrency=1.0"),
        ({"attempts": 0}, "^attempts=0"),
        ({"backoff": 5}, "^backoff=5"),
        ({"timeout": 0}, "^timeout=0"),
        ({"idle_timeout": 0}, "^idle_timeout=0"),
        ({"reclaimer_interval": 0}, "^reclaimer_interval=0"),
        ({"block_timeout": 0}, "^block_timeout=0"),
        ({"max_deliveries": 0}, "^max_deliveries=0"),
        ({"grace_period": -1}, "^grace_period=-1"),
        ({"delete_on_ack": 1}, "^delete_on_ack=1"),
        ({"middleware": [5]}, "^middleware: 5"),
        ({"concurency": 5}, "^unknown option 'concurency': did you mean 'concurrency'"),
        ({"blockTimeout": 5}, "did you mean 'block_timeout'"),
        ({"zzz": 5}, "^unknown option 'zzz': known are url, host"),
        ({"url": "redis://h", "host": "other"}, "^url and host are both given"),
    ],
)
def test_bad_settings(options: dict[str, Any], says: str) -> None:
    """Checked at construction, wrong types too: the error names the field and what would be right."""
    for build in (WorkerConfig, WorkerConfig.from_env, WorkerConfig().replace):
        with pytest.raises(ConfigError, match=says):
            build(**options)


@pytest.mark.parametrize("field", ["consumer_group", "worker_id"])
def test_bad_names(field: str) -> None:
    """Names follow the name rule."""
    with pytest.raises(InvalidName, match=f"^{field} name 'a b'"):
        WorkerConfig(**{field: "a b"})  # type: ignore[arg-type]


def test_unknown_option_is_a_type_error_too() -> None:
    """As for any function; a worker's options are unknown to a client."""
    with pytest.raises(TypeError, match="unknown option 'concurrency'"):
        RedisConfig(concurrency=5)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", "redis://h:6379/0"),
        ("redis://", "redis://localhost:6379/0"),
        ("redis://:secret@h:1/2", "redis://h:1/2"),
        ("redis://secret@h", "redis://h:6379/0"),  # a password where the user name belongs
        ("rediss://user:secret@h:6380/1", "rediss://user@h:6380/1"),
        ("redis://[::1]:7?db=3&password=secret", "redis://[::1]:7/3"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("unix://user:secret@/run/redis.sock?db=2", "unix:///run/redis.sock?db=2"),
        ("embedded:///folder", "embedded:///folder"),
        ("sentinel://a,b:7/jobs", "sentinel://a:26379,b:7/jobs/0"),
        ("sentinels://user:secret@[::1],[::2]:7/jobs/3", "sentinels://user@[::1]:26379,[::2]:7/jobs/3"),
        ("sentinel://secret@a/jobs?sentinel_password=secret", "sentinel://a:26379/jobs/0"),
    ],
)
def test_url(url: str, address: str) -> None:
    """The address is for people: no password in it, wherever the URL had one, nor in the repr."""
    config = WorkerConfig(url=url)
    assert (config.url, config.address) == (url, address)
    assert "secret" not in repr(config)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("secret", "no scheme"),
        ("http://:secret@h", "unknown scheme 'http'"),
        ("REDIS://h", "unknown scheme 'REDIS'"),
        ("redis://:se/secret@h", "can't be read"),
        ("redis://:12/secret@h", "number of a database"),
        ("redis://:se#secret@h", "contains a #"),
        ("redis://:se?secret@h", "can't be read"),
        ("redis://:secret@h:port", "can't be read"),
        ("redis://h:99999", "can't be read"),
        ("redis://h:0", "1 to 65535"),
        ("redis://[::1", "can't be read"),
        ("redis://h/secret", "number of a database"),
        ("redis://h?db=secret", "db= must be a number"),
        (" redis://h", "space"),
        ("redis://h\n", "control character"),
        ("unix://run/redis.sock", "three slashes"),
        ("embedded://folder", "three slashes"),
        ("sentinel://a,b", "name of the master"),
        ("sentinel://a/jobs/secret", "name of the master"),
        ("sentinel://a/jo%0abs", "name of the master"),
        ("sentinel://a/jobs?db=1", "behind the master's name"),
        ("sentinel://a,,b/jobs", "can't be read"),
        ("sentinel://:secret@a:70000/jobs", "can't be read"),
        ("cluster://a:0,b", "can't be read"),
        ("cluster://a,b:secret", "can't be read"),
        ("cluster://a,b/1", "no databases"),
        ("cluster://", "can't be read"),
        ("", "no scheme"),
        (b"redis://h", "must be text"),
    ],
)
def test_bad_url(url: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what is wrong and quotes no part of it: a password that isn't encoded may be anywhere."""
    with pytest.raises(ConfigError, match=f"^url: .*{says}") as caught:
        RedisConfig(url=url)
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None
    if url and isinstance(url, str):
        monkeypatch.setenv("REDIS_URL", url)
        with pytest.raises(ConfigError, match=f"^REDIS_URL: .*{says}"):
            RedisConfig.from_env()


def test_a_cluster_needs_a_hash_tag() -> None:
    """All keys of a keyspace are in one slot, or no script could run: checked at construction, and at each change."""
    config = RedisConfig(url="cluster://u:secret@a,b:7", prefix="{jobs}:x")
    assert config.address == "cluster://u@a:6379,b:7"
    for prefix in ("jobs", "{}jobs{x}", "jobs}{", "{jobs"):
        with pytest.raises(ConfigError, match=r"^prefix=.*hash tag, like prefix='\{.+\}'"):
            config.replace(prefix=prefix)
    with pytest.raises(ConfigError, match=r"prefix='\{backstage\}'"):
        RedisConfig(url="cluster://a")


class Provider:
    """Credentials whose repr tells them."""

    def get_credentials(self) -> tuple[str, str]:
        return "user", "secret"

    async def get_credentials_async(self) -> tuple[str, str]:
        return "user", "secret"

    def __repr__(self) -> str:
        return "secret"


def test_a_credential_provider_is_the_only_login(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes with every address but an embedded one, is never shown, and excludes another login, as it would win."""
    provider = Provider()
    for config in (
        RedisConfig(credential_provider=provider),
        RedisConfig(url="redis://h", credential_provider=provider),
    ):
        assert config.credential_provider is provider
        assert "secret" not in repr(config)
    other: dict[str, Any]
    for other in ({"password": "x"}, {"username": "x"}, {"url": "redis://u:secret@h"}, {"url": "embedded:///folder"}):
        with pytest.raises(ConfigError, match=r"^credential_provider: ") as caught:
            RedisConfig(credential_provider=provider, **other)
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"^credential_provider: must be a redis\.CredentialProvider$"):
        RedisConfig(credential_provider="secret")  # type: ignore[arg-type]
    monkeypatch.setenv("REDIS_PASSWORD", "unread")
    monkeypatch.setenv("REDIS_HOST", "h")
    assert RedisConfig.from_env(credential_provider=provider).address == "redis://h:6379/0"


def test_no_password_in_a_repr() -> None:
    """The repr shows the address and what isn't the default."""
    config = WorkerConfig(username="user", password="secret", host="h", concurrency=5)
    assert repr(config) == "WorkerConfig('redis://user@h:6379/0', concurrency=5)"


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable, and none at construction without from_env."""
    variables = {
        "REDIS_HOST": "h", "REDIS_PORT": "7", "REDIS_USERNAME": "u", "REDIS_PASSWORD": "123", "REDIS_DB": "2",
        "BACKSTAGE_PREFIX": "{p}", "BACKSTAGE_CONSUMER_GROUP": "g", "BACKSTAGE_WORKER_ID": "w",
        "BACKSTAGE_CONCURRENCY": "9",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = WorkerConfig.from_env()
    assert (config.address, config.password, config.prefix) == ("redis://u@h:7/2", "123", "{p}")
    assert (config.consumer_group, config.worker_id, config.concurrency) == ("g", "w", 9)
    assert RedisConfig.from_env().address == config.address
    assert WorkerConfig() == WorkerConfig(host="localhost")


def test_arguments_beat_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is overridden isn't even read; an empty variable is unset; None is not given."""
    monkeypatch.setenv("BACKSTAGE_CONCURRENCY", "many")
    monkeypatch.setenv("BACKSTAGE_PREFIX", "")
    assert WorkerConfig.from_env(concurrency=3).concurrency == 3
    assert WorkerConfig.from_env(concurrency=3).prefix == "backstage"
    monkeypatch.setenv("BACKSTAGE_CONCURRENCY", "4")
    assert WorkerConfig.from_env(concurrency=None).concurrency == 4


def test_the_address_comes_from_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments if any is part of it, else REDIS_URL, else the other variables; never a mixture."""
    monkeypatch.setenv("REDIS_HOST", "env")
    monkeypatch.setenv("REDIS_PORT", "tcp://10.0.0.1:6379")
    monkeypatch.setenv("REDIS_PASSWORD", "secret")
    monkeypatch.setenv("REDIS_URL", "redis://url:1")
    assert RedisConfig.from_env().address == "redis://url:1/0"
    monkeypatch.setenv("REDIS_URL", "nonsense")
    by_argument = RedisConfig.from_env(db=3)
    assert (by_argument.address, by_argument.password) == ("redis://localhost:6379/3", None)
    assert RedisConfig.from_env(url="redis://argument").address == "redis://argument:6379/0"
    monkeypatch.delenv("REDIS_URL")
    monkeypatch.setenv("REDIS_PORT", "8")
    assert RedisConfig.from_env(url=None).address == "redis://env:8/0"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("REDIS_PORT", "x", "^REDIS_PORT='x': .*1 to 65535"),
        ("REDIS_PORT", "70000", "^REDIS_PORT=70000"),
        ("REDIS_PORT", "tcp://10.0.0.1:6379", "^REDIS_PORT=.*Kubernetes.*REDIS_URL"),
        ("REDIS_DB", "-1", "^REDIS_DB='-1'"),
        ("REDIS_HOST", "redis://h", "^REDIS_HOST"),
        ("BACKSTAGE_CONCURRENCY", "0", "^BACKSTAGE_CONCURRENCY=0"),
        ("BACKSTAGE_CONCURRENCY", "1.5", "^BACKSTAGE_CONCURRENCY='1.5'"),
        ("BACKSTAGE_PREFIX", "a\n", "^BACKSTAGE_PREFIX"),
        ("BACKSTAGE_WORKER_ID", "a b", "^BACKSTAGE_WORKER_ID"),
        ("BACKSTAGE_CONSUMER_GROUP", "a b", "^BACKSTAGE_CONSUMER_GROUP"),
    ],
)
def test_bad_variables(variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=says):
        WorkerConfig.from_env()


def test_replace() -> None:
    """A new config, checked; a url and its parts replace each other."""
    config = WorkerConfig(host="h", port=7, password="secret", concurrency=5)
    assert config.replace(port=8).address == "redis://h:8/0"
    moved = config.replace(url="redis://other")
    assert (moved.address, moved.password, moved.concurrency) == ("redis://other:6379/0", None, 5)
    assert moved.replace(host="back").address == "redis://back:6379/0"
    assert moved.replace(concurrency=6).address == moved.address
    assert config.replace() == config.replace(port=None) == config


def test_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """The id that was given, or host and process, within the name rule whatever the host is called."""
    assert WorkerConfig(worker_id="w").identity == "w"
    for hostname in ("box", "_my host.é", "", "x" * 300):
        monkeypatch.setattr("socket.gethostname", lambda name=hostname: name)
        identity = WorkerConfig().identity
        assert NAME.fullmatch(identity)
        assert identity.endswith(f"-{os.getpid()}")


def test_identity_is_not_frozen_across_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that holds its parent's config is another worker."""
    config = WorkerConfig()
    parent = config.identity
    monkeypatch.setattr("os.getpid", lambda: 999_999)
    assert config.identity != parent
