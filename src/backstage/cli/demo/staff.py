"""The shop's worker, which `backstage demo` starts as `backstage worker backstage.cli.demo.staff:worker`, twice."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

from backstage import Broadcast, CronTask, Run, Worker
from backstage.cli.demo import diary, shop


async def keep_diary(run: Run, call_next: Callable[[], Awaitable[object]]) -> object:
    """Middleware, around every run: notes that it started, and how it ended."""
    order = run.job.payload.number if isinstance(run.job.payload, shop.Order) else 0
    started = time.time()

    async def note(what: diary.What, at: float | None = None) -> None:
        await diary.write(
            worker, what, worker.worker_id, task=run.job.task, order=order, attempt=run.attempt, at=at
        )  # fmt: skip

    await note("started", started)
    try:
        result = await call_next()
    except Exception:
        await note("failed")
        raise
    await note("done")
    return result


worker = Worker(  # where Redis is, and what the worker is called, comes from the environment
    tasks=[shop.tasks],
    schedules=[CronTask("@monthly", shop.report, catch_up="last")],
    middleware=[keep_diary],
    concurrency=4,
    idle_timeout=timedelta(seconds=2),  # 30 s by default; so short that a minute is enough for a demo
    reclaimer_interval=timedelta(milliseconds=500),
    grace_period=timedelta(seconds=5),
)

broadcast = Broadcast(worker=worker)


@broadcast.on("prices.changed")
async def take_over_prices() -> None:
    await diary.write(worker, "heard", worker.worker_id, task="prices.changed")
