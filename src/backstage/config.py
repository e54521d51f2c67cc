"""Settings: frozen, checked when built; None means not given.

`from_env` is the only place in the library that reads the environment.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, Protocol, Self, TypedDict, TypeVar, Unpack
from urllib.parse import urlsplit

from backstage.address import check_url, several, shown, shown_parts, tagged
from backstage.cron import CronTask
from backstage.durations import LONGEST, Duration, to_ms
from backstage.errors import ConfigError, quoted
from backstage.job import AnyBackoff, Backoff, to_attempts, to_backoff
from backstage.keys import check_prefix, numbered
from backstage.logs import LoggerConfig
from backstage.queue import DEFAULT_QUEUES, Queue, check_name, ordered
from backstage.retry import DEFAULT_ATTEMPTS, DEFAULT_BACKOFF
from backstage.serializer import JsonSerializer, Serializer
from backstage.task import Middleware, TaskRegistry

__all__ = ["LoggerConfig", "RedisConfig", "RedisOptions", "WorkerConfig", "WorkerOptions"]

T = TypeVar("T")


class Credentials(Protocol):
    """What gives a login at each connecting: a redis.CredentialProvider. Answers (username, password) or (password,).

    The lease thread of a worker asks the first, everything else the second.
    """

    def get_credentials(self) -> tuple[str] | tuple[str, str]: ...
    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]: ...


class RedisOptions(TypedDict, total=False):
    """What a Client takes. The address is either `url`, or host, port, username, password, db."""

    url: str | None
    host: str | None
    port: int | None
    username: str | None
    password: str | None
    db: int | None
    credential_provider: Credentials | None
    prefix: str | None
    keyspaces: int | None
    connect_timeout: Duration | None
    max_payload: int | None
    serializer: Serializer | None


class WorkerOptions(RedisOptions, total=False):
    """What a Worker takes."""

    consumer_group: str | None
    worker_id: str | None
    queues: Sequence[Queue | str] | None
    tasks: Sequence[TaskRegistry] | None
    schedules: Sequence[CronTask] | None
    concurrency: int | None
    attempts: int | None
    backoff: AnyBackoff | None
    timeout: Duration | None
    idle_timeout: Duration | None
    reclaimer_interval: Duration | None
    block_timeout: Duration | None
    max_deliveries: int | None
    grace_period: Duration | None
    delete_on_ack: bool | None
    middleware: Sequence[Middleware] | None


class _UnknownOption(ConfigError, TypeError):
    """An option of a name that doesn't exist: caught as ConfigError and as TypeError."""


def _setting(default: T, check: Callable[[Any, str], T], env: str | None = None) -> T:
    """A field: `check(value, name)` answers the value as it is kept, or raises an error that says `name`."""
    setting: T = field(default=default, metadata={"check": check, "env": env})
    return setting


def _whole(low: int, high: int = LONGEST) -> Callable[[Any, str], int]:
    def check(value: Any, name: str) -> int:
        if type(value) is not int or not low <= value <= high:
            bounds = f"{low} or more" if high == LONGEST else f"from {low} to {high}"
            raise ConfigError(f"{name}={quoted(value)}: must be a whole number, {bounds}")
        return value

    return check


def _port(value: Any, name: str) -> int:
    if isinstance(value, str) and value.startswith("tcp://"):
        raise ConfigError(
            f"{name}={value!r}: Kubernetes sets this for a Service named `redis`, and it is no port number; set "
            f"REDIS_URL, or {name} yourself, or `enableServiceLinks: false` in the pod"
        )
    return _whole(1, 65535)(value, name)


def _duration(minimum: int) -> Callable[[Any, str], int]:
    return lambda value, name: to_ms(value, name, minimum=minimum)


def _optional_duration(value: Any, name: str) -> int | None:
    return None if value is None else to_ms(value, name, minimum=1)


def _host(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not value or set(value) & set(" /@?#"):
        hint = "; for a URL give url=" if isinstance(value, str) and "/" in value else ""
        raise ConfigError(f"{name}: must be a host name or an IP address{hint}")  # not shown: it may be a whole URL
    return value


def _secret(value: Any, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{name}: must be text")
    return value


def _group(value: Any, name: str) -> str:
    return check_name(value, name)


def _worker_id(value: Any, name: str) -> str | None:
    return None if value is None else check_name(value, name)


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={quoted(value)}: must be True or False")
    return value


def _listed(value: Any, name: str, of: str, fits: Callable[[Any], bool]) -> tuple[Any, ...]:
    if fits(value) or isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        hint = f", like [{quoted(value)}]" if fits(value) else ""
        raise ConfigError(f"{name}={quoted(value)}: must be a list of {of}{hint}")
    items = tuple(value)
    for item in items:
        if not fits(item):
            raise ConfigError(f"{name}: {quoted(item)} is wrong there, it must hold {of}")
    return items


def _queues(value: Any, name: str) -> tuple[Queue, ...]:
    return ordered(_listed(value, name, "queues or their names", lambda item: isinstance(item, (Queue, str))))


def _tasks(value: Any, name: str) -> tuple[TaskRegistry, ...]:
    return _listed(value, name, "TaskRegistry", lambda item: isinstance(item, TaskRegistry))


def _middleware(value: Any, name: str) -> tuple[Middleware, ...]:
    return _listed(value, name, "middleware (async callables)", callable)


def _schedules(value: Any, name: str) -> tuple[CronTask, ...]:
    schedules: tuple[CronTask, ...] = _listed(value, name, "CronTask", lambda item: isinstance(item, CronTask))
    names = [schedule.name for schedule in schedules]
    twice = next((each for each in names if names.count(each) > 1), None)
    if twice is not None:
        raise ConfigError(f"{name}: two are named {twice!r}; give one of them another name=")
    return schedules


def _serializer(value: Any, name: str) -> Serializer:
    if not all(callable(getattr(value, method, None)) for method in ("encode", "decoder")):
        raise ConfigError(f"{name}={quoted(value)}: must have the methods of backstage.Serializer, encode and decoder")
    serializer: Serializer = value
    return serializer


def _credential_provider(value: Any, name: str) -> Credentials:
    if not all(callable(getattr(value, method, None)) for method in ("get_credentials", "get_credentials_async")):
        raise ConfigError(f"{name}: must be a redis.CredentialProvider")  # not shown: its repr may hold a password
    provider: Credentials = value
    return provider


_JSON: Serializer = JsonSerializer()

_ADDRESS: tuple[str, ...] = ("url", "host", "port", "username", "password", "db")
_UNSHOWN = (*_ADDRESS, "credential_provider")


@dataclass(frozen=True, init=False, repr=False)
class RedisConfig:
    """Where Redis is, and what a producer needs. Durations are kept in milliseconds, `max_payload` is in bytes of JSON.

    An enqueue, or a worker at its start, gives up with RedisUnavailable after `connect_timeout`. No password is in the
    repr or in an error. ConfigError, at once, for whatever can't be right.
    """

    url: str | None = _setting(None, check_url, "REDIS_URL")
    host: str = _setting("localhost", _host, "REDIS_HOST")
    port: int = _setting(6379, _port, "REDIS_PORT")
    username: str | None = _setting(None, _secret, "REDIS_USERNAME")
    password: str | None = _setting(None, _secret, "REDIS_PASSWORD")
    db: int = _setting(0, _whole(0), "REDIS_DB")
    credential_provider: Credentials | None = _setting(None, _credential_provider)  # noqa: RUF009 - as below
    prefix: str = _setting("backstage", check_prefix, "BACKSTAGE_PREFIX")
    keyspaces: int = _setting(1, _whole(1, 256), "BACKSTAGE_KEYSPACES")
    connect_timeout: int = _setting(5_000, _duration(1))
    max_payload: int = _setting(1024 * 1024, _whole(1))
    serializer: Serializer = _setting(_JSON, _serializer)  # noqa: RUF009 - a Field, made once

    def __init__(self, **options: Unpack[RedisOptions]) -> None:
        self._set(options)

    @classmethod
    def from_env(cls, **overrides: Unpack[RedisOptions]) -> Self:
        """Arguments, else the environment, else the default; a variable that an argument overrides isn't even read.

        The address comes from one place: the arguments if any of them is part of it, else `REDIS_URL`, else the other
        `REDIS_*`. An empty variable counts as unset.
        """
        return cls._with_env(overrides)

    def replace(self, **overrides: Unpack[RedisOptions]) -> Self:
        """The same with some settings changed; a `url` replaces host, port and the like, and they replace it."""
        return self._with(overrides)

    @property
    def address(self) -> str:
        """For people, without password: `redis://localhost:6379/0`, `unix:///run/redis.sock`, `embedded:///folder`."""
        if self.url is None:
            return shown_parts("redis", self.username, self.host, self.port, self.db)
        return shown(self.url)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The prefix of each keyspace: `prefix` itself, or with several `{backstage:0}`, `{backstage:1}` and so on."""
        if self.keyspaces == 1:
            return (self.prefix,)
        return tuple(numbered(self.prefix, n) for n in range(self.keyspaces))

    def __repr__(self) -> str:
        changed = [
            f"{each.name}={value!r}"
            for each in fields(self)
            if each.name not in _UNSHOWN and (value := getattr(self, each.name)) != each.default
        ]
        return f"{type(self).__name__}({', '.join([repr(self.address), *changed])})"

    def _set(self, options: Mapping[str, Any]) -> None:
        settings = self._settings(options)
        for name, setting in settings.items():
            value = options.get(name)
            value = setting.default if value is None else setting.metadata["check"](value, name)
            object.__setattr__(self, name, value)
        if self.url is not None:
            _one_address([name for name in _ADDRESS if getattr(self, name) != settings[name].default])
        _check_together(self)

    @classmethod
    def _with_env(cls, overrides: Mapping[str, Any]) -> Self:
        settings = cls._settings(overrides)
        values = {name: value for name, value in overrides.items() if value is not None}
        _one_address([name for name in _ADDRESS if name in values])
        passed_over = _ADDRESS[1:] if os.environ.get("REDIS_URL") else ()
        if any(name in values for name in _ADDRESS):
            passed_over = _ADDRESS
        elif "credential_provider" in values:
            passed_over = (*passed_over, "username", "password")
        for name, setting in settings.items():
            variable = setting.metadata["env"]
            if variable is None or name in values or name in passed_over:
                continue
            if text := os.environ.get(variable):
                number = type(setting.default) is int and re.fullmatch(r"[0-9]{1,18}", text, re.ASCII)
                values[name] = setting.metadata["check"](int(text) if number else text, variable)
        return cls(**values)

    def _with(self, overrides: Mapping[str, Any]) -> Self:
        settings = self._settings(overrides)
        new = {name: value for name, value in overrides.items() if value is not None}
        address = [name for name in _ADDRESS if name in new]
        _one_address(address)
        moved = bool(address) and ("url" in address or self.url is not None)
        kept = {name: getattr(self, name) for name in settings if not (moved and name in _ADDRESS)}
        return type(self)(**{**kept, **new})

    @classmethod
    def _settings(cls, options: Mapping[str, Any]) -> dict[str, Field[Any]]:
        """The fields by name; ConfigError if there is an option of another name."""
        settings = {each.name: each for each in fields(cls)}
        for name in options:
            if name not in settings:
                like = difflib.get_close_matches(name, settings, n=1)
                hint = f"did you mean {like[0]!r}?" if like else f"known are {', '.join(settings)}"
                raise _UnknownOption(f"unknown option {quoted(name)}: {hint}")
        return settings


def _one_address(given: Sequence[str]) -> None:
    if "url" in given and len(given) > 1:
        raise ConfigError(f"url and {', '.join(given[1:])} are both given: the address is either a url or its parts")


def _check_together(config: RedisConfig) -> None:
    """What no setting can tell by itself."""
    url = config.url or ""
    if config.credential_provider is not None:
        if url.startswith("embedded:"):
            raise ConfigError("credential_provider: an embedded server needs no login")
        if config.username is not None or config.password is not None or "@" in urlsplit(url).netloc:
            raise ConfigError("credential_provider: it gives username and password, so neither may be given besides")
    found = several(url) if url else None
    if not tagged(config.prefix):
        hint = f"give it a hash tag, like prefix={'{' + config.prefix.strip('{}') + '}'!r}"
        if config.keyspaces > 1:
            raise ConfigError(
                f"prefix={config.prefix!r}: with keyspaces={config.keyspaces} each has its number in it; {hint}"
            )
        if found is not None and found.kind == "cluster":
            raise ConfigError(f"prefix={config.prefix!r}: in a cluster all keys must be in one slot; {hint}")
    check_prefix(config.prefixes[-1])  # the longest


@dataclass(frozen=True, init=False, repr=False)
class WorkerConfig(RedisConfig):
    """All settings of a worker. Durations are kept in milliseconds.

    `idle_timeout` is the lease: a job whose worker hasn't renewed it for so long is run by another one.
    `max_deliveries` bounds how often a job may be handed out without a finish, which is to say, kill its worker.
    `attempts`, `backoff` and `timeout` hold where neither job, task nor queue says otherwise.
    """

    consumer_group: str = _setting("backstage-workers", _group, "BACKSTAGE_CONSUMER_GROUP")
    worker_id: str | None = _setting(None, _worker_id, "BACKSTAGE_WORKER_ID")
    queues: tuple[Queue, ...] = _setting(DEFAULT_QUEUES, _queues)
    tasks: tuple[TaskRegistry, ...] = _setting((), _tasks)
    schedules: tuple[CronTask, ...] = _setting((), _schedules)
    concurrency: int = _setting(100, _whole(1), "BACKSTAGE_CONCURRENCY")
    attempts: int = _setting(DEFAULT_ATTEMPTS, to_attempts)
    backoff: Backoff = _setting(DEFAULT_BACKOFF, lambda value, name: to_backoff(value))  # noqa: RUF009 - as above
    timeout: int | None = _setting(None, _optional_duration)
    idle_timeout: int = _setting(30_000, _duration(1))
    reclaimer_interval: int = _setting(5_000, _duration(1))
    block_timeout: int = _setting(5_000, _duration(1))
    max_deliveries: int = _setting(5, _whole(1))
    grace_period: int = _setting(30_000, _duration(0))
    delete_on_ack: bool = _setting(True, _flag)
    middleware: tuple[Middleware, ...] = _setting((), _middleware)

    def __init__(self, **options: Unpack[WorkerOptions]) -> None:
        self._set(options)

    @classmethod
    def from_env(cls, **overrides: Unpack[WorkerOptions]) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        return cls._with_env(overrides)

    def replace(self, **overrides: Unpack[WorkerOptions]) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._with(overrides)

    @property
    def identity(self) -> str:
        """`worker_id`, or this host and process: asked anew each time, for a fork is another worker."""
        if self.worker_id is not None:
            return self.worker_id
        host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname(), flags=re.ASCII).lstrip("_.-")
        return f"{host[:100] or 'worker'}-{os.getpid()}"
