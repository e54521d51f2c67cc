"""What each room costs: microseconds of one job, at each step of its way. `make bench ARGS=--rooms`

Each step by itself, 500 jobs at a time: of ours the best of many tries, of the server the processor's time of them all.
So it tells where the time goes, not how fast the whole is. The story is in docs/decisions/0006-speed.md.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import hiredis
import uvloop
from redis.asyncio import Redis

from backstage import Client, Delivery, Job, JsonSerializer, Outcome, Stream, Worker, blobs
from backstage.keys import Keys
from backstage.outcome import DONE
from backstage.reader import Reader
from backstage.ready import Ready
from backstage.scripts import load
from backstage.serializer import encode_all
from backstage.worker.executor import Executor, Policy
from backstage.worker.limits import Limits
from backstage.worker.slots import Slots
from backstage.worker.threads import Threads
from benchmarks.server import Server

N = 500
"""Jobs at a time: a batch."""

TRIES = 50
KEYS = Keys("backstage")
PAYLOAD = {"n": 100_001, "to": "someone@example.com", "text": "x" * 42}

Step = tuple[str, float]


class Lane:
    """In the place of a connection: it answers each read with the same entries."""

    run_id = "r" * 40

    def __init__(self, reply: object) -> None:
        self._reply = reply

    async def call(self, *args: object, timeout: float | None = None) -> object:
        return self._reply

    async def many(self, commands: Sequence[object]) -> list[object]:
        return [self._reply for _ in commands]


def best(work: Callable[[], object]) -> float:
    """Microseconds of one job, where `work` does N of them."""
    found = []
    for _ in range(TRIES):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return min(found) / N * 1e6


async def best_awaited(work: Callable[[], Awaitable[object]], jobs: int = N) -> float:
    """The same for coroutines, in time of the processor: others' waiting is not in it."""
    found = []
    for _ in range(TRIES):
        begun = time.process_time()
        await work()
        found.append(time.process_time() - begun)
    return min(found) / jobs * 1e6


# ---- a drained job ---------------------------------------------------------------------------------------------------


async def drained() -> list[Step]:
    """A no-op job from the server's reply to the finish that is sent."""
    raw = reply_of([entry(n) for n in range(N)])

    def understood() -> Any:
        reader = hiredis.Reader()
        reader.feed(raw)
        return reader.gets()

    reply = understood()
    lane: Any = Lane(reply)
    reader = Reader(lane, "group", "me~1")
    reader.serve({KEYS.stream("default"): "default"})
    deliveries = await reader.take(N, 0)
    stream = Stream(Redis())
    worker = Worker()

    @worker.on("noop")
    async def noop(payload: object) -> None:
        pass

    done: list[Delivery] = []

    def settle(delivery: Delivery, outcome: Outcome) -> None:
        assert outcome is DONE
        done.append(delivery)

    why: dict[Delivery, Any] = {}
    executor = Executor(
        {"noop": noop}.get, policies={"default": Policy()}, serializer=JsonSerializer(), middleware=(),
        max_deliveries=5, limits=Limits(lambda delivery: None), threads=Threads(1), why=why, now=lambda: 0,
        ready=worker._ready, client=worker,
    )  # fmt: skip
    slots = Slots(100, ["default"], executor.execute, settle, lambda: 0, why)

    async def run() -> None:
        slots.feed(deliveries)
        while len(done) < N:
            await asyncio.sleep(0)
        done.clear()

    def execute() -> None:
        for delivery in deliveries:
            try:  # noqa: SIM105  which would be measured too
                executor.execute(delivery).send(None)
            except StopIteration:
                pass

    def hold() -> None:
        stream._hold(deliveries)
        stream.drop(deliveries)

    def finish() -> None:
        plain = {"default": [delivery.entry_id.decode() for delivery in deliveries]}
        blobs.finish(KEYS, plain, [], lane.run_id, group="group", consumer="me~1", delete=True, encode=repr)

    decode = JsonSerializer().decoder(object)
    await run()  # the executor makes its plan at the first job
    return [
        ("hiredis understands the reply", best(understood)),
        ("deliveries are made of it", await best_awaited(lambda: reader.take(N, 0))),
        ("they are held, and dropped at the end", best(hold)),
        ("they start, run and are settled", await best_awaited(run)),
        ("– of which the executor, handler included", best(execute)),
        ("– – of which JSON", best(lambda: [decode(delivery.fields[3]) for delivery in deliveries])),
        ("the blob for the finish", best(finish)),
    ]


def entry(n: int) -> bytes:
    """An entry of a stream, as RESP."""
    payload = JsonSerializer().encode({**PAYLOAD, "n": 100_000 + n})
    fields = [b"taskName", b"noop", b"payload", payload, b"enqueuedAt", b"1790000000000", b"jobId", b"i" * 36]
    return b"*2\r\n" + bulk(b"1790000000000-%d" % n) + b"*8\r\n" + b"".join(map(bulk, fields))


def reply_of(entries: Sequence[bytes]) -> bytes:
    head = b"*1\r\n*2\r\n" + bulk(KEYS.stream("default").encode())
    return head + b"*%d\r\n" % len(entries) + b"".join(entries)


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text)


# ---- an enqueued job -------------------------------------------------------------------------------------------------


async def enqueued(url: str) -> list[Step]:
    """A job of `enqueue_many`, step by step; one of 1,000 concurrent enqueues, and what that costs by itself."""
    serializer = JsonSerializer()
    payloads = [PAYLOAD] * N
    texts = encode_all(serializer, payloads)

    def blob() -> None:
        blobs.enqueue(KEYS, [Ready("noop", text, "default") for text in texts], "call", 20_000)

    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[str]] = []

    def answer() -> None:
        for future in waiting:
            future.set_result("id")
        waiting.clear()

    def asked() -> asyncio.Future[str]:
        if not waiting:
            loop.call_soon(answer)
        waiting.append(loop.create_future())
        return waiting[-1]

    async def call() -> str:
        return await asked()

    async with Client(url=url) as client:
        await client.enqueue("noop", PAYLOAD)
        return [
            ("`Job(…)`", best(lambda: [Job("noop", PAYLOAD) for _ in range(N)])),
            ("payloads become JSON", best(lambda: encode_all(serializer, payloads))),
            ("what is sent, ids, and the blob", best(blob)),
            ("gather of 1,000 futures", await best_awaited(
                lambda: asyncio.gather(*[asked() for _ in range(1000)]), 1000)),
            ("gather of 1,000 coroutines that wait for a future each", await best_awaited(
                lambda: asyncio.gather(*[call() for _ in range(1000)]), 1000)),
            ("gather of 1,000 `client.enqueue(…)`", await best_awaited(
                lambda: asyncio.gather(*[client.enqueue("noop", PAYLOAD) for _ in range(1000)]), 1000)),
        ]  # fmt: skip


# ---- the server ------------------------------------------------------------------------------------------------------


def served(server: Server) -> list[Step]:
    """The server's part: commands as they stand, and our scripts."""
    payload = JsonSerializer().encode(PAYLOAD)
    fields = [b"taskName", b"noop", b"payload", payload, b"enqueuedAt", b"1790000000000", b"jobId", b"i" * 36]
    plain = b"*11\r\n" + b"".join(map(bulk, [b"XADD", KEYS.stream("default").encode(), b"*", *fields]))
    stream, group = KEYS.stream("default"), "group"
    connection = socket.create_connection(("127.0.0.1", server.port))

    def talk(request: bytes, replies: int) -> list[Any]:
        connection.sendall(request)
        reader = hiredis.Reader()
        found: list[Any] = []
        while len(found) < replies:
            reply = reader.gets()
            if reply is False:
                reader.feed(connection.recv(1 << 20))
            else:
                assert not isinstance(reply, hiredis.ReplyError), reply
                found.append(reply)
        return found

    def command(*words: str | bytes | int) -> bytes:
        parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        return b"*%d\r\n" % len(parts) + b"".join(map(bulk, parts))

    def script(name: str, keys: Sequence[str], blob: bytes) -> bytes:
        talk(command("SCRIPT", "LOAD", load(name).text), 1)
        return command("EVALSHA", load(name).sha, len(keys), *keys, blob)

    def spent(calls: Callable[[], object]) -> float:
        """Microseconds of the server's processor for one job, where each of TRIES calls is for N of them."""
        before = processor(server)
        for _ in range(TRIES):
            calls()
        return (processor(server) - before) / TRIES / N * 1e6

    def scripted_adds() -> list[bytes]:
        ready = [Ready("noop", payload.decode(), "default") for _ in range(N)]
        return [script("enqueue", *blobs.enqueue(KEYS, ready, str(n), 20_000)) for n in range(TRIES)]

    def taken() -> list[str]:
        read = command("XREADGROUP", "GROUP", group, "me~1", "COUNT", N, "STREAMS", stream, ">")
        [[[_, entries]]] = talk(read, 1)
        return [id.decode() for id, _ in entries]

    def settled(request: Callable[[list[str]], bytes], replies: int) -> float:
        """A read and a finish, each a round trip."""
        talk(command("FLUSHALL"), 1)
        talk(command("XGROUP", "CREATE", stream, group, "0", "MKSTREAM"), 1)
        for _ in range(TRIES):
            talk(plain * N, N)
        return spent(lambda: talk(request(taken()), replies))

    def scripted_finish(ids: list[str]) -> bytes:
        made = blobs.finish(KEYS, {"default": ids}, [], "r", group=group, consumer="me~1", delete=True, encode=repr)
        return command("EVALSHA", load("finish").sha, len(made.keys), *made.keys, made.blob)

    try:
        talk(command("SCRIPT", "LOAD", load("finish").text), 1)
        adds = scripted_adds()
        steps = [
            ("pipelined XADD", spent(lambda: talk(plain * N, N))),
            ("enqueue.lua", spent(lambda: talk(adds.pop(), 1))),
        ]
        native = settled(lambda ids: command("XACK", stream, group, *ids) + command("XDEL", stream, *ids), 2)
        return [
            *steps,
            ("XREADGROUP, XACK, XDEL", native),
            ("XREADGROUP, finish.lua", settled(scripted_finish, 1)),
        ]
    finally:
        connection.close()


def processor(server: Server) -> float:
    """Seconds that the server's process has computed."""
    told: Any = server.redis.info("cpu")
    return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


def table(server: Server) -> str:
    """All steps, as Markdown."""
    version = ".".join(map(str, sys.version_info[:2]))
    gc.disable()  # collections fall where they fall; the best of many tries is the same with them, only later
    try:
        tables = {
            f"a drained job, Python {version}": uvloop.run(drained()),
            f"an enqueued job, Python {version}": uvloop.run(enqueued(server.url)),
            f"the server, {server.version}, with {N} jobs a round trip": served(server),
        }
    finally:
        gc.enable()
    lines = []
    for title, steps in tables.items():
        lines += ["", f"| {title} | µs |", "|---|---:|", *(f"| {step} | {cost:.2f} |" for step, cost in steps)]
    return "\n".join(lines[1:])
