"""A real worker in this process, for plain functions that throw things at it: hypothesis knows no event loop."""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import redis

from backstage import Backoff, Broadcast, Run, Worker
from backstage.logs import JsonFormatter, TextFormatter
from support.server import Server
from support.waiting import wait_until

SOON = 3.0
"""Seconds within which a good job must be done, whatever came before it: one, and more on a busy machine."""


@dataclass
class Order:
    id: int


class Log(logging.StreamHandler[io.StringIO]):
    """Lines in one format; counts those that could not be written."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__(io.StringIO())
        self.setFormatter(formatter)
        self.failed = 0

    def handleError(self, record: logging.LogRecord) -> None:
        self.failed += 1


class Stage:
    """`worker` runs while the stage is open. Everything is sent by another client, as bytes."""

    def __init__(self, server: Server, prefix: str) -> None:
        self.prefix = prefix
        self.raw = redis.Redis(unix_socket_path=server.socket)
        self.worker = Worker(
            url=server.url, prefix=prefix, attempts=2, backoff=Backoff("fixed", delay=1), concurrency=20
        )
        self.broadcast = Broadcast(worker=self.worker)
        self.good = self.heard = 0
        self.seen: list[str] = []
        """Tasks that ran, but for the good ones."""
        self._logs = [Log(TextFormatter()), Log(JsonFormatter())]
        self._runner = asyncio.Runner()
        self._running = self.worker.running()
        self._tasks()

    def _tasks(self) -> None:
        @self.worker.on("good")
        async def good(payload: Any) -> None:
            self.good += 1

        @self.worker.on("any")
        async def any(payload: Any, run: Run) -> None:
            self.seen.append(repr(run))

        @self.worker.on("direct")
        async def direct(payload: Any) -> None:
            self.seen.append("direct")

        @self.worker.on("typed")
        async def typed(order: Order) -> None:
            self.seen.append("typed")

        @self.worker.on("thread")
        def thread(payload: Any = None) -> None:
            self.seen.append("thread")

        @self.worker.on("limited", soft_timeout=5_000, hard_timeout=10_000)
        async def limited() -> None:
            self.seen.append("limited")

        @self.broadcast.on("heard")
        async def heard(payload: Any) -> None:
            self.heard += 1

        @self.broadcast.on("typed")
        async def typed_message(order: Order) -> None: ...

    def __enter__(self) -> Self:
        for handler in self._logs:
            logging.getLogger("backstage").addHandler(handler)
        self._runner.run(self._running.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._runner.run(self._running.__aexit__(kind, error, traceback))
        self._runner.close()
        self.raw.close()
        for handler in self._logs:
            logging.getLogger("backstage").removeHandler(handler)
            assert not handler.failed, "a line could not be logged"

    def key(self, name: str) -> str:
        return f"{self.prefix}:{name}"

    # ---- what is thrown at it ----------------------------------------------------------------------------------------

    def entry(self, fields: Sequence[tuple[bytes, bytes]], key: str = "default") -> None:
        """A stream entry of these fields, in this order, names twice and all."""
        self.raw.execute_command("XADD", self.key(key), "*", *(part for pair in fields for part in pair))

    def member(self, key: str, member: bytes, due: float | None = None) -> None:
        """In `scheduled` or `retries`, due now (or at another server time in ms), and told as an enqueue tells it."""
        self.raw.zadd(self.key(key), {member: time.time() * 1000 if due is None else due})
        self.raw.publish(self.key("control"), b"due")

    # ---- that it lives -----------------------------------------------------------------------------------------------

    def lives(self, **options: Any) -> None:
        """A good job is done soon, and so is whatever came before it: the queues are empty."""
        self._runner.run(self._lives(options))

    async def _lives(self, options: dict[str, Any]) -> None:
        before, begun = self.good, time.monotonic()
        await self.worker.enqueue("good", {"n": before}, **options)
        await wait_until(lambda: self.good > before, message="a good job is done")
        took = time.monotonic() - begun
        assert took < SOON, f"a good job took {took:.1f} s"
        await wait_until(lambda: not self.raw.xlen(self.key("default")), message="the queue is empty")

    def hears(self) -> None:
        """A good message arrives soon."""
        self._runner.run(self._hears())

    async def _hears(self) -> None:
        before, begun = self.heard, time.monotonic()
        await self.broadcast.send("heard", 1)
        await wait_until(lambda: self.heard > before, message="a good message is heard")
        assert time.monotonic() - begun < SOON

    def ask(self, coroutine: Any) -> Any:
        """In the worker's loop."""
        return self._runner.run(coroutine)

    # ---- what became of it -------------------------------------------------------------------------------------------

    def dead(self) -> list[dict[bytes, bytes]]:
        """The dead letters, which are then thrown away."""
        found = [fields for _, fields in self.raw.xrange(self.key("default:dead-letter"))]
        self.raw.delete(self.key("default:dead-letter"))
        return found

    def waiting(self) -> int:
        """Retries: an unknown task waits there for a worker that knows it. Thrown away, too."""
        n: int = self.raw.zcard(self.key("retries"))
        self.raw.delete(self.key("retries"))
        return n

    def ran(self) -> int:
        """How many ran, and were not good ones."""
        n = len(self.seen)
        self.seen.clear()
        return n

    def accounted(self, sent: Iterable[object]) -> None:
        """All that was sent ran, or is in the dead letter, or waits for a worker that knows it."""
        parts = len(self.dead()), self.waiting(), self.ran()
        n = len(list(sent))
        assert sum(parts) >= n, f"of {n} entries {parts[0]} are dead, {parts[1]} wait, {parts[2]} ran"
