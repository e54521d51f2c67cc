"""`backstage dead`: jobs that were given up: see them, put them back, delete them."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from datetime import UTC

import click
import msgspec

from backstage.cli.session import Session, connected
from backstage.cli.table import Table, printable
from backstage.cli.tables import short, show
from backstage.inspector import Inspector, Progress
from backstage.report import DeadJob

LONG = 500
"""From so many jobs on, progress is shown."""


@click.group()
def dead() -> None:
    """Jobs that were given up: list, retry, purge.

    \b
    Examples:
      backstage dead list
      backstage dead retry default
      backstage dead purge default --yes
    """


@dead.command("list")
@click.argument("queue", required=False)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="A queue.")
@click.option("--full", is_flag=True, help="With payloads, errors and tracebacks in full.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, everything in it.")
@connected
def list_(session: Session, queue: str | None, limit: int, full: bool, as_json: bool) -> None:
    """List dead jobs of QUEUE, or of all queues, the newest first.

    ENTRY is what `dead retry` and `dead purge` take to name a job.

    \b
    Examples:
      backstage dead list
      backstage dead list emails --full
      backstage dead list emails --limit 1000 --json | jq .error
    """
    jobs = asyncio.run(_list(session, queue, limit))
    if as_json:
        for job in jobs:
            click.echo(_json(job))
    elif full:
        click.echo("\n\n".join(_full(job) for job in jobs) or "none")
    elif not jobs:
        click.echo("none")
    else:
        table = Table("ENTRY", "QUEUE", "TASK", "REASON", "ERROR", "PAYLOAD", "DIED (UTC)")
        for job in jobs:
            error, payload = short(job.error, 60), short(job.payload, 40)
            table.add(job.entry_id, job.queue, job.task or "-", job.reason or "-", error or "-", payload, _when(job))
        show(table)


@dead.command()
@click.argument("queue")
@click.argument("entries", nargs=-1, metavar="[ENTRY]...")
@connected
def retry(session: Session, queue: str, entries: tuple[str, ...]) -> None:
    """Put dead jobs of QUEUE back into it: these, or all that are there now.

    They keep their ids and payloads, and have all their attempts before them.

    \b
    Examples:
      backstage dead retry emails
      backstage dead retry emails 1795491213548-0 1795491213551-2
    """
    n = asyncio.run(_retry(session, queue, entries))
    click.echo(f"{_jobs(n)} of {printable(queue)} put back")
    _all_found(queue, n, entries)


@dead.command()
@click.argument("queue")
@click.argument("entries", nargs=-1, metavar="[ENTRY]...")
@click.option("--yes", is_flag=True, help="Don't ask before deleting all.")
@connected
def purge(session: Session, queue: str, entries: tuple[str, ...], yes: bool) -> None:
    """Delete dead jobs of QUEUE for good: these, or all that are there now.

    \b
    Examples:
      backstage dead purge emails 1795491213548-0
      backstage dead purge emails --yes
    """
    if not entries and not yes:
        n = asyncio.run(_count(session, queue))
        if n:
            _confirm(f"Delete {_jobs(n)} of {queue} for good?")
    n = asyncio.run(_purge(session, queue, entries))
    click.echo(f"{_jobs(n)} of {printable(queue)} deleted")
    _all_found(queue, n, entries)


async def _list(session: Session, queue: str | None, limit: int) -> list[DeadJob]:
    async with session.client() as client:
        inspector = Inspector(client)
        names = [queue] if queue is not None else [q.name for q in await inspector.queues() if q.dead]
        return [job for name in names for job in await inspector.dead(name, limit=limit, newest_first=True)]


async def _count(session: Session, queue: str) -> int:
    async with session.client() as client:
        return (await Inspector(client).queues([queue]))[queue].dead


async def _retry(session: Session, queue: str, entries: tuple[str, ...]) -> int:
    async with session.client() as client:
        inspector = Inspector(client)
        with _progress("putting back", len(entries) or (await inspector.queues([queue]))[queue].dead) as progress:
            return await inspector.retry(queue, entries or None, progress=progress)


async def _purge(session: Session, queue: str, entries: tuple[str, ...]) -> int:
    async with session.client() as client:
        inspector = Inspector(client)
        with _progress("deleting", len(entries) or (await inspector.queues([queue]))[queue].dead) as progress:
            return await inspector.purge(queue, entries or None, progress=progress)


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Progress | None]:
    if total < LONG or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, passed: bar.update(task, completed=done + passed)


def _confirm(question: str) -> None:
    try:
        sure = click.confirm(question, err=True)
    except click.Abort:  # nobody is there to answer
        click.echo(err=True)
        sure = False
    if not sure:
        raise click.ClickException("nothing was deleted; --yes deletes without asking")


def _all_found(queue: str, n: int, entries: tuple[str, ...]) -> None:
    missing = len(set(entries)) - n
    if missing > 0:
        raise click.ClickException(
            f"{missing} of the {len(set(entries))} entries are no jobs in the dead letter of {queue}"
        )


def _jobs(n: int) -> str:
    return f"{n} dead job" if n == 1 else f"{n} dead jobs"


def _when(job: DeadJob) -> str:
    return "-" if job.dead_at is None else job.dead_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _full(job: DeadJob) -> str:
    lines = [
        f"entry       {job.entry_id}",
        f"job         {printable(job.id) or '-'}",
        f"task        {printable(job.task) or '-'}",
        f"queue       {printable(job.queue)}",
        f"died        {_when(job)} UTC, at run {job.attempt}, delivery {job.deliveries}",
        f"reason      {printable(job.reason) or '-'}",
        f"payload     {printable(job.payload)}",
        f"error       {printable(job.error) or '-'}",
    ]
    return "\n".join([*lines, *(f"  {printable(line)}" for line in job.traceback.splitlines())])


def _json(job: DeadJob) -> str:
    shown = {
        "entry": job.entry_id, "id": job.id, "task": job.task, "queue": job.queue, "payload": job.payload,
        "reason": job.reason, "error": job.error, "traceback": job.traceback, "deliveries": job.deliveries,
        "attempt": job.attempt, "dead_at": job.dead_at,
        "fields": {k.decode("utf-8", "replace"): v.decode("utf-8", "replace") for k, v in job.fields.items()},
    }  # fmt: skip
    return msgspec.json.encode(shown).decode()
