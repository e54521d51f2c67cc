"""A server that is there and can't serve: LOADING, BUSY, MISCONF, READONLY, full, paused, crowded. And what follows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
import redis.exceptions
from redis.asyncio import Redis
from stage import Site

from backstage import Client, RedisRefused, Worker
from support.server import Server
from support.waiting import wait_until


async def test_a_server_that_loads_its_data_is_waited_for(site: Site) -> None:
    """LOADING counts as away: an enqueue waits, the worker goes on, and nothing runs twice."""
    server = site.server
    await asyncio.to_thread(server.stop)
    slowly = ("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
    await asyncio.to_thread(server.start, *slowly)
    with server.client() as admin:
        for n in range(1_500):
            admin.set(f"filler:{n}", "x" * 1_000)
    async with site.worker.running():
        await site.consumes()
        await asyncio.to_thread(server.stop, save=True)
        starting = asyncio.create_task(asyncio.to_thread(server.start))
        await wait_until(lambda: _says(server, b"LOADING"), timeout=10)
        waiting = asyncio.create_task(site.client.enqueue("job", 1))
        await starting
        assert await waiting
        await wait_until(lambda: site.ended[1])
        await site.consumes()
        await site.settled()
    assert set(site.runs.values()) == {1}


def _says(server: Server, word: bytes) -> bool:
    """Whether a PING is answered so; a driver would wait for another answer."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            probe.connect(server.socket)
            probe.sendall(b"PING\r\n")
            return word in probe.recv(100)
    except OSError:
        return False


async def test_a_long_script_of_somebody_else_is_waited_out(site: Site) -> None:
    """BUSY counts as away: the running job keeps its lease, an enqueue waits, and all goes on when it is killed."""
    with site.server.client() as admin:
        admin.config_set("busy-reply-threshold", 20)
        async with site.worker.running():
            await site.feed(50)
            await wait_until(lambda: len(site.runs) >= 10)
            with _endless_script(site.server):
                await wait_until(lambda: _says(site.server, b"BUSY"))
                waiting = asyncio.create_task(site.client.enqueue("job", 100))
                begun = asyncio.get_running_loop().time()
                await wait_until(lambda: asyncio.get_running_loop().time() - begun > 1)
                assert not waiting.done()
                admin.script_kill()
            await waiting
            await wait_until(lambda: len(site.ended) == 51)
            await site.consumes()
            await site.settled()
    assert set(site.runs.values()) == {1}


@contextlib.contextmanager
def _endless_script(server: Server) -> Iterator[None]:
    def run() -> None:
        with server.client() as other, contextlib.suppress(redis.exceptions.ResponseError):
            other.eval("while true do end", 0)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join(10)


async def test_a_server_whose_snapshots_fail_refuses_and_is_used_again_when_they_work(site: Site) -> None:
    """MISCONF: an enqueue fails with the server's words; what runs is kept, and is settled once."""
    blocker = site.server.folder / "dump.rdb"
    blocker.mkdir()  # a snapshot can't be renamed onto a folder
    (blocker / "file").touch()
    with site.server.client() as admin:
        admin.config_set("save", "3600 1")
        async with site.worker.running():
            await site.consumes()
            await site.feed(30)
            await wait_until(lambda: len(site.runs) >= 5)
            admin.bgsave()
            await wait_until(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err")
            with pytest.raises(RedisRefused, match="MISCONF"):
                await site.client.enqueue("job", 100)
            (blocker / "file").unlink()
            blocker.rmdir()
            admin.bgsave()
            await wait_until(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "ok")
            await wait_until(lambda: len(site.ended) >= 31)
            await site.consumes()
            await site.settled()
    assert set(site.runs.values()) == {1}
    assert 100 not in site.runs


async def test_a_primary_that_became_a_replica_is_waited_for(site: Site) -> None:
    """READONLY counts as away: an enqueue waits until it is a primary again, and what ran meanwhile is settled once."""
    with Server() as other, site.server.client() as here, other.client() as there:
        here.config_set("repl-diskless-sync-delay", 0)
        there.config_set("repl-diskless-sync-delay", 0)
        there.replicaof("127.0.0.1", str(site.server.port))
        await wait_until(lambda: there.info("replication")["master_link_status"] == "up")
        async with site.worker.running():
            await site.feed(100)
            await wait_until(lambda: len(site.runs) >= 20)
            here.set("mark", "")  # WAIT waits for what its own connection wrote, and for all before it
            assert here.wait(1, 5_000) == 1
            there.replicaof("NO", "ONE")
            here.replicaof("127.0.0.1", str(other.port))
            await wait_until(lambda: here.info("replication")["master_link_status"] == "up")
            waiting = asyncio.create_task(site.client.enqueue("job", 200))
            begun = asyncio.get_running_loop().time()
            await wait_until(lambda: asyncio.get_running_loop().time() - begun > 0.5)
            assert not waiting.done()
            here.replicaof("NO", "ONE")
            await waiting
            await wait_until(lambda: len(site.ended) == 101)
            await site.consumes()
            await site.settled()
    assert set(site.ended) == {*range(100), 200, -102}


@pytest.mark.parametrize("mode", ["ALL", "WRITE"])
async def test_a_paused_server_costs_no_job_and_no_second_run(mode: str, site: Site) -> None:
    """CLIENT PAUSE for half a lease, in mid-work: each job runs exactly once."""
    async with site.worker.running(), Redis.from_url(site.server.url) as admin:
        await site.feed(200)
        await wait_until(lambda: len(site.runs) >= 50)
        await admin.execute_command("CLIENT", "PAUSE", 2_500, mode)
        held = len(site.runs)
        await wait_until(lambda: len(site.ended) == 200, timeout=15)
        assert held < 200
        await site.settled()
    assert Counter(site.runs.values()) == {1: 200}


async def test_a_pause_longer_than_a_lease_loses_nothing(own_server: Server) -> None:
    """What could not be renewed in time may run twice, and ends once in Redis."""
    site = Site(own_server, lease=1_000)
    async with site.client, site.worker.running(), Redis.from_url(own_server.url) as admin:
        await site.feed(100)
        await wait_until(lambda: len(site.runs) >= 30)
        await admin.execute_command("CLIENT", "PAUSE", 2_500, "ALL")
        await wait_until(lambda: len(site.ended) == 100, timeout=15)
        await wait_until(lambda: _nothing_pending(admin))  # what was acknowledged twice over is trimmed in a minute
        assert await admin.xlen("backstage:default:dead-letter") == 0


async def _nothing_pending(admin: Redis) -> bool:
    return not (await admin.xpending("backstage:default", "backstage-workers"))["pending"]


async def test_a_server_without_connections_left_is_waited_for(site: Site) -> None:
    """maxclients: refused connections count as away; consuming again within two seconds after there is room."""
    async with site.worker.running(), Redis.from_url(site.server.url) as admin:
        await site.consumes()
        await admin.config_set("maxclients", 1)
        await admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        waiting = asyncio.create_task(site.client.enqueue("job", 1))
        begun = asyncio.get_running_loop().time()
        await wait_until(lambda: asyncio.get_running_loop().time() - begun > 1)
        assert not waiting.done()
        await admin.config_set("maxclients", 1_000)
        await waiting
        await wait_until(lambda: site.ended[1], timeout=2)
        await site.consumes()
        await site.settled()
    assert set(site.runs.values()) == {1}


async def test_with_full_memory_enqueues_are_refused_and_what_is_there_is_done(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """OOM with noeviction: RedisRefused says so; waiting jobs run, fail, are retried and die, and the worker warned."""
    worker, ran = Worker(url=own_server.url, attempts=2, backoff={"type": "fixed", "delay": 1}), Counter[str]()

    @worker.on("good")
    async def good(n: int) -> None:
        ran["good"] += 1

    @worker.on("bad")
    async def bad(n: int) -> None:
        ran["bad"] += 1
        raise ValueError

    async with Client(url=own_server.url) as client, Redis.from_url(own_server.url) as admin:
        async with worker.running():
            pass  # its group is there from now on; it could not be made in full memory
        for n in range(20):
            await client.enqueue("good", n)
            await client.enqueue("bad", n)
            await client.enqueue("good", n, delay=1)
        await admin.config_set("maxmemory", 1)
        with pytest.raises(RedisRefused, match="OOM"):
            await client.enqueue("good", 99)
        with caplog.at_level(logging.WARNING, logger="backstage"):
            async with worker.running():
                await wait_until(lambda: ran == {"good": 40, "bad": 40}, timeout=15)
                await wait_until(lambda: _dead(admin, 20))
        assert any("memory is nearly full" in line for line in caplog.messages)
        await admin.config_set("maxmemory", 0)
        async with worker.running():
            await client.enqueue("good", 100)
            await wait_until(lambda: ran["good"] == 41)


async def _dead(admin: Redis, many: int) -> bool:
    return bool(await admin.xlen("backstage:default:dead-letter") == many and not await admin.xlen("backstage:default"))
