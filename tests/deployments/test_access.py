"""Who may connect, and by which way: access rules of each role, Unix sockets, logins that change."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis

from backstage import (
    Broadcast,
    Client,
    CronTask,
    Inspector,
    Job,
    Next,
    RedisRefused,
    RedisUnavailable,
    Retry,
    Scheduler,
    Worker,
)
from support.server import Server
from support.waiting import wait_until

RUNBOOK = Path(__file__).parents[2] / "docs" / "runbook.md"


def documented() -> dict[str, list[str]]:
    """Role → access rules, from the table in docs/runbook.md."""
    text = RUNBOOK.read_text().partition("## Access rules")[2]
    block = re.search(r"```text\n(.+?)```", text, re.DOTALL)
    assert block is not None
    roles: dict[str, list[str]] = {}
    for line in block[1].splitlines():
        words = line.split()
        if not line.startswith(" "):
            role = words.pop(0)
        roles.setdefault(role, []).extend(words)
    return roles


class Access:
    """A server with one user for each role, who has exactly the documented rights."""

    def __init__(self, server: Server) -> None:
        self.server, self.admin = server, server.client()
        for role, rules in documented().items():
            self.admin.execute_command("ACL", "SETUSER", role, "reset", "on", f">{role}-canary", *rules)

    def url(self, role: str) -> str:
        return f"redis://{role}:{role}-canary@127.0.0.1:{self.server.port}"

    def denied(self) -> list[tuple[str, str]]:
        """Who was refused what, but for what the docs say may be refused."""
        log = self.admin.execute_command("ACL", "LOG")
        found = [(entry["username"], entry["object"]) for entry in log]
        return [
            each
            for each in found
            if each[1] not in ("info", "client|kill", "client|setinfo", "hello", "client|maint_notifications")
        ]


@pytest.fixture
def access(own_server: Server) -> Iterator[Access]:
    found = Access(own_server)
    yield found
    found.admin.close()


def grant(access: Access, role: str, *rules: str) -> None:
    access.admin.execute_command("ACL", "SETUSER", role, *rules)


async def test_least_rights(access: Access) -> None:
    """Each role does all that it is for with exactly the rights that docs/runbook.md gives, on real connections.

    A producer enqueues, delays and dedupes; a worker runs, retries, chains, buries, listens to the control channel and
    renews; the reader counts and lists. Nobody is refused anything but INFO and CLIENT KILL.
    """
    worker = Worker(url=access.url("worker"), idle_timeout=600, reclaimer_interval=200, block_timeout=500)
    ran: list[str] = []

    @worker.on("step", backoff={"type": "fixed", "delay": 10})
    async def step(name: str) -> Next | None:
        ran.append(name)
        if name == "retry" and ran.count("retry") == 1:
            raise Retry
        if name == "dead":
            raise ValueError
        if name == "long":
            await asyncio.sleep(1.0)
        return Next(step, "chained", delay=10) if name == "chain" else None

    async with worker.running(), Client(url=access.url("producer")) as producer:
        await producer.enqueue("step", "dead", attempts=1)
        await producer.enqueue("step", "retry", dedupe="k", timeout=5_000)
        await producer.enqueue("step", "retry", dedupe="k")
        await producer.schedule("step", "later", timedelta(milliseconds=30), dedupe="l")
        await producer.enqueue_many([Job("step", "many"), Job("step", "chain"), Job("step", "long")])
        expected = {"dead", "retry", "later", "many", "chain", "chained", "long"}
        await wait_until(lambda: set(ran) == expected and ran.count("retry") == 2, 5.0, "all steps have run")
        listening = access.admin.pubsub_numsub("backstage:control")
        assert listening == [("backstage:control", 1)]
        async with Client(url=access.url("reader")) as reader:
            inspector = Inspector(reader)
            await wait_until(lambda: access.admin.xlen("backstage:default") == 0)
            queues = await inspector.queues()
            assert (queues.dead, queues.complete) == (1, True)
            (dead,) = await inspector.dead("default")
            assert dead.reason == "error"
            assert [each.id for each in await inspector.workers()] == [worker.worker_id]
    assert access.denied() == []


async def test_a_scheduler(access: Access) -> None:
    """Records its schedule and adds the job of a slot that was missed."""
    hour = CronTask("* * * * *", "tick", name="minutely")
    access.admin.hset("backstage:cron", "minutely", "1")
    async with Scheduler(schedules=[hour], url=access.url("scheduler")).running():
        await wait_until(lambda: access.admin.xlen("backstage:default") == 1)
    assert access.denied() == []


async def test_broadcasts(access: Access) -> None:
    """What a worker with broadcast handlers needs besides, and who sends, as docs/runbook.md has it."""
    grant(access, "worker", "+xread", "+xinfo|stream")
    worker, heard = Worker(url=access.url("worker")), []
    broadcast = Broadcast(worker=worker)

    @broadcast.on("word")
    async def word(text: str) -> None:
        heard.append(text)

    async with worker.running(), Client(url=access.url("producer")) as producer:
        await Broadcast(client=producer).send("word", "hello")
        await wait_until(lambda: heard == ["hello"])
    assert access.denied() == []


@pytest.mark.parametrize(
    ("role", "command"),
    [
        ("producer", ("XREADGROUP", "GROUP", "g", "c", "STREAMS", "backstage:default", ">")),
        ("producer", ("XRANGE", "backstage:default", "-", "+")),
        ("producer", ("SUBSCRIBE", "backstage:control")),
        ("worker", ("FLUSHALL",)),
        ("worker", ("CONFIG", "GET", "*")),
        ("worker", ("GET", "other:key")),
        ("worker", ("SUBSCRIBE", "other")),
        ("scheduler", ("XREADGROUP", "GROUP", "g", "c", "STREAMS", "backstage:default", ">")),
        ("reader", ("XADD", "backstage:default", "*", "f", "v")),
        ("reader", ("DEL", "backstage:default")),
    ],
)
def test_no_more_than_that(access: Access, role: str, command: tuple[str, ...]) -> None:
    """The documented rights end where the role does."""
    with redis.Redis.from_url(access.url(role)) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)


async def test_a_right_that_is_missing(access: Access) -> None:
    """The error says so, Redis 7.0 without naming it; the password is in no text."""
    grant(access, "producer", "-xadd")
    async with Client(url=access.url("producer")) as client:
        with pytest.raises(RedisRefused, match=r"xadd|can.t run this command") as caught:
            await client.enqueue("t", 1)
    assert "canary" not in str(caught.value)


async def test_a_unix_socket_with_a_login(access: Access) -> None:
    """`unix://user:password@/path`: lanes, the lease thread and the control channel go by the socket."""
    url = f"unix://worker:worker-canary@{access.server.socket}"
    worker, ran = Worker(url=url, idle_timeout=300), []

    @worker.on("step")
    async def step(n: int) -> None:
        await asyncio.sleep(0.5)
        ran.append(n)

    async with worker.running():
        await worker.enqueue("step", 1)
        await wait_until(lambda: ran == [1])
        clients = [c for c in access.admin.client_list() if c["user"] == "worker"]
        assert clients
        assert all(access.server.socket in each["addr"] for each in clients)
    assert worker.config.address == f"unix://{access.server.socket}"
    assert access.denied() == []


class Vault:
    """A provider whose password is changed now and then."""

    def __init__(self) -> None:
        self.password, self.asked, self.threads = "first", 0, 0

    def get_credentials(self) -> tuple[str, str]:
        self.threads += 1
        return "worker", self.password

    async def get_credentials_async(self) -> tuple[str, str]:
        self.asked += 1
        return "worker", self.password


async def test_a_credential_provider(access: Access) -> None:
    """It is asked at each connecting, by the lease thread too: a password that changes stops no worker."""
    vault = Vault()
    grant(access, "worker", "resetpass", ">first")
    worker = Worker(
        host="127.0.0.1", port=access.server.port, credential_provider=vault, idle_timeout=900, reclaimer_interval=200
    )
    ran: list[int] = []
    end = asyncio.Event()

    @worker.on("step")
    async def step(n: int) -> None:
        ran.append(n)
        await end.wait()

    async with worker.running():
        await worker.enqueue("step", 1)
        await wait_until(lambda: ran == [1] and vault.threads)
        grant(access, "worker", "resetpass", ">second")
        vault.password = "second"
        threads = vault.threads
        access.admin.execute_command("CLIENT", "KILL", "USER", "worker")
        await worker.enqueue("step", 2)
        await wait_until(lambda: ran == [1, 2] and vault.threads > threads)
        end.set()
        await wait_until(lambda: access.admin.xlen("backstage:default") == 0)
    assert ran == [1, 2]


async def test_a_provider_with_a_wrong_password(access: Access) -> None:
    """Is told as a refused login, without the password."""
    vault = Vault()
    async with Client(
        host="127.0.0.1", port=access.server.port, credential_provider=vault, connect_timeout=500
    ) as client:
        with pytest.raises(RedisUnavailable, match="refused the login") as caught:
            await client.enqueue("t", 1)
    assert "first" not in str(caught.value)
