"""Fixtures for every test. Without a server tests fail; they never skip."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from support.server import Server


def pytest_configure(config: pytest.Config) -> None:
    """What child processes inherit must not depend on who starts the tests."""
    # A shell starts what runs in its background with Ctrl-C ignored: tests send it.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Where nobody keeps bytecode, hundreds of children would compile everything anew: they keep it while the tests run.
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        kept = tempfile.TemporaryDirectory(prefix="backstage-bytecode-")
        os.environ["PYTHONPYCACHEPREFIX"] = kept.name
        config.add_cleanup(kept.cleanup)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server of this test process, shared by its tests: keep to your `prefix`, and don't flush, stop or tune it."""
    with Server() as running:
        yield running


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server for one test alone, to be restarted, killed, flushed and tuned."""
    with Server() as running:
        yield running


@pytest.fixture
def prefix() -> str:
    """A key prefix that no other test uses."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def url(server: Server) -> str:
    """The address of the shared server."""
    return server.url


@pytest.fixture(name="redis")
async def redis_client(url: str) -> AsyncIterator[Redis]:
    """An asyncio client of the shared server, which speaks `str`."""
    async with Redis.from_url(url, decode_responses=True) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_left_running(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a thread of ours, or an asyncio task, behind."""
    before = set(threading.enumerate())
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("no_tasks_left")
    yield
    ours = [t for t in threading.enumerate() if t not in before and t.name.startswith("backstage")]
    for thread in ours:
        thread.join(1.0)  # told to end, it may need a moment
    left = [thread.name for thread in ours if thread.is_alive()]
    assert not left, f"threads left running: {left}"


@pytest.fixture
async def no_tasks_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)  # what was cancelled a moment ago may end
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"asyncio tasks left running: {[repr(task) for task in left]}"
