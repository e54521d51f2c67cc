"""What asyncio can do from Python 3.12 on, and what stands for it before; plain functions as coroutine functions.

A task that starts at once and never waits costs no trip through the loop. A plain function that returns what is awaited
costs no coroutine.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Never, TypeVar

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

EAGER = sys.version_info >= (3, 12)


async def failing(error: Exception) -> Never:
    """What a plain function returns that is awaited, where it can't do what it is for."""
    raise error


if sys.version_info >= (3, 12):

    def awaited(fn: F) -> F:
        """A plain function that returns something to await: mocks and frameworks are to see a coroutine function."""
        return inspect.markcoroutinefunction(fn)

    def start(
        coro: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop, name: str, context: Context | None = None
    ) -> asyncio.Task[T]:
        """A task for `coro`, which may be done already."""
        return asyncio.Task(coro, loop=loop, name=name, context=context, eager_start=True)

else:

    def awaited(fn: F) -> F:
        """The same by the mark that asyncio itself looked for up to 3.11; there is no public way there."""
        vars(fn)["_is_coroutine"] = vars(asyncio.coroutines)["_is_coroutine"]
        return fn

    def start(
        coro: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop, name: str, context: Context | None = None
    ) -> asyncio.Task[T]:
        """A task for `coro`, which starts with the loop's next turn."""
        return asyncio.Task(coro, loop=loop, name=name, context=context)
