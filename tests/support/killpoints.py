"""Named places between reading a job and having finished it, at which a worker's process kills itself.

`arm(point)` is called in that process before its worker starts. Nothing of it is in the library: it wraps methods.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from backstage import Stream
from backstage.lane import Lane
from backstage.scripts import load
from backstage.worker.executor import Executor
from backstage.worker.finisher import Finisher
from backstage.worker.slots import Slots

_PLACES: dict[str, tuple[type, str]] = {
    "take": (Stream, "take"),
    "start": (Slots, "_start"),
    "execute": (Executor, "execute"),
    "settle": (Finisher, "_settle"),
    "write": (Stream, "settle"),
}

POINTS = (*(f"{place}.{when}" for place in _PLACES for when in ("before", "after")), "write.sent")
"""`write.sent`: the finish has left for the server, and its answer is not awaited."""


def arm(point: str, passes: int = 1) -> None:
    """SIGKILL for this process when it comes by for the `passes`-th time."""
    left = [passes]

    def passed() -> None:
        left[0] -= 1
        if left[0] == 0:
            die()

    place, _, when = point.partition(".")
    if when == "sent":
        _arm_sent(passed)
        return
    owner, name = _PLACES[place]
    method = getattr(owner, name)
    before, after = when == "before", when == "after"

    def returned(result: object) -> None:
        if after and (place != "take" or result):
            passed()

    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def around(*args: Any, **kwargs: Any) -> Any:
            if before:
                passed()
            result = await method(*args, **kwargs)
            returned(result)
            return result

    else:

        @functools.wraps(method)
        def around(*args: Any, **kwargs: Any) -> Any:
            if before:
                passed()
            result = method(*args, **kwargs)
            returned(result)
            return result

    setattr(owner, name, around)


def _arm_sent(passed: Callable[[], None]) -> None:
    exchange, finish = Lane._exchange, load("finish").sha

    async def around(self: Lane, conn: Any, commands: Sequence[Sequence[Any]]) -> list[Any]:
        if commands and commands[0][:2] == ("EVALSHA", finish):
            await conn.send_packed_command(conn.pack_command(*commands[0]), check_health=False)
            passed()
            return [await conn.read_response()]
        return await exchange(self, conn, commands)

    Lane._exchange = around  # type: ignore[method-assign]


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL does not return")
