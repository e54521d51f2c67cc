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
from chaos.fleet import Fleet
from chaos.history import Log, read
from chaos.nemesis import Nemesis
from chaos.story import Goals
from support.proxy import Proxy
from support.server import Server

LEASE, INTERVAL, CONCURRENCY = 1_500, 400, 10
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
                "block_timeout": 2_000, "grace_period": 800, "connect_timeout": 20_000,
            }  # fmt: skip
            places.append(("worker", settings, {}))
        elif place < WORKERS + PRODUCERS:
            crash = {"crash": 40} if place == WORKERS else {}
            options = {"rate": rate / PRODUCERS, "seed": seed, "lease": LEASE, **crash}
            places.append(("producer", settings, options))
        else:
            places.append(("scheduler", settings | {"connect_timeout": 20_000}, {"names": CRON}))
    return places


async def run(folder: Path, seed: int, seconds: float, rate: float, say: Any) -> list[checker.Figure]:
    """One run of one seed: storm, coda, drain, proof."""
    log = Log(folder, "nemesis")
    async with contextlib.AsyncExitStack() as stack:
        server = Server()
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
        await coda(nemesis, fleet, seconds)
        say(f"seed {seed}: {nemesis.struck} strikes; draining")
        await fleet.dismiss("producer")
        await fleet.dismiss("scheduler")
        await drained(server, fleet)
        await fleet.dismiss("worker")
        with server.client() as client:
            found = snapshot.take(client, PREFIX)
        (folder / "snapshot").write_text(repr(found))
        watching.cancel()
    goals = Goals(LEASE / 1000, INTERVAL / 1000, CONCURRENCY)
    figures = checker.figures(read(folder), found, goals)
    struck = checker.Figure("strikes", "", str(nemesis.struck), True)
    return [struck, *figures]


async def storm(nemesis: Nemesis, strikes: list[plan.Strike]) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with asyncio.TaskGroup() as group:
        for strike in strikes:
            await asyncio.sleep(max(0.0, begun + strike.at - loop.time()))
            group.create_task(nemesis.strike(strike))


async def coda(nemesis: Nemesis, fleet: Fleet, seconds: float) -> None:
    fleet.next_point = ""
    for producer in fleet.of("producer"):
        producer.signal(signal.SIGUSR1)
    await asyncio.sleep(plan.REST)
    for kind, pause in plan.coda(seconds):
        await nemesis.lull()
        if kind.endswith("worker"):
            await asyncio.to_thread(nemesis.load)
            await asyncio.sleep(0.1)
        await nemesis.strike(plan.Strike(0.0, kind, 0.0, 0.5, ""))
        await asyncio.sleep(pause)


async def drained(server: Server, fleet: Fleet) -> None:
    """Until nothing waits, and no consumer is left but of those that live. Gives up: the figures tell then."""
    loop = asyncio.get_running_loop()
    deadline, quiet = loop.time() + DRAIN, 0
    while loop.time() < deadline:
        await asyncio.sleep(0.1)
        living = [member.name for member in fleet.of("worker")]
        found = await asyncio.to_thread(_look, server)
        dead = [each for each in found.consumers if each.split(":", 1)[1].rsplit("~", 1)[0] not in living]
        quiet = 0 if found.waiting or dead else quiet + 1
        if quiet == 3:  # one that moves from key to key may be missed by one look
            return


def _look(server: Server) -> snapshot.Snapshot:
    with server.client() as client:
        return snapshot.take(client, PREFIX)


def report(title: str, figures: list[checker.Figure], console: Console) -> bool:
    table = Table("figure", "goal", "measured", title=title, title_justify="left")
    for figure in figures:
        table.add_row(figure.name, figure.goal, figure.measured if figure.ok else f"[bold red]{figure.measured}")
    console.print(table)
    bad = [figure for figure in figures if not figure.ok]
    for figure in bad:
        console.print(f"[bold red]{figure.name}[/]: {figure.measured}", highlight=False)
        for detail in figure.details[:10]:
            console.print("   ", detail, markup=False, highlight=False)
    return not bad


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description="Kills and faults, and the proof that nothing was lost.")
    parser.add_argument("--seconds", type=float, default=60, help="of strikes, all seeds together (default: 60)")
    parser.add_argument("--seeds", default="1,2,3,4", help="each is a run of its own; a seed replays its schedule")
    parser.add_argument("--rate", type=float, default=200, help="jobs a second that are asked for")
    parser.add_argument("--keep", type=Path, help="a folder for the histories, logs and snapshots")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    console = Console(width=None if sys.stdout.isatty() else 140)
    well = True
    for seed in seeds:
        folder = given.keep / str(seed) if given.keep else Path(tempfile.mkdtemp(prefix="backstage-chaos-"))
        folder.mkdir(parents=True, exist_ok=True)
        figures = asyncio.run(run(folder, seed, given.seconds / len(seeds), given.rate, console.print))
        good = report(f"seed {seed}", figures, console)
        if good and not given.keep:
            shutil.rmtree(folder)
        elif not good:
            console.print(
                f"histories and logs: {folder}. Again: --seeds {seed} --seconds {given.seconds / len(seeds):g}"
            )
        well = well and good
    console.print("[green]all figures reached" if well else "[bold red]figures missed")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
