"""`python -m chaos [--seconds 60] [--seeds 1,2,3,4] [--keep FOLDER]`: see the package."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from chaos import checker, plan, snapshot
from chaos.figures import Enough, Figure, together
from chaos.fleet import Fleet
from chaos.history import Log, read
from chaos.nemesis import Nemesis
from chaos.story import Goals
from support.proxy import Proxy
from support.server import Server

LEASE, INTERVAL, GRACE, CONCURRENCY = 1_500, 400, 800, 10
ENOUGH, JOBS, STRIKES = 60, 10_000, 50
"""Seconds from which a run must have had so many jobs and strikes, all seeds together."""

PREFIX = "chaos"
CRON = ["first", "second"]
WORKERS, PRODUCERS, SCHEDULERS = 3, 2, 3
DRAIN = 60.0
"""Seconds that the drain may take."""


def crew(urls: list[str], seed: int, rate: float) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Who takes part: role, settings and options for each place."""
    places: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    for place, url in enumerate(urls):
        settings: dict[str, Any] = {"url": url, "prefix": PREFIX, "connect_timeout": 3_000}
        if place < WORKERS:
            settings |= {
                "idle_timeout": LEASE, "reclaimer_interval": INTERVAL, "concurrency": CONCURRENCY,
                "block_timeout": 2_000, "grace_period": GRACE, "connect_timeout": 20_000,
            }  # fmt: skip
            places.append(("worker", settings, {}))
        elif place < WORKERS + PRODUCERS:
            crash = {"crash": 40} if place == WORKERS else {}
            options = {"rate": rate / PRODUCERS, "seed": seed, "lease": LEASE, **crash}
            places.append(("producer", settings, options))
        else:
            places.append(("scheduler", settings | {"connect_timeout": 20_000}, {"names": CRON}))
    return places


async def run(folder: Path, seed: int, seconds: float, rate: float, binary: str) -> list[Figure]:
    """One run of one seed: storm, coda, drain, flush, proof."""
    log = Log(folder, "nemesis")
    async with contextlib.AsyncExitStack() as stack:
        server = Server()
        server.binary = binary or server.binary
        server.start("--appendonly", "yes", "--appendfsync", "always")
        stack.callback(server.close)
        begun = int(time.time()) * 1000
        with server.client() as client:
            for name in CRON:
                client.hset(f"{PREFIX}:cron", name, str(begun))
                log("cron", note=name, number=begun)
        proxies = [await stack.enter_async_context(Proxy(server.port)) for _ in range(WORKERS + PRODUCERS + SCHEDULERS)]
        fleet = Fleet(folder, log, crew([proxy.url for proxy in proxies], seed, rate))
        stack.callback(fleet.close)
        for place in range(len(proxies)):
            fleet.start(place)
        watching = asyncio.create_task(fleet.watch())
        stack.callback(watching.cancel)
        nemesis = Nemesis(log, fleet, server, proxies, prefix=PREFIX, lease=LEASE / 1000)
        await asyncio.sleep(1.5)
        await storm(nemesis, plan.schedule(seed, seconds))
        (folder / "calm").touch()
        await coda(nemesis, fleet)
        await fleet.dismiss("producer")
        await fleet.dismiss("scheduler")
        before = await drained(server, fleet)
        await nemesis.flush()
        await nemesis.served(5.0)
        await drained(server, fleet)
        await fleet.dismiss("worker")
        found = before.then(await asyncio.to_thread(_look, server))
        (folder / "snapshot").write_text(repr(found))
        watching.cancel()
    goals = Goals(LEASE / 1000, INTERVAL / 1000, GRACE / 1000, CONCURRENCY)
    figures = checker.figures(read(folder), found, goals)
    return [Enough("faults", [], None, nemesis.struck), *figures]


async def storm(nemesis: Nemesis, strikes: list[plan.Strike]) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with asyncio.TaskGroup() as group:
        for strike in strikes:
            await asyncio.sleep(max(0.0, begun + strike.at - loop.time()))
            group.create_task(nemesis.strike(strike))


async def coda(nemesis: Nemesis, fleet: Fleet) -> None:
    fleet.next_point = ""
    await asyncio.sleep(plan.REST)
    for kind, pause in plan.CODA:
        await nemesis.lull(all=kind in ("kill-worker", "malformed"))
        if kind.endswith("worker"):
            await asyncio.to_thread(nemesis.load, 700 if kind.startswith("kill") else GRACE * 2)
            await asyncio.sleep(0.1)
        await nemesis.strike(plan.Strike(0.0, kind, 0.0, 0.5, ""))
        await (nemesis.heard_again(16.0) if kind == "hole" else nemesis.served(6.0))
        await asyncio.sleep(pause)


async def drained(server: Server, fleet: Fleet) -> snapshot.Snapshot:
    """Until nothing waits, and no consumer is left but of those that live. Gives up: the figures tell then.

    What it returns has of the consumers only those that were left behind.
    """
    loop = asyncio.get_running_loop()
    deadline, quiet = loop.time() + DRAIN, 0
    while True:
        await asyncio.sleep(0.1)
        living = [member.name for member in fleet.of("worker")]
        found = await asyncio.to_thread(_look, server)
        found.consumers = [who for who in found.consumers if who.split(":", 1)[1].rsplit("~", 1)[0] not in living]
        quiet = 0 if found.waiting or found.consumers else quiet + 1
        if quiet == 3 or loop.time() > deadline:  # one that moves from key to key may be missed by one look
            return found


def _look(server: Server) -> snapshot.Snapshot:
    with server.client() as client:
        return snapshot.take(client, PREFIX)


def table(title: str, figures: list[Figure]) -> Table:
    made = Table("figure", "goal", "measured", title=title, title_justify="left")
    for figure in figures:
        made.add_row(figure.name, figure.goal, figure.measured if figure.ok else f"[bold red]{figure.measured}")
    return made


def misses(figures: list[Figure], console: Console) -> bool:
    """Says what is missed, and whether anything is."""
    bad = [figure for figure in figures if not figure.ok]
    for figure in bad:
        console.print(f"[bold red]{figure.name}[/]: {figure.measured}", highlight=False)
        for detail in figure.details[:10]:
            console.print("   ", detail, markup=False, highlight=False)
    return bool(bad)


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description="Kills and faults, and the proof that nothing was lost.")
    parser.add_argument("--seconds", type=float, default=60, help="of strikes, all seeds together (default: 60)")
    parser.add_argument("--seeds", default="1,2,3,4", help="each is a run of its own; a seed replays its schedule")
    parser.add_argument("--rate", type=float, default=200, help="jobs a second that are asked for")
    parser.add_argument("--servers", default="", help="paths of server programs, for the seeds in turn")
    parser.add_argument("--keep", type=Path, help="a folder for the histories, logs and snapshots")
    given = parser.parse_args()
    seeds, binaries = [int(seed) for seed in given.seeds.split(",")], given.servers.split(",")
    console = Console(width=None if sys.stdout.isatty() else 140)
    runs, well = [], True
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends what was started, too
    for place, seed in enumerate(seeds):
        folder = given.keep / str(seed) if given.keep else Path(tempfile.mkdtemp(prefix="backstage-chaos-"))
        folder.mkdir(parents=True, exist_ok=True)
        binary = binaries[place % len(binaries)]
        figures = asyncio.run(run(folder, seed, given.seconds / len(seeds), given.rate, binary))
        console.print(f"seed {seed} {binary}: {figures[0].measured} faults, {figures[1].measured} jobs lost")
        if misses(
            [figure for figure in figures if figure.sampled], console
        ):  # of the others another seed may have some
            well = False
            again = f"--seeds {seed} --seconds {given.seconds / len(seeds):g}"
            console.print(f"histories and logs: {folder}. Again: {again}")
        elif not given.keep:
            shutil.rmtree(folder)
        runs.append(figures)
    figures = whole(runs, given.seconds)
    console.print(table(f"{len(seeds)} seeds, {given.seconds:g} s of strikes", figures))
    if given.seconds < ENOUGH:
        console.print(f"shorter than {ENOUGH} s: how many jobs and faults there were does not count")
    well = well and all(figure.ok for figure in figures)
    console.print("[green]all figures reached" if well else "[bold red]figures missed")
    return 0 if well else 1


def whole(runs: list[list[Figure]], seconds: float) -> list[Figure]:
    """The figures of all seeds together, with as many jobs and strikes as they should have had."""
    faults, *figures = together(runs)
    jobs = next(figure.of or 0 for figure in figures if figure.name == checker.LOST)
    counted = seconds >= ENOUGH
    assert isinstance(faults, Enough)
    return [
        Enough("jobs", [], None, jobs, JOBS if counted else 0),
        Enough("faults", [], None, faults.count, STRIKES if counted else 0),
        *figures,
    ]


if __name__ == "__main__":
    sys.exit(main())
