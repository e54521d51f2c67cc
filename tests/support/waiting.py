"""Waiting for a condition instead of sleeping and hoping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
_POLL = 0.005


async def wait_until(predicate: Callable[[], T | Awaitable[T]], timeout: float = 5.0, message: str = "") -> T:
    """Ask `predicate`, plain or async, until its answer is true, and return that; AssertionError after `timeout` s."""
    deadline = time.monotonic() + timeout
    while True:
        answer = predicate()
        value: T = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(_what(predicate, timeout, message, value))
        await asyncio.sleep(_POLL)


def wait_until_sync(predicate: Callable[[], T], timeout: float = 5.0, message: str = "") -> T:
    """The twin of `wait_until` for tests without an event loop."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(_what(predicate, timeout, message, value))
        time.sleep(_POLL)


def _what(predicate: Callable[[], object], timeout: float, message: str, last: object) -> str:
    name = message or getattr(predicate, "__qualname__", repr(predicate))
    return f"not within {timeout:g} s: {name} (the last answer was {last!r})"
