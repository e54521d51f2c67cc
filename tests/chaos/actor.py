"""One process of a run: `python -m chaos.actor '{"role": "worker", …}'`."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from pathlib import Path
from typing import Any

from backstage import BackstageError, Client, RedisRefused, RedisUnavailable, Scheduler, Worker
from backstage.worker.upkeep import Registry
from chaos import jobs, watch
from chaos.history import Log
from chaos.variants import VARIANTS
from support import killpoints

IN_FLIGHT = 100
"""Enqueues that a producer has on their way at most."""


def worker(log: Log, settings: dict[str, Any], options: dict[str, Any]) -> None:
    # The housekeeping of a minute within seconds: the same scripts, other numbers.
    Registry.BEAT, Registry.TTL, Registry.PRUNE = 0.5, 3_000, 1.0
    watch.watch_worker(log)
    if options.get("point"):
        killpoints.arm(options["point"], options.get("passes", 1))
    made = Worker(**settings)
    jobs.register(made, log)
    log("up")
    made.run()
    log("bye")


def scheduler(log: Log, settings: dict[str, Any], options: dict[str, Any]) -> None:
    watch.watch_scheduler(log)
    ticks = [
        watch.Ticking("* * * * *", "tick", "urgent", args={"token": f"tick:{name}"}, name=name, catch_up="all")
        for name in options["names"]
    ]
    log("up")
    Scheduler(schedules=ticks, **settings).run()
    log("bye")


def producer(log: Log, settings: dict[str, Any], options: dict[str, Any]) -> None:
    asyncio.run(_produce(log, settings, options))
    log("bye")


async def _produce(log: Log, settings: dict[str, Any], options: dict[str, Any]) -> None:
    """The `wanted` jobs ({token: [task, payload, options]}), or `rate` a second of all kinds until told to stop."""
    stop, calm = asyncio.Event(), Path(options["folder"], "calm")
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    log("up")
    log("hears")
    async with Client(**settings) as client, asyncio.TaskGroup() as group:
        for token, (task, payload, given) in options.get("wanted", {}).items():
            group.create_task(enqueue(client, log, token, task, task, payload, given))
        if "rate" in options:
            await _stream(client, log, options, stop, calm, group)
    log("deaf")


async def _stream(
    client: Client,
    log: Log,
    options: dict[str, Any],
    stop: asyncio.Event,
    calm: Path,
    group: asyncio.TaskGroup,
) -> None:
    """Once the file `calm` is there, no handler blocks its worker any more."""
    dice, number, sending = random.Random(options["seed"]), 0, set[asyncio.Task[None]]()
    kinds, weights = list(jobs.WEIGHTS), list(jobs.WEIGHTS.values())
    while not stop.is_set():
        if len(sending) < IN_FLIGHT:
            number += 1
            token, kind = f"{options['name']}.{number}", dice.choices(kinds, weights)[0]
            if kind == "blocking" and calm.exists():
                kind = "thread"
            if options.get("crash") == number:
                kind = "crash"
            task, payload, given = jobs.make(kind, token, dice, options["lease"])
            twins = [token, f"{token}b"] if kind == "dedupe" else [token]
            for each in twins:
                own = payload | {"token": each} if isinstance(payload, dict) else payload
                sent = group.create_task(enqueue(client, log, each, kind, task, own, given))
                sending.add(sent)
                sent.add_done_callback(sending.discard)
        try:
            async with asyncio.timeout(1 / options["rate"]):
                await stop.wait()
        except TimeoutError:
            pass


async def enqueue(
    client: Client, log: Log, token: str, kind: str, task: str, payload: Any, given: dict[str, Any]
) -> None:
    """One job, and what became of the call."""
    group = given["dedupe"]["key"] if "dedupe" in given else ""
    pause = given["backoff"]["delay"] if "backoff" in given else 0
    log("enq?", token=token, note=kind, group=group, delay=given.get("delay", 0), number=pause)
    try:
        id = await client.enqueue(task, payload, **given)
    except RedisRefused as exc:
        # A call that stopped half-way may have added some of it; any other refusal has added nothing.
        log("enq~" if "INCOMPLETE" in str(exc) else "enq-", token=token, note=str(exc)[:80])
    except (RedisUnavailable, BackstageError) as exc:
        log("enq~", token=token, note=str(exc)[:80])
    else:
        log("enq!" if id else "enq0", token=token, id=id or "")


def main() -> None:
    """What there is to know comes as JSON: role, name, folder, the library's settings, and what else the role wants."""
    options = json.loads(sys.argv[1])
    log = Log(options["folder"], options["name"])
    if options.get("variant"):
        VARIANTS[options["variant"]]()
    role = {"worker": worker, "scheduler": scheduler, "producer": producer}[options["role"]]
    role(log, options["settings"], options)


if __name__ == "__main__":
    main()
