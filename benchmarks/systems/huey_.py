"""huey."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from contract import TASK, URL, Meter, Payload, main
from huey import RedisHuey


class Sender:
    def __init__(self, task: Any) -> None:
        self._task = task

    async def one(self, payload: Payload) -> object:
        return self._task(payload)


class Huey:
    """https://huey.readthedocs.io/: `results=False` keeps no results; its Redis storage blocks for the next job, as it
    does by default. It has no bulk enqueue. Jobs run in threads; what a worker has popped is lost if it dies.
    """

    modes = ("one",)

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[Sender]:
        yield Sender(named(huey(), lambda payload: None))

    def work(self, meter: Meter, concurrency: int) -> None:
        made = huey()
        named(made, meter.sync_handler())
        made.create_consumer(workers=concurrency, worker_type="thread", periodic=False).run()


def named(made: RedisHuey, handler: Callable[[Payload], None]) -> Any:
    """The task, under the same name here and there: huey takes the function's module into it."""

    def task(payload: Payload) -> None:
        handler(payload)

    return made.task(name=TASK)(task)


def huey() -> RedisHuey:
    return RedisHuey("bench", url=f"{URL}?max_connections={2000}", results=False)


if __name__ == "__main__":
    main(Huey())
