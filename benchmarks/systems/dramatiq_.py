"""Dramatiq."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dramatiq
from contract import TASK, URL, Meter, Payload, main
from dramatiq import Actor, Worker
from dramatiq.brokers.redis import RedisBroker


class Sender:
    def __init__(self, actor: Actor[..., None]) -> None:
        self._actor = actor

    async def one(self, payload: Payload) -> object:
        return self._actor.send(payload)


class Dramatiq:
    """https://dramatiq.io/: keeps no results unless asked to; it has no bulk enqueue. Jobs run in threads."""

    modes = ("one",)

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[Sender]:
        broker = RedisBroker(url=URL)

        def task(payload: Payload) -> None: ...

        yield Sender(dramatiq.actor(task, actor_name=TASK, broker=broker))

    def work(self, meter: Meter, concurrency: int) -> None:
        broker = RedisBroker(url=URL)
        dramatiq.actor(meter.sync_handler(), actor_name=TASK, broker=broker)
        Worker(broker, worker_threads=concurrency).start()
        threading.Event().wait()


if __name__ == "__main__":
    main(Dramatiq())
