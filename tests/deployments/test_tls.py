"""TLS: `rediss://`, with an authority of one's own and client certificates."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from backstage import Client, RedisUnavailable, Worker
from support.deployments import Tls
from support.server import Server
from support.waiting import wait_until


async def test_client_certificates(server: Server, prefix: str, tmp_path: Path) -> None:
    """All connections of a worker show the certificate: lanes, the lease thread's, and those of `worker.redis`."""
    front = Tls(server, tmp_path)
    async with front.listening() as address:
        url = (
            f"rediss://{address}?ssl_ca_certs={front.authority}"
            f"&ssl_certfile={front.certificate}&ssl_keyfile={front.key}"
        )
        worker, ran = Worker(url=url, prefix=prefix, idle_timeout=400, reclaimer_interval=100), []

        @worker.on("long")
        async def long(n: int) -> None:
            ran.append(await worker.redis.get(f"{prefix}:x"))
            await asyncio.sleep(1.0)  # longer than two leases
            ran.append(n)

        async with worker.running():
            await worker.enqueue("long", 1)
            await wait_until(lambda: 1 in ran)
        assert ran == [None, 1]
        assert front.clients == {"worker@example.com"}


@pytest.mark.parametrize("options", ["", "?ssl_ca_certs={authority}"])
async def test_who_is_not_trusted(server: Server, prefix: str, tmp_path: Path, options: str) -> None:
    """A server of an unknown authority, or a client without certificate: no connection, and the error says so."""
    front = Tls(server, tmp_path)
    async with front.listening() as address:
        url = f"rediss://{address}{options.format(authority=front.authority)}"
        async with Client(url=url, prefix=prefix, connect_timeout=500) as client:
            with pytest.raises(RedisUnavailable, match=r"^not enqueued within 500 ms"):
                await client.enqueue("t", 1)
        assert front.clients == set()
