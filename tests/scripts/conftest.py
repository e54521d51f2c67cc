"""Keyspaces for the script tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from keyspace import Keyspace

from support.server import Server


@pytest.fixture
def space(server: Server, prefix: str) -> Iterator[Keyspace]:
    """A keyspace on the shared server."""
    with redis.Redis(unix_socket_path=server.socket) as db:
        yield Keyspace(db, prefix)


@pytest.fixture
def own(own_server: Server, prefix: str) -> Iterator[Keyspace]:
    """A keyspace on a server of its own, which may be filled."""
    with redis.Redis(unix_socket_path=own_server.socket) as db:
        yield Keyspace(db, prefix)
