"""Backstage only: what strict priority and fair prefetch cost when it matters.

python systems/shape_.py flood LOWER URGENT OUT   a worker of both; writes when each job started, as raw int64
python systems/shape_.py urge URGENT              enqueues one more, then these; prints when it began and ended
python systems/shape_.py hoard SHORT              a worker of SHORT jobs that do nothing and of others that last 3 s
"""

from __future__ import annotations

import array
import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from contract import TASK, URL, Payload, payload, run, say

from backstage import Client, Job, Worker

LONG = 3.0


def flood(lower: int, urgent: int, out: Path) -> None:
    """Lower jobs wait, and the urgent ones come in between."""
    worker = Worker(url=URL)
    starts = {"lower": array.array("q"), "urgent": array.array("q")}

    def handler(kind: str) -> None:
        times, other = starts[kind], starts["lower" if kind == "urgent" else "urgent"]

        async def handle(payload: Payload) -> None:
            times.append(time.monotonic_ns())
            if kind == "lower" and len(times) == 1:
                say({"ready": times[0]})
            if len(times) + len(other) == lower + urgent:
                os.kill(os.getpid(), signal.SIGTERM)

        worker.on(TASK if kind == "lower" else "urgent", handle)

    handler("lower")
    handler("urgent")
    worker.run()
    for kind, times in starts.items():
        out.with_suffix(f".{kind}").write_bytes(times.tobytes())
    say({"jobs": sum(map(len, starts.values()))})


async def urge(urgent: int) -> None:
    async with Client(url=URL) as client:
        await client.enqueue(TASK, payload(0))  # opens the connection
        began = time.monotonic_ns()
        await client.enqueue("urgent", payload(0), priority="urgent")
        await client.enqueue_many([Job("urgent", payload(n), priority="urgent") for n in range(urgent)])
        say({"jobs": urgent, "began": began, "ended": time.monotonic_ns()})


def hoard(short: int) -> None:
    """Ends by SIGTERM, which it doesn't wait for its long jobs to notice."""
    worker = Worker(url=URL, grace_period=0)
    running = 0

    async def handle(payload: Payload) -> None:
        nonlocal running
        if payload["n"] < short:
            return
        running += 1
        if running == 1:
            say({"long": time.monotonic_ns()})
        await asyncio.sleep(LONG)

    worker.on(TASK, handle)
    worker.run()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["flood", lower, urgent, out]:
            flood(int(lower), int(urgent), Path(out))
        case ["urge", urgent]:
            run(urge(int(urgent)))
        case ["hoard", short]:
            hoard(int(short))
        case _:
            sys.exit(__doc__)
