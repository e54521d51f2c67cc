"""Redis goes away, loses its data, or loses what a worker relies on: consuming again within two seconds."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import TypeAlias

import pytest
from redis.asyncio import Redis
from stage import BACK, Site

from backstage import Client, Job, RedisUnavailable
from support.server import Server
from support.waiting import wait_until

Fault: TypeAlias = Callable[[Redis], Awaitable[object]]

CONNECTIONS: dict[str, Fault] = {
    "SCRIPT FLUSH": lambda redis: redis.script_flush(),
    "CLIENT KILL": lambda redis: redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"),
}
DATA: dict[str, Fault] = {
    "FLUSHALL": lambda redis: redis.flushall(),
    "DEL": lambda redis: redis.delete("backstage:urgent", "backstage:default", "backstage:low"),
    "DEL one": lambda redis: redis.delete("backstage:default"),
    "XGROUP DESTROY": lambda redis: redis.xgroup_destroy("backstage:default", "backstage-workers"),
}


@pytest.mark.parametrize("fault", [*CONNECTIONS, *DATA])
async def test_an_idle_worker_consumes_again(fault: str, site: Site) -> None:
    """Whatever is pulled from under its blocked read: a job that is enqueued then runs within two seconds."""
    async with site.worker.running(), Redis.from_url(site.server.url) as redis:
        await site.consumes()
        await site.idle()
        await (CONNECTIONS | DATA)[fault](redis)
        await site.consumes()
    assert set(site.runs.values()) == {1}


@pytest.mark.parametrize("fault", CONNECTIONS)
async def test_a_busy_worker_loses_connections_and_no_job_runs_twice(fault: str, site: Site) -> None:
    """While hundreds of jobs run, again and again: each runs exactly once, and no two seconds pass without a start."""
    async with site.worker.running(), Redis.from_url(site.server.url) as redis:
        await site.feed(1_000)
        for share in (100, 300, 500, 700):
            await wait_until(lambda share=share: len(site.runs) >= share)
            await CONNECTIONS[fault](redis)
        await wait_until(lambda: len(site.ended) >= 1_000)
        await site.settled()
    assert Counter(site.runs.values()) == {1: 1_000}
    assert max(after - before for before, after in pairwise(site.starts)) < BACK


@pytest.mark.parametrize("fault", DATA)
async def test_a_busy_worker_whose_data_is_taken_away_consumes_again(fault: str, site: Site) -> None:
    """In the midst of running jobs: what is enqueued then runs within two seconds, and nothing is left pending."""
    async with site.worker.running(), Redis.from_url(site.server.url) as redis:
        await site.feed(50)
        await wait_until(lambda: len(site.runs) >= 20)
        await DATA[fault](redis)
        await site.consumes()
        await site.settled()
    assert fault != "XGROUP DESTROY" or len(site.ended) == 51


async def test_no_job_is_lost_or_run_twice_when_a_server_with_an_append_only_file_is_killed_and_restarted(
    own_server: Server,
) -> None:
    """In mid-work; consuming again within two seconds after it answers."""
    await asyncio.to_thread(own_server.stop)
    await asyncio.to_thread(own_server.start, "--appendonly", "yes")
    site = Site(own_server)
    async with site.client, site.worker.running():
        await site.feed(400)
        await wait_until(lambda: len(site.runs) >= 100)
        await asyncio.to_thread(own_server.kill)
        held = len(site.runs)
        await asyncio.to_thread(own_server.start)
        back = time.monotonic()
        await wait_until(lambda: len(site.runs) > held + 10)
        assert time.monotonic() - back < BACK
        await wait_until(lambda: len(site.ended) >= 400)
        await site.settled()
    assert Counter(site.runs.values()) == {1: 400}


async def test_a_worker_consumes_again_after_an_outage_that_took_all_data_with_it(site: Site) -> None:
    """Idle, three seconds without a server, then an empty one: within two seconds."""
    async with site.worker.running():
        await site.consumes()
        await asyncio.to_thread(site.server.kill)
        gone = time.monotonic()
        await wait_until(lambda: time.monotonic() - gone > 3)
        await asyncio.to_thread(site.server.start)
        await site.consumes()
    assert set(site.runs.values()) == {1}


async def test_an_enqueue_during_an_outage_succeeds_when_redis_is_back_in_time(site: Site) -> None:
    """Within connect_timeout it waits, and the job is there once, from a client that was connected and a new one."""
    async with Client(url=site.server.url) as fresh:
        await site.client.enqueue("job", 0)
        await asyncio.to_thread(site.server.restart, persist=True)
        await asyncio.to_thread(site.server.stop, save=True)
        waiting = [
            asyncio.create_task(client.enqueue("job", n))
            for n, client in enumerate((site.client, fresh, site.client), start=1)
        ]
        many = asyncio.create_task(site.client.enqueue_many([Job("job", n) for n in range(4, 10)]))
        begun = time.monotonic()
        await wait_until(lambda: time.monotonic() - begun > 0.7)
        assert not any(task.done() for task in (*waiting, many))
        await asyncio.to_thread(site.server.start)
        ids = [*await asyncio.gather(*waiting), *await many]
        assert len(set(ids)) == 9
        async with site.worker.running():
            await wait_until(lambda: len(site.ended) == 10)
    assert set(site.runs.values()) == {1}


async def test_an_enqueue_gives_up_after_connect_timeout_and_says_that_the_job_may_have_arrived(
    own_server: Server,
) -> None:
    """RedisUnavailable, about when it should; the same client works again once Redis is back."""
    async with Client(url=own_server.url, connect_timeout=500) as client:
        await client.enqueue("job", 0)
        await asyncio.to_thread(own_server.kill)
        begun = time.monotonic()
        for call in (client.enqueue("job", 1), client.enqueue_many([Job("job", 2)])):
            with pytest.raises(RedisUnavailable, match="may have arrived"):
                await call
        assert 0.3 < time.monotonic() - begun < 2
        await asyncio.to_thread(own_server.start)
        assert await client.enqueue("job", 3)


async def test_a_connection_that_went_silent_costs_an_enqueue_no_failure(own_server: Server) -> None:
    """Something on the way forgot it, and no answer ever comes: tried anew on another one, within the same budget."""
    silent: set[asyncio.StreamWriter] = set()
    connected: list[asyncio.StreamWriter] = []
    passing: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, owner: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if owner not in silent:
                writer.write(data)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(writer)
        behind, ahead = await asyncio.open_connection("127.0.0.1", own_server.port)
        passing.update(
            asyncio.create_task(each) for each in (copy(reader, ahead, writer), copy(behind, writer, writer))
        )

    proxy = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    async with Client(host="127.0.0.1", port=port, connect_timeout=2_000) as client:
        await client.enqueue("job", 0)
        silent.update(connected)
        assert await client.enqueue("job", 1)
    proxy.close()
    for writer in connected:
        writer.close()
    await asyncio.gather(*passing, return_exceptions=True)
    async with Redis.from_url(own_server.url) as redis:
        assert await redis.xlen("backstage:default") == 2
