"""Celery on Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from celery import Celery, group
from contract import TASK, URL, Meter, Payload, main


class Sender:
    def __init__(self, task: Any) -> None:
        self._task = task

    async def one(self, payload: Payload) -> object:
        return self._task.delay(payload)

    async def bulk(self, payloads: Sequence[Payload]) -> object:
        return group([self._task.s(each) for each in payloads]).apply_async()


class CeleryOnRedis:
    """https://docs.celeryq.dev/en/stable/userguide/optimizing.html names 64 or 128 as the prefetch multiplier for many
    short tasks. Results are ignored. Threads, for one process shall run 100 jobs at once; its default pool forks. No
    gossip, mingle, heartbeat and events, which are for fleets. A job is acknowledged before it runs, as is its default.
    """

    modes = ("one", "bulk")

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[Sender]:
        made = app()

        def task(payload: Payload) -> None: ...

        yield Sender(made.task(name=TASK)(task))

    def work(self, meter: Meter, concurrency: int) -> None:
        made = app()
        made.task(name=TASK)(meter.sync_handler())
        made.worker_main(
            ["worker", "--pool=threads", f"--concurrency={concurrency}", "--loglevel=WARNING",
             "--without-gossip", "--without-mingle", "--without-heartbeat"]
        )  # fmt: skip


def app() -> Celery:
    made = Celery("bench", broker=URL)
    made.conf.update(
        task_ignore_result=True,
        worker_prefetch_multiplier=128,
        worker_send_task_events=False,
        worker_disable_rate_limits=True,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
    )
    return made


if __name__ == "__main__":
    main(CeleryOnRedis())
