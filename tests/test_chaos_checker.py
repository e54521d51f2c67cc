"""The checker of the chaos suite is checked: each broken variant of the protocol, run for real, makes it fail.

Every scenario runs twice, with one process broken and with all of them sound. They run side by side, once for all tests
here.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import redis

from backstage import Client
from chaos import actor, checker, snapshot
from chaos.figures import Figure, Longest
from chaos.fleet import Member, spawn
from chaos.history import Event, Log, read
from chaos.story import Goals
from chaos.variants import VARIANTS
from support.server import Server
from support.waiting import wait_until

GOALS = Goals(lease=1.0, interval=0.2, grace=30.0, concurrency=10)
pytestmark = pytest.mark.chaos

AT_ONCE = 6
"""Scenarios that run side by side."""

PATIENCE = 60.0
"""Seconds to wait for what will come; on a busy machine a process takes many to start."""

FOR_EVER = 60_000

LOST = "acknowledged enqueues neither finished nor dead-lettered"
TWICE = "runs of a job on two live, connected workers at once"
UNDONE = "runs of live, connected workers that were taken away"
STALE = "finishes of a former holder that undid the run of the next"

CAUGHT = {
    "no_fence": STALE, "ack_before_run": LOST, "no_renewal": TWICE, "promote_in_two_calls": LOST,
    "dedupe_outside": LOST, "renew_without_owner": UNDONE,
}  # fmt: skip
"""The figure that each broken variant misses."""


class Stage:
    """One scenario's keyspace, histories and processes. `variant` is what its first process runs as; "" is sound."""

    def __init__(self, folder: Path, server: Server, variant: str) -> None:
        self.folder, self._server, self.variant = folder, server, variant
        folder.mkdir()
        self.log = Log(folder, "nemesis")
        self.settings: dict[str, Any] = {"url": server.url, "prefix": folder.name}
        self._members: list[Member] = []

    async def worker(self, name: str, variant: str = "") -> Member:
        """Starts one, and waits until it runs."""
        settings = self.settings | {
            "worker_id": name, "idle_timeout": 1000, "reclaimer_interval": 200, "concurrency": GOALS.concurrency,
        }  # fmt: skip
        member = spawn(self.folder, name, "worker", settings, variant=variant)
        self._members.append(member)
        await self.seen("renewed", name)
        return member

    async def producer(self, name: str, variant: str, wanted: dict[str, Any]) -> Member:
        member = spawn(self.folder, name, "producer", self.settings, variant=variant, wanted=wanted)
        self._members.append(member)
        await wait_until(lambda: not member.alive, PATIENCE, f"{name} ends")
        self.log("strike", note="term", target=name)  # it had its work, and ends with it
        return member

    async def enqueue(self, token: str, task: str, payload: dict[str, Any], **options: Any) -> None:
        async with Client(**self.settings) as client:
            await actor.enqueue(client, self.log, token, task, task, payload | {"token": token}, options)

    def events(self, what: str, process: str = "") -> list[Event]:
        return [e for e in read(self.folder) if e.what == what and process in ("", e.process)]

    async def seen(self, what: str, process: str = "") -> None:
        await wait_until(lambda: self.events(what, process), PATIENCE, f"{process or 'somebody'} says {what}")

    def kill(self, member: Member) -> None:
        self.log("strike", note="kill-worker", target=member.name)
        member.signal(signal.SIGKILL)

    @contextlib.asynccontextmanager
    async def frozen(self, member: Member) -> AsyncIterator[None]:
        begun = time.monotonic()
        member.signal(signal.SIGSTOP)
        yield
        member.signal(signal.SIGCONT)
        self.log("over", note="freeze", target=member.name, span=time.monotonic() - begun)

    async def figures(self) -> dict[str, Figure]:
        """When all is done and everybody has left."""
        with self._server.client() as client:
            await self._done(client)
            for member in self._members:
                if member.alive:
                    self.log("strike", note="term", target=member.name)
                    member.signal(signal.SIGTERM)
            await wait_until(lambda: not any(member.alive for member in self._members), PATIENCE, "all have left")
            for member in self._members:
                self.log("down", target=member.name, number=member.process.returncode)
            found = snapshot.take(client, self.folder.name)
        return {figure.name: figure for figure in checker.figures(read(self.folder), found, GOALS)}

    async def _done(self, client: redis.Redis) -> None:
        """Until nothing waits, three looks in a row: one that moves from key to key may be missed by one look."""
        quiet = 0

        def done() -> bool:
            nonlocal quiet
            quiet = 0 if snapshot.take(client, self.folder.name).waiting else quiet + 1
            return quiet == 3

        await wait_until(done, PATIENCE, "all is done")

    def close(self) -> None:
        self.log.close()
        for member in self._members:
            member.process.kill()
            member.process.wait()


async def no_fence(stage: Stage) -> None:
    """A zombie's run fails while another worker runs the job: its retry must not end that run."""
    first = await stage.worker("first", stage.variant)
    job = {"ms": 1500, "later": 6000, "fails": 1}
    await stage.enqueue("a", "flaky", job, attempts=3, backoff={"type": "fixed", "delay": 50})
    await stage.seen("start", "first")
    async with stage.frozen(first):
        await stage.worker("second")
        await stage.seen("start", "second")
    await wait_until(lambda: stage.events("settled", "first") or stage.events("lost", "first"), PATIENCE)


async def ack_before_run(stage: Stage) -> None:
    """A worker is killed in the middle of a run: another one must run the job."""
    first = await stage.worker("first", stage.variant)
    await stage.enqueue("a", "plain", {"ms": FOR_EVER, "later": 0})
    await stage.seen("start", "first")
    stage.kill(first)
    await stage.worker("second")


async def no_renewal(stage: Stage) -> None:
    """A job takes longer than the lease: no other worker may take it while its own one lives."""
    first = await stage.worker("first", stage.variant)
    await stage.enqueue("a", "plain", {"ms": FOR_EVER, "later": 500})
    await stage.seen("start", "first")
    await stage.worker("second")
    await wait_until(lambda: stage.events("end", "second") or len(stage.events("renewed", "second")) > 12, PATIENCE)
    stage.kill(first)


async def promote_in_two_calls(stage: Stage) -> None:
    """Whoever promotes dies in the middle of it: the job must be in the set or in the stream."""
    first = await stage.worker("first", stage.variant)
    await stage.enqueue("a", "plain", {"ms": 0}, delay=100)
    await wait_until(lambda: not first.alive or stage.events("end", "first"), PATIENCE)
    await stage.worker("second")


async def dedupe_outside(stage: Stage) -> None:
    """A producer dies in the middle of an enqueue: a key that is taken must name a job that exists."""
    options = {"dedupe": {"key": "k", "ttl": 60_000}}
    await stage.producer("first", stage.variant, {"a": ["plain", {"token": "a", "ms": 0}, options]})
    await stage.worker("second")
    await stage.enqueue("b", "plain", {"ms": 0}, **options)


async def renew_without_owner(stage: Stage) -> None:
    """A zombie renews what another worker runs by now: that run must go on."""
    first = await stage.worker("first", stage.variant)
    await stage.enqueue("a", "plain", {"ms": FOR_EVER, "later": 2500})
    await stage.seen("start", "first")
    async with stage.frozen(first):
        await stage.worker("second")
        await stage.seen("start", "second")
    await stage.seen("lost")
    stage.kill(first)


Scenario: TypeAlias = Callable[[Stage], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {
    each.__name__: each
    for each in (no_fence, ack_before_run, no_renewal, promote_in_two_calls, dedupe_outside, renew_without_owner)
}
Results: TypeAlias = dict[tuple[str, bool], dict[str, Figure]]


@pytest.fixture(scope="module")
def results(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What the checker says of each scenario, broken (True) and sound."""
    return asyncio.run(_all(tmp_path_factory.mktemp("histories"), server))


async def _all(folder: Path, server: Server) -> Results:
    places, found = asyncio.Semaphore(AT_ONCE), Results()

    async def one(name: str, broken: bool) -> None:
        async with places:
            stage = Stage(folder / f"{name}-{broken}", server, name if broken else "")
            try:
                await SCENARIOS[name](stage)
                found[name, broken] = await stage.figures()
            finally:
                stage.close()

    async with asyncio.TaskGroup() as group:
        for name in SCENARIOS:
            for broken in (True, False):
                group.create_task(one(name, broken))
    return found


def _missed(figures: dict[str, Figure]) -> dict[str, list[str]]:
    # How long something took is no matter here, on however busy a machine, nor what there was none of; nor is the
    # consumer that a killed worker leaves until it is pruned.
    return {
        name: f.details
        for name, f in figures.items()
        if f.details and not isinstance(f, Longest) and name != "consumers left behind"
    }


@pytest.mark.timeout(4 * PATIENCE)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_broken_variant_is_caught(variant: str, results: Results) -> None:
    """The figure that stands for the promise is missed."""
    missed = _missed(results[variant, True])
    assert CAUGHT[variant] in missed, missed


@pytest.mark.timeout(4 * PATIENCE)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_same_scenario_passes_when_nothing_is_broken(scenario: str, results: Results) -> None:
    """Every figure is reached, so it is the variant that was caught."""
    assert not _missed(results[scenario, False])


def test_every_variant_has_a_scenario_and_a_figure() -> None:
    """None is left out."""
    assert VARIANTS.keys() == SCENARIOS.keys() == CAUGHT.keys()
