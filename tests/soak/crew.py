"""The workers of a soak, as processes: handlers of every kind, and once a second what only the process itself knows."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from support.process import Process

SOURCE = """
from collections import Counter
from datetime import timedelta

worker.configure(schedules=[CronTask("* * * * *", "tick", queue="urgent", name="tick")])
broadcast = Broadcast(worker=worker)
counts, loops = Counter(), []

@broadcast.on("news")
async def news(n):
    counts["news"] += 1

@worker.on("plain")
async def plain(text):
    loops[:] = [asyncio.get_running_loop()]
    counts["plain"] += 1

@worker.on("slow")
async def slow(seconds):
    await asyncio.sleep(seconds)
    counts["slow"] += 1

@worker.on("thread")
def thread(n):
    time.sleep(0.01)
    counts["thread"] += 1

@worker.on("chain")
async def chain(n):
    counts["chain"] += 1
    return [Next("plain", "next", priority="low"), Next("plain", "later", delay=500)]

@worker.on("fails.once", attempts=2, backoff={"type": "fixed", "delay": 200})
async def fails_once(n, run: Run):
    if run.attempt == 1:
        raise ValueError(n)
    counts["fails.once"] += 1

@worker.on("dies", attempts=1)
async def dies(n):
    counts["dies"] += 1
    raise ValueError("x" * 1000)

@worker.on("times.out", attempts=1, soft_timeout=100)
async def times_out(n):
    try:
        await asyncio.sleep(10)
    except SoftTimeout:
        counts["times.out"] += 1

@worker.on("tick")
async def tick():
    counts["tick"] += 1

def report():
    while True:
        time.sleep(1)
        if loops:
            done = json.dumps(dict(counts), separators=(",", ":"))
            say("facts", len(asyncio.all_tasks(loops[0])), threading.active_count(), done)

threading.Thread(target=report, daemon=True).start()
"""


class Facts(NamedTuple):
    """What a worker's process is like."""

    memory: int
    files: int
    tasks: int
    threads: int


def worker(url: str, name: str) -> Process:
    """A worker process that hears every signal and writes warnings to its own log."""
    return Process.worker(SOURCE, url=url, worker_id=name, concurrency=50, idle_timeout=10_000)


def facts(process: Process) -> Facts | None:
    """None until it has told something of itself."""
    told = process.facts("facts")
    if not told:
        return None
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    files = len(os.listdir(f"/proc/{process.pid}/fd"))
    return Facts(pages * os.sysconf("SC_PAGE_SIZE"), files, int(told[-1].words[1]), int(told[-1].words[2]))


def counts(process: Process) -> Counter[str]:
    """How many of each it has done."""
    told = process.facts("facts")
    return Counter(json.loads(told[-1].words[3])) if told else Counter()
