"""`backstage info`: what waits, runs and died, and who works."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import click
import msgspec

from backstage.cli.session import Session, connected
from backstage.cli.table import Table
from backstage.cli.tables import age, show
from backstage.errors import RedisUnavailable
from backstage.inspector import Inspector
from backstage.report import QueueInfo, QueuesInfo, WorkerInfo

EVERY = 1.0
"""Seconds between two looks of `--watch`."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object, durations in ms.")
@click.option("--watch", is_flag=True, help="Look again each second, until Ctrl-C.")
@connected
def info(session: Session, as_json: bool, watch: bool) -> None:
    """Show queues and workers.

    A ~ before a number says that it's an estimate. OLDEST: for how long the first waiting job has waited.

    \b
    Examples:
      backstage info
      backstage info --watch
      backstage info --json | jq '.queues[] | select(.dead > 0)'
    """
    with contextlib.suppress(KeyboardInterrupt):  # the way to end a watch
        asyncio.run(_look(session, as_json, watch))


async def _look(session: Session, as_json: bool, watch: bool) -> None:
    async with session.client() as client:
        inspector = Inspector(client)
        queues, workers = await inspector.queues(), await inspector.workers()
        if not watch:
            _print(queues, workers, as_json)
        elif sys.stdout.isatty() and not as_json:
            await _live(inspector, queues, workers)
        else:
            while True:
                _print(queues, workers, as_json)
                await _pause()
                queues, workers = await inspector.queues(), await inspector.workers()


async def _pause() -> None:
    """Until the next look. A Ctrl-C that redis-py swallowed while it connected ends the watch here."""
    watching = asyncio.current_task()
    if watching is not None and watching.cancelling():
        raise asyncio.CancelledError
    await asyncio.sleep(EVERY)


async def _live(inspector: Inspector, queues: QueuesInfo, workers: list[WorkerInfo]) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from backstage.cli.ruled import ruled

    with Live(auto_refresh=False) as live:
        note = ""
        while True:
            tables = [ruled(table) for table in _tables(queues, workers)]
            live.update(Group(*tables, Text(note)), refresh=True)
            await _pause()
            try:
                queues, workers, note = await inspector.queues(), await inspector.workers(), ""
            except RedisUnavailable as exc:  # the last table stays until Redis is back
                note = f"as it was; now: {exc}"


def _print(queues: QueuesInfo, workers: list[WorkerInfo], as_json: bool) -> None:
    if as_json:
        click.echo(_json(queues, workers))
    else:
        show(*_tables(queues, workers))


def _tables(queues: QueuesInfo, workers: list[WorkerInfo]) -> Sequence[Table]:
    totals = (str(queues.waiting), str(queues.running), str(queues.scheduled), str(queues.dead))
    more = "" if queues.complete else " (and perhaps more: the server has too many keys to look at)"
    first = Table(
        "QUEUE", ">WAITING", ">RUNNING", ">SCHEDULED", ">DEAD", ">OLDEST",
        footer=(f"all{more}", *totals, age(queues.oldest)),
    )  # fmt: skip
    for queue in queues:
        if queue.problem:
            first.add(f"{queue.name}: {queue.problem}", *["?"] * 5)
            continue
        first.add(
            queue.name,
            _count(queue, "waiting", queue.waiting),
            str(queue.running),
            _count(queue, "scheduled", queue.scheduled),
            str(queue.dead),
            age(queue.oldest),
        )
    second = Table("WORKER", "QUEUES", ">RUNNING", ">SEEN")
    now = datetime.now(UTC)
    for worker in workers:
        facts = worker.facts
        running = f"{facts.get('running', '?')}/{facts.get('concurrency', '?')}"
        second.add(worker.id, facts.get("queues", "?"), running, f"{age(now - worker.seen)} ago")
    if not workers:
        second.add("none", "", "", "")
    return first, second


def _count(queue: QueueInfo, name: str, n: int) -> str:
    return f"~{n}" if name in queue.estimated else str(n)


def _json(queues: QueuesInfo, workers: list[WorkerInfo]) -> str:
    def ms(queue: QueueInfo | QueuesInfo) -> int | None:
        return None if queue.oldest is None else round(queue.oldest.total_seconds() * 1000)

    shown = {
        "queues": [
            {
                "name": queue.name, "waiting": queue.waiting, "running": queue.running, "scheduled": queue.scheduled,
                "dead": queue.dead, "oldest": ms(queue), "estimated": queue.estimated, "problem": queue.problem,
            }
            for queue in queues
        ],
        "waiting": queues.waiting, "running": queues.running, "scheduled": queues.scheduled, "dead": queues.dead,
        "oldest": ms(queues), "complete": queues.complete,
        "workers": [
            {"id": w.id, "consumer": w.consumer, "seen": w.seen, "facts": dict(w.facts)} for w in workers
        ],
    }  # fmt: skip
    return msgspec.json.encode(shown).decode()
