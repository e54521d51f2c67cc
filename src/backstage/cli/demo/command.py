"""The command: a place for the day, the day, and nothing left of either."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import click

from backstage.cli.demo import diary, verdict
from backstage.cli.demo.crew import Crew
from backstage.cli.demo.day import Day
from backstage.cli.demo.facts import Facts
from backstage.cli.demo.progress import Progress
from backstage.cli.session import Session, connected
from backstage.client import Client
from backstage.config import RedisConfig
from backstage.errors import RedisUnavailable

NEXT = """
What next?
  README.md                 every feature with a short example
  backstage worker --help   run tasks of your own
  docs/                     worker, producer, scheduler, broadcast, queues, reliability
"""


@dataclass(frozen=True)
class Place:
    """Where the day happens."""

    folder: Path
    """For the logs, and an embedded server's data."""
    url: str
    """For the workers."""
    config: RedisConfig
    """For this process."""
    own: bool
    """Whether the server was started for the demo."""


@click.command()
@click.option("--keep", is_flag=True, help="Leave the data and the logs, and say where they are.")
@connected
def demo(session: Session, keep: bool) -> None:
    """See a small shop's day, on real processes, in a few seconds.

    Starts a server of its own and two workers. Jobs are chained, delayed, deduplicated, retried, given up and
    scheduled; a worker is killed. In the end it reads back from the server what happened. The exit status is 0 if all
    is as it should be.

    With --url it uses that server, under a random prefix (which begins with --prefix), and cleans up after itself.

    \b
    Examples:
      backstage demo
      backstage demo --keep
      backstage demo --url redis://localhost:6379
    """
    progress, began = Progress(), time.monotonic()
    progress.say("Backstage: a day in a small shop, with a real server and real worker processes.\n")
    with _like_ctrl_c(signal.SIGTERM, signal.SIGHUP), _place(session, keep, progress) as place:
        session.address = place.config.address
        crew = Crew(place.folder, place.url, place.config.prefix)
        day = _live(place, crew, progress, keep)
        try:
            facts = asyncio.run(day)
        except click.ClickException:
            progress.say(crew.logs())
            raise
        finally:
            day.close()  # interrupted before it began, it would complain that nobody awaited it
            with _undisturbed():
                crew.end()
        rows = verdict.judge(facts)
        wrong = sum(not row.ok for row in rows)
        progress.say("\nThis is what the server says about it:\n")
        progress.table(rows)
        if wrong:
            progress.say(f"\n{crew.logs()}\n")
            raise click.ClickException(f"{wrong} of {len(rows)} are not as they should be")
        progress.say(f"\nAll {len(rows)} as expected, in {time.monotonic() - began:.0f} seconds.")
        progress.say(NEXT)


async def _live(place: Place, crew: Crew, progress: Progress, keep: bool) -> Facts:
    """The day. Removes what it wrote to a server that isn't its own."""
    client = Client(place.config)
    day = Day(client, crew, progress)
    try:
        return await day.run()
    finally:
        with _undisturbed():
            await asyncio.to_thread(crew.end)
            if day.begun and not (keep or place.own):
                await _sweep(client, progress)
            await client.aclose()


async def _sweep(client: Client, progress: Progress) -> None:
    try:
        await diary.sweep(client)
    except RedisUnavailable as exc:
        progress.say(f"Keys that begin with {client.config.prefix} are left behind: {exc}")


@contextlib.contextmanager
def _place(session: Session, keep: bool, progress: Progress) -> Iterator[Place]:
    """A folder, and in it a server unless one was named. Both are gone afterwards, or kept and told of."""
    prefix, where = f"{session.prefix or 'demo'}-{secrets.token_hex(4)}", ""
    folder = Path(tempfile.mkdtemp(prefix="backstage-demo-"))
    try:
        if session.url is not None:
            config = RedisConfig(url=session.url, prefix=prefix)
            where = config.address
            yield Place(folder, session.url, config, own=False)
        else:
            where = f"embedded://{quote(str(folder))}"
            with _server(folder, progress) as socket:
                yield Place(folder, where, RedisConfig(url=f"unix://{quote(socket)}", prefix=prefix), own=True)
    finally:
        if keep:
            progress.say(f"Kept: the logs in {folder}, and the data; look at it with\n")
            progress.say(f"  backstage info --url {where} --prefix {prefix}\n")
        else:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _server(folder: Path, progress: Progress) -> Iterator[str]:
    """An embedded server; this process is a member by one share alone, so that leaving is one step."""
    from backstage.embedded import join

    with progress.step("A server starts, in a temporary folder") as step:
        member = join(folder)
        step.note = f"{folder}, process {member.pid}"
    try:
        yield member.socket
    finally:
        with _undisturbed():
            member.leave()


@contextlib.contextmanager
def _like_ctrl_c(*numbers: signal.Signals) -> Iterator[None]:
    """Takes these signals as Ctrl-C is taken: whatever ends the demo, it tidies up."""
    before = {number: signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Tidying up takes a moment, and one more Ctrl-C must not leave half of it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
