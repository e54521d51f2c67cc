"""A server that may throw jobs away."""

from __future__ import annotations

import logging

import pytest

from backstage import Worker
from support.server import Server


@pytest.mark.parametrize(
    ("memory", "policy", "warned"),
    [("50mb", "allkeys-lru", True), ("50mb", "noeviction", False), ("0", "allkeys-lru", False)],
)
async def test_an_evicting_policy_is_warned_of_at_start(
    own_server: Server, caplog: pytest.LogCaptureFixture, memory: str, policy: str, warned: bool
) -> None:
    """A worker says at its start when the server would make room by dropping keys, and jobs with them."""
    with own_server.client() as admin:
        admin.config_set("maxmemory", memory)
        admin.config_set("maxmemory-policy", policy)
    worker = Worker(url=own_server.url)

    @worker.on("t")
    async def handle() -> None: ...

    with caplog.at_level(logging.WARNING, logger="backstage"):
        async with worker.running():
            pass
    assert any(policy in line for line in caplog.messages) is warned
