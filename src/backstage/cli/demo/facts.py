"""What the server says, when the day is over, about what happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from backstage import Client, DeadJob, Inspector
from backstage.cli.demo import diary
from backstage.cli.demo.diary import Event


@dataclass(frozen=True)
class Facts:
    """All of it is read from the server but `exits`, which the system tells: exit status by worker."""

    events: tuple[Event, ...]
    dead: tuple[DeadJob, ...]
    waiting: int
    running: int
    scheduled: int
    registered: tuple[str, ...]
    """Workers that have not signed off."""
    exits: Mapping[str, int | None]


async def read(client: Client, exits: Mapping[str, int | None]) -> Facts:
    inspector = Inspector(client)
    queues = await inspector.queues()
    dead = [job for queue in queues for job in await inspector.dead(queue.name)]
    workers = await inspector.workers()
    return Facts(
        events=tuple(await diary.read(client)),
        dead=tuple(dead),
        waiting=queues.waiting,
        running=queues.running,
        scheduled=queues.scheduled,
        registered=tuple(worker.id for worker in workers),
        exits=exits,
    )
