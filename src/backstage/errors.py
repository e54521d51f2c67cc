"""Every error that Backstage raises.

BackstageError
├── ConfigError            (ValueError)      a setting, argument or option that can't be used
├── TaskError              (ValueError)      a task that can't be registered or enqueued
│   ├── DuplicateTask                        two handlers under one name
│   └── TaskNotBound                         `.enqueue` on a task that no client, or more than one, has
├── InvalidName            (ValueError)      a queue, task or group name outside the rule
├── InvalidCronSchedule    (ValueError)      a cron expression or time zone that can't be read
├── PayloadTooLarge        (ValueError)      a payload above `max_payload`
├── NotSerializable        (TypeError)       a payload that JSON can't carry
├── MalformedJob           (ValueError)      bytes on the wire that are no job
├── RedisUnavailable       (ConnectionError) Redis stayed away for longer than `connect_timeout`
│   └── RedisRefused                         Redis is there and says no: memory full, no permission, wrong type
├── SoftTimeout            (CancelledError)  raised inside a handler at its soft limit
└── HardTimeout                              what a dead letter says of a run past its hard limit

Outside the tree, for they are signals: `Retry` and `Discard` (outcome.py), which a handler raises to say what becomes
of its job.
"""

from __future__ import annotations

import asyncio


def quoted(value: object, most: int = 80) -> str:
    """A value in an error: its repr, of bounded length. Its type, where it has none, as an int of 5,000 digits."""
    try:
        text = repr(value)
    except Exception:
        return f"<{type(value).__name__} that can't be shown>"
    return text if len(text) <= most else f"{text[: most - 1]}…"


class BackstageError(Exception):
    """The root: `except BackstageError` catches all that Backstage raises."""


class ConfigError(BackstageError, ValueError):
    """A setting, argument or option that can't be used; the message names it and says what would be right."""


class TaskError(BackstageError, ValueError):
    """A task that can't be registered, or can't be enqueued the way it was tried."""


class DuplicateTask(TaskError):
    """Two handlers were registered under one name; the message tells both places."""


class TaskNotBound(TaskError):
    """`.enqueue` on a task that no worker or client has included, or that several have."""


class InvalidName(BackstageError, ValueError):
    """A queue, task or group name that doesn't match `[A-Za-z0-9][A-Za-z0-9_.-]{0,127}`, or is reserved."""


class InvalidCronSchedule(BackstageError, ValueError):
    """A cron expression or time zone that can't be read; the message quotes it and says what is wrong."""


class PayloadTooLarge(BackstageError, ValueError):
    """A payload whose JSON is longer than `max_payload` bytes; refused before it is sent."""


class NotSerializable(BackstageError, TypeError):
    """A payload that JSON can't carry."""


class MalformedJob(BackstageError, ValueError):
    """An entry or member on the wire that is no job. It ends in the dead letter, as `malformed`."""


class RedisUnavailable(BackstageError, ConnectionError):
    """Redis stayed away for longer than `connect_timeout`. An enqueue that ends so may have arrived all the same."""


class RedisRefused(RedisUnavailable):
    """Redis answered, and refused: its memory is full, a permission is missing, a key has another type."""


class SoftTimeout(BackstageError, asyncio.CancelledError):
    """Raised in a handler at the await where it stands when its soft limit has passed.

    It is a CancelledError too, so that `asyncio.TaskGroup` and `asyncio.timeout` inside the handler wind up as they
    do for any cancellation. A handler may catch it, tidy up and return.
    """


class HardTimeout(BackstageError):
    """The run was cancelled at its hard limit and its job went to the dead letter."""
