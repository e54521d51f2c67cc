"""The nemesis: does to processes, server and network what a schedule says, and writes down when."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Awaitable, Callable

import redis

from chaos import snapshot
from chaos.fleet import Fleet, Member
from chaos.history import Log
from chaos.jobs import QUEUES
from chaos.plan import Strike
from chaos.story import SILENCE
from support.proxy import Proxy
from support.server import Server

PROBES = 9


class Nemesis:
    """`proxies` stand before the places of the fleet, by number. `lease` in seconds."""

    def __init__(
        self, log: Log, fleet: Fleet, server: Server, proxies: list[Proxy], *, prefix: str, lease: float
    ) -> None:
        self._log, self._fleet, self._server, self._proxies = log, fleet, server, proxies
        self._prefix, self._lease = prefix, lease
        self._number = 0
        self._put_there: list[tuple[str, str]] = []
        """Stream and entry of the last jobs that we put there ourselves."""
        self._silenced, self._read, self._loud = "", 0, 0.0
        self._down = asyncio.Lock()
        self.struck = 0

    async def strike(self, strike: Strike) -> None:
        """One strike, to its end."""
        role = next((role for role in ("worker", "producer", "scheduler") if strike.kind.endswith(role)), "worker")
        able = [member for member in self._fleet.of(role) if not member.busy]
        method: Callable[[Strike, Member], Awaitable[None]] | None
        method = getattr(self, "on_" + strike.kind.replace("-", "_"), None)
        if method is None:
            await self._at_large(strike)
        elif len(able) > (1 if role == "worker" else 0):  # one worker stays unharmed: else nothing could be measured
            member = able[int(strike.pick * len(able))]
            member.busy = True
            self.struck += 1
            try:
                await method(strike, member)
            finally:
                member.busy = False

    # ---- processes ---------------------------------------------------------------------------------------------------

    async def on_kill(self, strike: Strike, member: Member) -> None:
        self._log("strike", note=strike.kind, target=member.name)
        member.signal(signal.SIGKILL)

    on_kill_worker = on_kill_producer = on_kill_scheduler = on_kill

    async def on_kill_point(self, strike: Strike, member: Member) -> None:
        """Makes room for a worker that will kill itself at a named place."""
        self._fleet.next_point = strike.point
        self._log("strike", note="term", target=member.name)
        member.signal(signal.SIGTERM)

    async def on_freeze_worker(self, strike: Strike, member: Member) -> None:
        async with self._during("freeze", member.name):
            member.signal(signal.SIGSTOP)
            await asyncio.sleep(self._lease * (1.1 + 0.6 * strike.span))
            member.signal(signal.SIGCONT)

    async def on_term_worker(self, strike: Strike, member: Member) -> None:
        self._log("strike", note=strike.kind, target=member.name)
        member.signal(signal.SIGTERM)

    async def on_term_worker_twice(self, strike: Strike, member: Member) -> None:
        await self.on_term_worker(strike, member)
        await asyncio.sleep(0.2 * strike.span)
        if member.alive:
            self._log("strike", note=strike.kind, target=member.name)
            member.signal(signal.SIGTERM)

    # ---- network -----------------------------------------------------------------------------------------------------

    async def on_cut(self, strike: Strike, member: Member) -> None:
        async with self._during("cut", member.name):
            self._proxies[member.place].cut(int(strike.span * 600), replies=strike.pick < 0.7)
            await asyncio.sleep(0.3)

    async def on_hole(self, strike: Strike, member: Member) -> None:
        proxy = self._proxies[member.place]
        async with self._during("hole", member.name):
            proxy.hole()
            await asyncio.sleep(0.5 + 2.5 * strike.span)
            proxy.heal()
        history = self._fleet.history(member.name)
        self._silenced, self._read = member.name, history.stat().st_size if history.exists() else 0
        self._loud = time.monotonic() + SILENCE + self._lease

    async def on_mute(self, strike: Strike, member: Member) -> None:
        async with self._during("mute", member.name):
            self._proxies[member.place].drop_replies()
            await asyncio.sleep(0.3)
        self._loud = time.monotonic() + SILENCE + self._lease

    async def on_delay(self, strike: Strike, member: Member) -> None:
        proxy = self._proxies[member.place]
        async with self._during("delay", member.name):
            proxy.delay = 0.02 + 0.1 * strike.span
            await asyncio.sleep(0.3 + strike.span)
            proxy.heal()

    # ---- server ------------------------------------------------------------------------------------------------------

    async def _at_large(self, strike: Strike) -> None:
        """What hits everybody. One after the other, for they undo each other."""
        act = {
            "restart": self._restart, "crash": self._crash, "client-kill": self._client_kill, "pause": self._pause,
            "script-flush": self._script_flush, "group-destroy": self._group_destroy, "memory": self._memory,
        }  # fmt: skip
        async with self._down:
            self.struck += 1
            if strike.kind == "malformed":
                await self.plant()
                await asyncio.to_thread(self._probe, strike.kind)
                return
            hit = QUEUES[int(strike.pick * 3)] if strike.kind == "group-destroy" else ""
            async with self._during(strike.kind, group=hit):
                await asyncio.to_thread(act[strike.kind], strike)
            if strike.kind != "memory":
                await asyncio.to_thread(self._probe, strike.kind)

    def _restart(self, strike: Strike) -> None:
        self._server.stop()
        self._server.start()

    def _crash(self, strike: Strike) -> None:
        self._server.kill()
        self._server.start()

    def _client_kill(self, strike: Strike) -> None:
        with self._server.client() as client:
            for kind in ("normal", "pubsub"):
                client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    def _pause(self, strike: Strike) -> None:
        ms = int(100 + 900 * strike.span)
        with self._server.client() as client:
            client.execute_command("CLIENT", "PAUSE", ms, "WRITE" if strike.pick < 0.5 else "ALL")
            time.sleep(ms / 1000)

    def _script_flush(self, strike: Strike) -> None:
        with self._server.client() as client:
            client.script_flush()

    def _group_destroy(self, strike: Strike) -> None:
        # A stream that nobody has made yet has no group.
        with self._server.client() as client, contextlib.suppress(redis.exceptions.ResponseError):
            client.xgroup_destroy(f"{self._prefix}:{QUEUES[int(strike.pick * 3)]}", "backstage-workers")

    async def flush(self) -> None:
        """FLUSHALL: only when all is done, for what is there is lost."""
        self.struck += 1
        async with self._during("flushall"):
            await asyncio.to_thread(self._flush)
        await asyncio.to_thread(self._probe, "flushall")

    def _flush(self) -> None:
        with self._server.client() as client:
            client.flushall()

    def _memory(self, strike: Strike) -> None:
        with self._server.client() as client:
            client.config_set("maxmemory", "1mb")
            time.sleep(0.3 + 0.7 * strike.span)
            client.config_set("maxmemory", "0")

    # ---- input -------------------------------------------------------------------------------------------------------

    async def plant(self) -> None:
        """What is no job, wherever jobs come from."""
        self._next()
        bad = [
            {"taskName": "plain", "payload": '{"token": MARK'},
            {"taskName": "plain", "note": "MARK"},
            {"payload": '"MARK"', "taskname": "plain"},
        ]
        members = ["MARK", '{"taskName": "plain", "payload": "{}", "streamKey": "elsewhere:MARK"}', '["MARK"]']
        self._log("strike", note="malformed")
        await asyncio.to_thread(self._plant, bad, members)
        self._log("over", note="malformed")

    def _plant(self, bad: list[dict[str, str]], members: list[str]) -> None:
        with self._server.client() as client:
            for place, fields in enumerate(bad):
                mark = f"bad.{self._number}.{place}"
                self._log("plant", token=mark)
                client.xadd(f"{self._prefix}:{QUEUES[place]}", {k: v.replace("MARK", mark) for k, v in fields.items()})
            for place, member in enumerate(members):
                mark = f"bad.{self._number}.m{place}"
                self._log("plant", token=mark)
                key = ("scheduled", "retries")[place % 2]
                client.zadd(f"{self._prefix}:{key}", {member.replace("MARK", mark): int(time.time() * 1000)})

    def _probe(self, kind: str) -> None:
        """Jobs, put there at once by somebody who is not hit, to see how soon one is taken."""
        self._put(PROBES, "plain", f"probe.{self._next()}", 0, probe=kind)

    def load(self, ms: int) -> None:
        """Work for half of the slots, so that what ends a worker hits some, and the others have room."""
        self._put(15, "plain", f"load.{self._next()}", ms)

    async def lull(self, *, all: bool = False) -> None:
        """Until all workers are there and nothing waits for long; `all`: and no connection is silent. Or 15 s."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(15):
                while (
                    sum(map(self._works, self._fleet.of("worker"))) < self._fleet.size("worker")
                    or (all and time.monotonic() < self._loud)
                    or await asyncio.to_thread(self._behind)
                ):
                    await asyncio.sleep(0.05)

    def _works(self, worker: Member) -> bool:
        """Whether it has taken a job yet."""
        history = self._fleet.history(worker.name)
        if not history.exists():
            return False
        with history.open("rb") as file:
            return b'"what":"take"' in file.read(65_536)

    async def served(self, seconds: float) -> None:
        """Until the jobs that we put there last are done, or so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await asyncio.to_thread(self._unserved):
                    await asyncio.sleep(0.05)

    def _unserved(self) -> bool:
        with self._server.client() as client:
            return any(client.xrange(key, entry, entry) for key, entry in self._put_there)

    async def heard_again(self, seconds: float) -> None:
        """Until the worker whose network went silent has taken a job again, or so many seconds."""
        history = self._fleet.history(self._silenced) if self._silenced else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while history and b'"what":"take"' not in history.read_bytes()[self._read :]:
                    await asyncio.sleep(0.2)

    def _behind(self) -> bool:
        with self._server.client() as client:
            return snapshot.take(client, self._prefix).undelivered > 20

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _put(self, many: int, task: str, name: str, ms: int, probe: str = "") -> None:
        self._put_there = []
        with self._server.client() as client:
            for place in range(many):
                token, queue = f"{name}.{place}", QUEUES[place % 3]
                payload = json.dumps({"token": token, "ms": ms})
                self._log("enq?", token=token, note=task)
                fields = {"taskName": task, "payload": payload, "enqueuedAt": "1", "jobId": token}
                key = f"{self._prefix}:{queue}"
                self._put_there.append((key, str(client.xadd(key, fields))))
                if probe:
                    self._log("probe", token=token, note=probe, group=queue)
                self._log("enq!", token=token, id=token)

    @contextlib.asynccontextmanager
    async def _during(self, kind: str, target: str = "", group: str = ""):  # type: ignore[no-untyped-def]
        begun = time.monotonic()
        self._log("strike", note=kind, target=target, group=group)
        try:
            yield
        finally:
            self._log("over", note=kind, target=target, group=group, since=begun)
