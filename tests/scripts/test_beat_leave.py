"""beat.lua and leave.lua: the registry of workers, which lapses by itself, and the orderly way out of it."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from keyspace import GROUP, ME, OTHER, Keyspace

TTL = 60_000


def beat(space: Keyspace, consumer: str = ME, *, ttl: int = TTL, facts: tuple[str, ...] = ("host", "h1")) -> Any:
    return space.run("beat", [space.keys.workers, space.keys.worker("w1")], consumer, ttl, facts)


def leave(space: Keyspace, *streams: str) -> Any:
    return space.run("leave", [space.keys.workers, space.keys.worker("w1"), *streams], GROUP, ME)


def test_a_beat_tells_when_and_who(space: Keyspace) -> None:
    """Score and `seen` are the server's ms, which is the answer too; both keys lapse."""
    before = space.now()
    now = int(beat(space))
    assert before <= now <= space.now()
    assert space.members(space.keys.workers) == {ME: now}
    assert space.db.hgetall(space.keys.worker("w1")) == {b"seen": str(now).encode(), b"host": b"h1"}
    for key in (space.keys.workers, space.keys.worker("w1")):
        assert TTL - 5_000 < space.db.pttl(key) <= TTL


def test_beating_again_begins_anew_and_drops_the_dead(space: Keyspace) -> None:
    """Workers that have not beaten for the TTL are out of the registry; a worker without facts is in it."""
    space.db.zadd(space.keys.workers, {"dead~1": space.now() - TTL - 1, "young~1": space.now() - TTL + 30_000})
    beat(space)
    beat(space, facts=())
    assert set(space.members(space.keys.workers)) == {ME, "young~1"}


@pytest.mark.parametrize("bad", ["workers", "worker"])
def test_a_wrong_type_changes_nothing(space: Keyspace, bad: str) -> None:
    """An error, and no half of a beat: the registry and the worker's own key belong together."""
    space.plant(space.keys.workers if bad == "workers" else space.keys.worker("w1"))
    state = space.state()
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        beat(space)
    assert space.state() == state


def test_with_full_memory_workers_still_live(own: Keyspace) -> None:
    """A beat is not refused: nobody takes a busy worker for a dead one."""
    own.fill()
    beat(own)
    assert list(own.members(own.keys.workers)) == [ME]
    assert own.db.pttl(own.keys.worker("w1")) > 0


def test_leaving_takes_the_consumer_out_of_all_groups(space: Keyspace) -> None:
    """The others' consumers and entries stay; the registry forgets the worker."""
    low, default = space.queue("low"), space.queue()
    (held,) = space.held(low, consumer=OTHER)
    for key in (low, default):
        space.db.xgroup_createconsumer(key, GROUP, ME)
    beat(space)
    beat(space, OTHER)
    assert leave(space, low, default) == 0
    assert [c["name"] for c in space.db.xinfo_consumers(low, GROUP)] == [OTHER.encode()]
    assert space.db.xinfo_consumers(default, GROUP) == []
    assert space.pending(low) == {held: (OTHER, 1)}
    assert list(space.members(space.keys.workers)) == [OTHER]
    assert not space.db.exists(space.keys.worker("w1"))


def test_what_is_still_held_stays_to_be_reclaimed(space: Keyspace) -> None:
    """A consumer with pending entries is not deleted, for they would be thrown away; it is counted instead."""
    low, default = space.queue("low"), space.queue()
    (held,) = space.held(low)
    space.db.xgroup_createconsumer(default, GROUP, ME)
    assert leave(space, low, default) == 1
    assert space.pending(low) == {held: (ME, 1)}
    assert space.db.xinfo_consumers(default, GROUP) == []


@pytest.mark.parametrize("state", ["no key", "no group", "wrong type", "workers"])
def test_what_is_missing_or_of_the_wrong_type_is_no_obstacle(space: Keyspace, state: str) -> None:
    """The other groups are left, and the worker's own key is deleted."""
    low, default = space.keys.stream("low"), space.queue()
    space.db.xgroup_createconsumer(default, GROUP, ME)
    beat(space)
    match state:
        case "no group":
            space.add(low)
        case "wrong type":
            space.plant(low)
        case "workers":
            space.plant(space.keys.workers)
    assert leave(space, low, default) == 0
    assert space.db.xinfo_consumers(default, GROUP) == []
    assert not space.db.exists(space.keys.worker("w1"))


def test_leaving_twice_is_harmless(own: Keyspace) -> None:
    """With full memory too."""
    key = own.queue()
    own.fill()
    assert (leave(own, key), leave(own, key)) == (0, 0)
