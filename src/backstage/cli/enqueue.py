"""`backstage enqueue`: one job, from a shell."""

from __future__ import annotations

import asyncio
import sys
from typing import Literal

import click
import msgspec

from backstage.cli.session import Session, connected, duration
from backstage.job import JobOptions


@click.command()
@click.argument("task")
@click.argument("payload", metavar="[JSON]", default="null")
@click.option("--queue", metavar="NAME", help="Default: the queue `default`.")
@click.option("--priority", type=click.Choice(["urgent", "default", "low"]), help="Short for the queue of that name.")
@click.option("--delay", callback=duration, metavar="TIME", help="Run no earlier than in 1500 (ms), 30s, 10m, 2h, 1d.")
@click.option("--dedupe", metavar="KEY", help="Add nothing while a job with that key was added within the hour.")
@click.option("--attempts", type=click.IntRange(min=1), metavar="N", help="Runs in all.")
@click.option("--timeout", callback=duration, metavar="TIME", help="Soft limit of a run.")
@connected
def enqueue(
    session: Session,
    task: str,
    payload: str,
    queue: str | None,
    priority: Literal["urgent", "default", "low"] | None,
    delay: int | None,
    dedupe: str | None,
    attempts: int | None,
    timeout: int | None,
) -> None:
    """Enqueue one job and print its id.

    JSON is the payload, null where it's left out; - reads it from standard input.
    This command doesn't know your tasks: name the queue where a task has one of its own.

    \b
    Examples:
      backstage enqueue email.send '{"to": "ada@example.com"}'
      backstage enqueue report.build --queue reports --delay 10m
      backstage enqueue import.row - < row.json
    """
    options: JobOptions = {
        "queue": queue, "priority": priority, "delay": delay, "attempts": attempts, "timeout": timeout,
    }  # fmt: skip
    id = asyncio.run(_put(session, task, _json(payload), dedupe, options))
    if id is None:
        click.echo(f"a duplicate: nothing was added, for {dedupe!r} is taken", err=True)
    else:
        click.echo(id)


def _json(text: str) -> object:
    try:
        return msgspec.json.decode(sys.stdin.buffer.read() if text == "-" else text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise click.UsageError(
            f"the payload is no JSON ({exc}); a text needs its own quotes, like '\"text\"', an object '{{\"key\": 1}}'"
        ) from exc


async def _put(session: Session, task: str, payload: object, dedupe: str | None, options: JobOptions) -> str | None:
    async with session.client() as client:
        if dedupe is None:
            return await client.enqueue(task, payload, **options)
        return await client.enqueue(task, payload, dedupe=dedupe, **options)
