"""Lane: one connection, calls answered in their turn, nothing repeated; a lost connection takes no more jobs."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest
import redis.exceptions
from redis.asyncio import Redis

from backstage.errors import RedisRefused, RedisUnavailable
from backstage.lane import Lane, NoGroup, dialer
from backstage.scripts import load, pack
from support.server import Server
from support.waiting import wait_until

Open = Callable[..., Lane]


@pytest.fixture
async def lane_to() -> AsyncIterator[Open]:
    """Makes lanes, and closes them after the test."""
    lanes: list[Lane] = []

    def make(url: str, *, timeout: float = 5.0, decode_responses: bool = False) -> Lane:
        client = Redis.from_url(url, decode_responses=decode_responses)
        lanes.append(Lane(dialer(client, connect_timeout=2.0), timeout=timeout))
        return lanes[-1]

    yield make
    for lane in lanes:
        await lane.close()


@pytest.fixture
def lane(lane_to: Open, url: str) -> Lane:
    return lane_to(url)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def kill(server: Server, lane: Lane) -> None:
    with server.client() as other:
        other.execute_command("CLIENT", "KILL", "ID", lane.client_id)


async def test_calls_in_flight_are_answered_in_their_turn(lane: Lane) -> None:
    """A hundred at once, single and in bundles, over one connection."""
    singles = [lane.call("ECHO", str(n)) for n in range(100)]
    bundles = [lane.many([("ECHO", f"{n}a"), ("ECHO", f"{n}b")]) for n in range(100)]
    answers = await asyncio.gather(*(one for pair in zip(singles, bundles, strict=True) for one in pair))
    assert answers[::2] == [str(n).encode() for n in range(100)]
    assert answers[1::2] == [[f"{n}a".encode(), f"{n}b".encode()] for n in range(100)]
    assert lane.connects == 1


@pytest.mark.parametrize("decode_responses", [True, False])
async def test_answers_are_bytes_however_the_client_is_set(lane_to: Open, url: str, decode_responses: bool) -> None:
    """The client only tells where the server is."""
    assert await lane_to(url, decode_responses=decode_responses).call("ECHO", b"\xff") == b"\xff"


async def test_a_refusal_stands_in_its_place(lane: Lane, prefix: str) -> None:
    """In a bundle it is an item of the list; alone it is raised; the connection is none the worse."""
    first, refusal, last = await lane.many([("ECHO", "a"), ("NO-SUCH-COMMAND",), ("ECHO", "b")])
    assert (first, last) == (b"a", b"b")
    assert isinstance(refusal, redis.exceptions.ResponseError)
    with pytest.raises(RedisRefused, match="unknown command"):
        await lane.call("NO-SUCH-COMMAND")
    with pytest.raises(NoGroup):
        await lane.call("XREADGROUP", "GROUP", "g", "c", "STREAMS", f"{prefix}:none", ">")
    assert lane.connects == 1


async def test_a_lost_connection_fails_all_that_is_in_flight(lane: Lane, server: Server, prefix: str) -> None:
    """Nothing is repeated behind the caller's back; the next call opens a new connection."""
    await lane.greet()
    waiting = [asyncio.create_task(lane.call("BLPOP", f"{prefix}:none", "0"))]
    waiting += [asyncio.create_task(lane.call("INCR", f"{prefix}:n")) for _ in range(3)]
    await asyncio.sleep(0)
    await kill(server, lane)
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer) for answer in answers] == [RedisUnavailable] * 4
    assert await lane.call("EXISTS", f"{prefix}:n") == 0
    assert lane.connects == 2


async def test_a_call_that_is_cancelled_drops_the_connection(lane: Lane, prefix: str) -> None:
    """Its answer can't be told from the next one's; what else is in flight fails."""
    await lane.greet()
    first = asyncio.create_task(lane.call("BLPOP", f"{prefix}:none", "0"))
    second = asyncio.create_task(lane.call("ECHO", "x"))
    await asyncio.sleep(0)
    first.cancel()
    answers = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(answer) for answer in answers] == [asyncio.CancelledError, RedisUnavailable]
    assert await lane.call("ECHO", "y") == b"y"
    assert lane.connects == 2


async def test_a_call_that_is_cancelled_before_its_turn_mixes_up_nothing(lane: Lane, prefix: str) -> None:
    """The same for one that waits behind another."""
    await lane.greet()
    first = asyncio.create_task(lane.call("BLPOP", f"{prefix}:none", "0"))
    second, third = (asyncio.create_task(lane.call("ECHO", text)) for text in "xy")
    await asyncio.sleep(0)
    second.cancel()
    answers = await asyncio.gather(first, second, third, return_exceptions=True)
    assert [type(a) for a in answers] == [RedisUnavailable, asyncio.CancelledError, RedisUnavailable]
    assert await lane.call("ECHO", "z") == b"z"


async def test_an_answer_that_does_not_come_in_time(lane_to: Open, url: str, prefix: str) -> None:
    """RedisUnavailable after the timeout, the lane's or the call's own; the next call gets a new connection."""
    lane = lane_to(url, timeout=0.05)
    await lane.greet()
    with pytest.raises(RedisUnavailable, match="no answer"):
        await lane.call("BLPOP", f"{prefix}:none", "0")
    with pytest.raises(RedisUnavailable):
        await lane.call("BLPOP", f"{prefix}:none", "0", timeout=0.01)
    assert await lane.call("BLPOP", f"{prefix}:none", "0.1", timeout=5) is None


async def test_calls_at_the_same_time_open_one_connection(lane: Lane, server: Server) -> None:
    """Whoever comes first connects, the others wait for it."""
    await asyncio.gather(*(lane.call("PING") for _ in range(20)))
    await kill(server, lane)
    await asyncio.gather(*(lane.call("PING") for _ in range(5)), return_exceptions=True)
    begun = time.monotonic()
    await asyncio.gather(*(lane.call("PING") for _ in range(20)))
    assert lane.connects == 2
    assert time.monotonic() - begun < 1  # a loop may hang on a socket that was written to after it had failed


async def test_without_a_server(lane_to: Open, own_server: Server) -> None:
    """RedisUnavailable while it is away; works again once it is back, with another run id."""
    lane = lane_to(own_server.url)
    before = await lane.greet()
    own_server.kill()
    for _ in range(2):
        with pytest.raises(RedisUnavailable):
            await lane.call("PING")
    own_server.start()
    assert await lane.call("PING") == b"PONG"
    assert lane.run_id not in (before, "")


@pytest.mark.parametrize("how", ["closed by us", "half open"])
async def test_the_former_connection_is_killed_on_the_same_server(
    lane_to: Open, server: Server, url: str, prefix: str, how: str
) -> None:
    """A read that the server still holds for it would take jobs that nobody gets."""
    lane = lane_to(url)
    await lane.greet()
    former = lane.client_id
    reading = asyncio.create_task(lane.call("BLPOP", f"{prefix}:jobs", "0"))
    await asyncio.sleep(0)
    left = lane._conn
    if how == "half open":
        lane._conn = None  # we gave it up, the server didn't notice
    else:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    await lane.call("RPUSH", f"{prefix}:other", "x")
    with server.client() as other:
        assert str(former) not in {client["id"] for client in other.client_list()}
    await asyncio.gather(reading, return_exceptions=True)
    assert lane.client_id != former
    assert left is not None


async def test_on_another_server_nobody_is_killed(lane_to: Open, own_server: Server) -> None:
    """After a restart the former id may be somebody else's connection."""
    lane = lane_to(own_server.url)
    await lane.greet()
    own_server.restart(persist=False)
    with own_server.client() as other:
        while other.client_id() < lane.client_id:  # until somebody has the id that was the lane's
            other.connection_pool.disconnect()
        mine = other.client_id()
        lane.client_id = mine
        with pytest.raises(RedisUnavailable):
            await lane.call("PING")
        await lane.call("PING")
        assert other.client_id() == mine


async def test_scripts_are_loaded_once_and_again_after_a_flush(lane_to: Open, own_server: Server, prefix: str) -> None:
    """SCRIPT FLUSH, or another server: NOSCRIPT means that it has not run, so it is loaded and sent again."""
    lane = lane_to(own_server.url)

    async def beat() -> bytes:
        keys = [f"{prefix}:workers", f"{prefix}:workers:w"]
        found: bytes = await lane.script(load("beat"), keys, pack(("me~1", 1000, [])))
        return found

    with own_server.client() as other:
        other.config_resetstat()
        for _ in range(3):
            assert len(await beat()) == 13
        other.script_flush()
        await asyncio.gather(*(beat() for _ in range(5)))
        stats = other.info("commandstats")
        assert stats["cmdstat_evalsha"]["calls"] - stats["cmdstat_evalsha"]["failed_calls"] == 8
    own_server.kill()
    own_server.start()
    with pytest.raises(RedisUnavailable):
        await beat()
    assert len(await beat()) == 13


async def test_a_call_for_one_server_process_reaches_no_other(lane_to: Open, own_server: Server) -> None:
    """With `server`, a run id, nothing is sent after a restart."""
    lane = lane_to(own_server.url)
    former = await lane.greet()
    assert await lane.many([("SET", "k", "1")], server=former) == [b"OK"]
    own_server.restart(persist=False)
    for _ in range(2):
        with pytest.raises(RedisUnavailable):
            await lane.many([("SET", "k", "2")], server=former)
    assert await lane.call("GET", "k") is None
    assert await lane.many([("SET", "k", "3")], server=await lane.greet()) == [b"OK"]


@pytest.mark.parametrize(
    ("options", "commands", "refused"),
    [
        ((), [("REPLICAOF", "127.0.0.1", "1")], "READONLY"),
        ((), [("CONFIG", "SET", "replica-serve-stale-data", "no"), ("REPLICAOF", "127.0.0.1", "1")], "MASTERDOWN"),
        (("--cluster-enabled", "yes", "--cluster-port"), [], "CLUSTERDOWN"),
        ((), [("CONFIG", "SET", "min-replicas-to-write", "1")], "NOREPLICAS"),
    ],
)
async def test_what_passes_by_itself_counts_as_away(
    lane_to: Open, own_server: Server, options: tuple[str, ...], commands: list[tuple[str, ...]], refused: str
) -> None:
    """A failover, a cluster that mends itself: unavailable, not refused, so that callers try again."""
    if options:
        own_server.kill()
        own_server.start(*options, str(free_port()))
    with own_server.client() as other:
        for command in commands:
            other.execute_command(*command)
    with pytest.raises(RedisUnavailable, match=refused) as caught:
        await lane_to(own_server.url).call(*(("GET", "k") if refused == "MASTERDOWN" else ("SET", "k", "v")))
    assert caught.type is RedisUnavailable


@pytest.mark.parametrize("word", ["OOM", "NOPERM", "WRONGTYPE"])
async def test_what_stays_so_is_refused(lane_to: Open, own_server: Server, word: str) -> None:
    """Memory full, no permission, another type: RedisRefused, with the server's own word for it."""
    with own_server.client() as other:
        other.lpush("k", "v")
        if word == "OOM":
            other.config_set("maxmemory", 1)
        elif word == "NOPERM":
            other.acl_setuser("default", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-incr"])
    with pytest.raises(RedisRefused, match=word):
        await lane_to(own_server.url).call("INCR", "k")


async def test_a_server_that_tells_nothing_is_served_all_the_same(lane_to: Open, own_server: Server) -> None:
    """Without the permission for INFO and CLIENT the lane works."""
    with own_server.client() as other:
        other.acl_setuser("default", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-info", "-client"])
    lane = lane_to(own_server.url)
    assert await lane.call("SET", "k", "v") == b"OK"
    assert lane.run_id.startswith("unknown-")


async def test_closing_fails_what_is_in_flight(lane: Lane, prefix: str) -> None:
    """And the lane can be used again."""
    waiting = asyncio.create_task(lane.call("BLPOP", f"{prefix}:none", "0"))
    await wait_until(lambda: lane.client_id)
    await asyncio.sleep(0)
    await lane.close()
    with pytest.raises(RedisUnavailable):
        await waiting
    assert await lane.call("ECHO", "x") == b"x"
