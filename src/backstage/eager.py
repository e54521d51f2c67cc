"""Tasks that start at once where Python can (3.12): one that never waits then costs no trip through the loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")

EAGER = sys.version_info >= (3, 12)

if sys.version_info >= (3, 12):

    def start(
        coro: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop, name: str, context: Context | None = None
    ) -> asyncio.Task[T]:
        """A task for `coro`, which may be done already."""
        return asyncio.Task(coro, loop=loop, name=name, context=context, eager_start=True)

else:

    def start(
        coro: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop, name: str, context: Context | None = None
    ) -> asyncio.Task[T]:
        """A task for `coro`, which starts with the loop's next turn."""
        return asyncio.Task(coro, loop=loop, name=name, context=context)
