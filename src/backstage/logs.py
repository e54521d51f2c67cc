"""The standard logger `backstage`: where its lines go and how they look. The root logger is never touched."""

from __future__ import annotations

import logging
import logging.handlers
import os
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import msgspec

from backstage import shown
from backstage.errors import ConfigError, quoted

JOB_FIELDS = ("id", "task", "queue", "attempt")
"""What every line about a job carries."""

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
"""`sys.exc_info()`, as a record carries it."""

_OURS = "backstage_configured"
"""Marks the handlers that `configure` added, so that it replaces those and no others."""


@dataclass(frozen=True)
class LoggerConfig:
    """How Backstage logs: to stderr, or to a `file` (appended to, reopened after a logrotate), or to a `handler`.

    `json` writes one JSON object a line; `silent` writes nothing. A `handler` that has a formatter keeps it.
    """

    level: str = "INFO"
    _: KW_ONLY
    json: bool = False
    silent: bool = False
    file: str | Path | None = None
    handler: logging.Handler | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.level, str) or self.level.upper() not in _LEVELS:
            raise ConfigError(f"logger level={quoted(self.level)}: must be one of {', '.join(_LEVELS)}")
        object.__setattr__(self, "level", self.level.upper())
        for name in ("json", "silent"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"logger {name}={quoted(getattr(self, name))}: must be True or False")
        if self.file is not None and (not isinstance(self.file, (str, os.PathLike)) or not str(self.file)):
            raise ConfigError(f"logger file={quoted(self.file)}: must be a path")
        if self.handler is not None and not isinstance(self.handler, logging.Handler):
            raise ConfigError(f"logger handler={quoted(self.handler)}: must be a logging.Handler")
        if self.file is not None and self.handler is not None:
            raise ConfigError("logger: give either file or handler, not both")


def job_fields(id: str, task: str, queue: str, attempt: int) -> dict[str, object]:
    """For `extra=` of a line about a job."""
    return {"id": id, "task": task, "queue": queue, "attempt": attempt}


def configure(config: LoggerConfig | logging.Logger) -> logging.Logger:
    """Send the lines of `backstage` where `config` says and nowhere else; called again, it replaces what it did.

    A logger instead of a config gets them all, for its own handlers, by its own level. ConfigError for a file that
    can't be opened.
    """
    logger = logging.getLogger("backstage")
    if isinstance(config, logging.Logger):
        if config is logger or config.name.startswith("backstage."):
            return logger
        level, handler = config.getEffectiveLevel(), _forward(config)
    else:
        level, handler = logging.getLevelNamesMapping()[config.level], _handler(config)
    for old in logger.handlers[:]:
        if getattr(old, _OURS, None) is not None:
            logger.removeHandler(old)
            if getattr(old, _OURS) and old is not handler:
                old.close()
    given = isinstance(config, LoggerConfig) and config.handler is handler
    setattr(handler, _OURS, not given)  # what a caller gave is the caller's to close
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    return logger


def ensure_visible() -> None:
    """INFO to stderr, if nobody has configured logging: neither for `backstage` nor for the root logger."""
    logger = logging.getLogger("backstage")
    if not logger.hasHandlers():
        level = logger.level
        configure(LoggerConfig())
        if level != logging.NOTSET:
            logger.setLevel(level)


def _handler(config: LoggerConfig) -> logging.Handler:
    if config.silent:
        return logging.NullHandler()
    handler: logging.Handler
    if config.handler is not None:
        handler = config.handler
    elif config.file is not None:
        try:
            handler = logging.handlers.WatchedFileHandler(config.file, encoding="utf-8", errors="backslashreplace")
        except (OSError, ValueError) as error:
            raise ConfigError(f"logger file={str(config.file)!r}: can't be opened: {error}") from error
    else:
        handler = logging.StreamHandler()
    if handler.formatter is None:
        handler.setFormatter(JsonFormatter() if config.json else TextFormatter())
    return handler


def _forward(target: logging.Logger) -> logging.Handler:
    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if target.isEnabledFor(record.levelno):
                target.handle(record)

    return Forward()


def _time(record: logging.LogRecord) -> str:
    """UTC, to the millisecond."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """`time LEVEL message id=… task=… queue=… attempt=…`, then a traceback where there is one."""

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802 - the names that logging calls
        return _trace(ei)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        parts = [_time(record), f"{record.levelname:<7}", record.message]
        parts += [f"{name}={_word(getattr(record, name))}" for name in JOB_FIELDS if hasattr(record, name)]
        return " ".join(parts)


def _trace(exc_info: ExcInfo) -> str:
    return shown.trace(exc_info[1]).rstrip("\n") if exc_info[1] is not None else "no error"


def _word(value: object) -> str:
    """A value that stays one word on one line: other SDKs may have written any name."""
    text = str(value)
    return text if text.isprintable() and text and not {" ", '"', "="} & set(text) else ascii(text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the job's fields, and `traceback` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in JOB_FIELDS:
            if hasattr(record, name):
                value = getattr(record, name)
                line[name] = value if isinstance(value, int) else str(value)
        if record.exc_info:
            line["traceback"] = _trace(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        # A lone surrogate in a message must not cost the line.
        safe = {key: value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
                for key, value in line.items()}  # fmt: skip
        return msgspec.json.encode(safe).decode()
