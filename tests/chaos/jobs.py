"""The jobs of a chaos run: every kind of end that a job can have."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from backstage import Discard, Next, Run, Worker
from chaos.history import Log, running

Payload: TypeAlias = dict[str, Any]
Handler: TypeAlias = Callable[[Payload, Run], Awaitable[object]]

WEIGHTS = {
    "fast": 30, "plain": 20, "delayed": 14, "thread": 8, "chain": 8, "flaky": 6, "dedupe": 10, "hopeless": 2,
    "discard": 2, "soft": 1, "hard": 1, "invalid": 1, "long": 1, "blocking": 0.1,
}  # fmt: skip
"""How often each kind is asked for. `crash` comes once a run."""

DEAD = {
    "hopeless": "error", "discard": "discarded", "soft": "timeout", "hard": "timeout", "invalid": "invalid-payload",
    "crash": "crash-loop",
}  # fmt: skip
"""Kinds that end in the dead letter, and the reason."""

CHILDREN = 2
QUEUES = ("urgent", "default", "low")


def make(kind: str, token: str, dice: random.Random, lease: int) -> tuple[str, Any, dict[str, Any]]:
    """Task, payload and options of one job. `lease` in ms."""
    options: dict[str, Any] = {"queue": dice.choice(QUEUES)}
    payload: Any = {"token": token, "ms": dice.randint(0, 20)}
    match kind:
        case "delayed":
            options["delay"] = dice.randint(20, 2000)
        case "dedupe":
            options["dedupe"] = {"key": f"g{dice.randrange(1 << 30)}", "ttl": 3_600_000}
        case "flaky":
            payload["fails"] = dice.randint(1, 2)
            options |= {"attempts": 4, "backoff": {"type": "fixed", "delay": dice.randint(10, 300)}}
        case "hopeless":
            options |= {"attempts": 2, "backoff": {"type": "fixed", "delay": 50}}
        case "long":
            payload["ms"] = int(lease * 1.5)
        case "blocking":
            payload["ms"] = int(lease * 1.2)
        case "soft":
            options["attempts"] = 1
        case "invalid":
            payload = [token]
    task = "plain" if kind in ("delayed", "dedupe", "long") else kind
    return task, payload, options


def register(worker: Worker, log: Log) -> None:
    """The handlers. Each says when it starts and how it ends."""

    @worker.on("fast")
    async def fast(payload: Payload) -> None:  # without a Run: the executor's short way
        log("start", note="fast", **_facts(payload["token"]))
        log("end", note="returned", **_facts(payload["token"]))

    @worker.on("thread")
    def thread(payload: Payload, run: Run) -> None:
        facts = _facts(payload["token"])
        log("start", note="thread", **facts)
        time.sleep(payload["ms"] / 1000)
        log("end", note="returned", **facts)

    def told(name: str, fn: Handler, **options: Any) -> None:
        @worker.on(name, **options)
        async def handler(payload: Payload, run: Run) -> object:
            facts = _facts(payload.get("token") or run.job.id)
            log("start", note=name, **facts)
            try:
                result = await fn(payload, run)
            except BaseException as exc:
                log("end", note=type(exc).__name__, **facts)
                raise
            log("end", note="returned", **facts)
            return result

    for name in ("plain", "leaf", "tick", "invalid"):
        told(name, _sleep)
    told("chain", _chain)
    told("flaky", _flaky)
    told("hopeless", _hopeless)
    told("discard", _discard)
    told("blocking", _block)
    told("crash", _crash)
    told("soft", _forever, soft_timeout=150)
    told("hard", _forever, hard_timeout=150)


def _facts(token: str) -> dict[str, Any]:
    return {"token": token, "number": running.get()}


async def _sleep(payload: Payload, run: Run) -> None:
    """For `ms`; in a later delivery for `later` ms, if that is given."""
    ms = payload.get("ms", 0)
    await asyncio.sleep((ms if run.deliveries == 1 else payload.get("later", ms)) / 1000)


async def _chain(payload: Payload, run: Run) -> list[Next]:
    await _sleep(payload, run)
    options: list[dict[str, Any]] = [{"queue": "low"}, {"queue": "default", "delay": 100}]
    return [
        Next("leaf", {"token": f"{payload['token']}/{number}"}, **options[number % 2]) for number in range(CHILDREN)
    ]


async def _flaky(payload: Payload, run: Run) -> None:
    await _sleep(payload, run)
    if run.attempt <= payload["fails"]:
        raise ValueError("not yet")


async def _hopeless(payload: Payload, run: Run) -> None:
    raise ValueError("never")


async def _discard(payload: Payload, run: Run) -> None:
    raise Discard("no use")


async def _block(payload: Payload, run: Run) -> None:
    time.sleep(payload["ms"] / 1000)


async def _crash(payload: Payload, run: Run) -> None:
    await asyncio.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)


async def _forever(payload: Payload, run: Run) -> None:
    await asyncio.sleep(3600)
