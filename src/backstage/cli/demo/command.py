"""The command: a place for the day, the day, and nothing left of either."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
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
    if session.keyspaces is not None:
        raise click.UsageError("the demo has one keyspace: --keyspaces is not for it")
    progress, began = Progress(), time.monotonic()
    progress.say("Backstage: a day in a small shop, with a real server and real worker processes.\n")
    with Interrupts() as interrupts, _place(session, keep, progress) as place:
        session.address = place.config.address
        crew = Crew(place.folder, place.url, place.config.prefix)
        try:
            facts = asyncio.run(_live(place, crew, progress, interrupts, keep))
        except click.ClickException:
            progress.say(crew.logs())
            raise
        finally:
            crew.end()
        if interrupts.heard:
            raise KeyboardInterrupt
        assert facts is not None
        rows = verdict.judge(facts)
        wrong = sum(not row.ok for row in rows)
        progress.say("\nThis is what the server says about it:\n")
        progress.table(rows)
        if wrong:
            progress.say(f"\n{crew.logs()}\n")
            raise click.ClickException(f"{wrong} of {len(rows)} are not as they should be")
        progress.say(f"\nAll {len(rows)} as expected, in {time.monotonic() - began:.0f} seconds.")
        progress.say(NEXT)


class Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP, heard only where the demo can stop: they end the day.

    What starts a server or tidies up is never cut into, as it would be by a KeyboardInterrupt at any moment.
    """

    def __init__(self) -> None:
        self.heard = False
        self._end: Callable[[], object] = lambda: None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._on)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    async def until(self, day: Coroutine[Any, Any, Facts]) -> Facts | None:
        """The day's facts; None where it was interrupted."""
        task, loop = asyncio.create_task(day), asyncio.get_running_loop()
        self._end = lambda: loop.call_soon_threadsafe(task.cancel)
        if self.heard:
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            return None
        finally:
            self._end = lambda: None

    def _on(self, *_: object) -> None:
        self.heard = True
        self._end()


async def _live(place: Place, crew: Crew, progress: Progress, interrupts: Interrupts, keep: bool) -> Facts | None:
    """The day. Removes what it wrote to a server that isn't its own."""
    client = Client(place.config)
    day = Day(client, crew, progress)
    try:
        return await interrupts.until(day.run())
    finally:
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
        member.leave()
