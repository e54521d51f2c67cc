"""prune.lua: consumers that are gone, and entries that others acknowledged and left; nothing that may still run."""

from __future__ import annotations

import time
from typing import Any

import pytest
from keyspace import FOREIGN, GROUP, ME, OTHER, RELEASED, Keyspace

from support.waiting import wait_until_sync


@pytest.fixture
def key(space: Keyspace) -> str:
    return space.queue()


def prune(space: Keyspace, key: str, *, idle: int = 0, foreign: int = 0, trim: int = 1) -> Any:
    return space.run("prune", [key, space.keys.workers], GROUP, idle, foreign, trim)


def consumers(space: Keyspace, key: str) -> set[str]:
    return {c["name"].decode() for c in space.db.xinfo_consumers(key, GROUP)}


def idle_for(space: Keyspace, key: str, ms: int) -> None:
    """Until no consumer has been heard of for longer than `ms`."""
    wait_until_sync(lambda: all(c["idle"] > ms for c in space.db.xinfo_consumers(key, GROUP)))


def test_consumers_that_are_gone_are_deleted(space: Keyspace, key: str) -> None:
    """Idle for longer than the bound, and holding nothing."""
    for name in (ME, OTHER, FOREIGN):
        space.db.xgroup_createconsumer(key, GROUP, name)
    idle_for(space, key, 1)
    assert prune(space, key) == [3, 0, 1]
    assert consumers(space, key) == set()


def test_what_holds_something_lives_or_is_released_is_spared(space: Keyspace, key: str) -> None:
    """DELCONSUMER throws away what is pending; a worker in the registry lives; `~released` is nobody's to delete."""
    (held,) = space.held(key, consumer=OTHER)
    for name in (ME, RELEASED):
        space.db.xgroup_createconsumer(key, GROUP, name)
    space.db.zadd(space.keys.workers, {ME: space.now()})
    idle_for(space, key, 1)
    assert prune(space, key) == [0, 0, 1]
    assert consumers(space, key) == {ME, OTHER, RELEASED}
    assert space.pending(key) == {held: (OTHER, 1)}


def test_the_idle_bounds_differ_for_other_sdks(space: Keyspace, key: str) -> None:
    """Consumers without `~` have a bound of their own, and no entry in the registry."""
    for name in (OTHER, FOREIGN):
        space.db.xgroup_createconsumer(key, GROUP, name)
    idle_for(space, key, 1)
    assert prune(space, key, idle=60_000, foreign=60_000)[0] == 0
    assert prune(space, key, idle=0, foreign=60_000)[0] == 1
    assert consumers(space, key) == {FOREIGN}
    assert prune(space, key, idle=60_000, foreign=0)[0] == 1


def test_a_registry_of_the_wrong_type_lists_nobody(space: Keyspace, key: str) -> None:
    """No error; what is idle goes, what holds something stays."""
    space.held(key, consumer=OTHER)
    space.db.xgroup_createconsumer(key, GROUP, ME)
    space.plant(space.keys.workers)
    idle_for(space, key, 1)
    assert prune(space, key)[0] == 1
    assert consumers(space, key) == {OTHER}


def test_acknowledged_leftovers_are_trimmed_up_to_the_lowest_pending(space: Keyspace, key: str) -> None:
    """Others don't delete what they acknowledged. Pending and new entries stay."""
    ids = space.held(key, 5, FOREIGN)
    new = space.add(key, 2)
    space.db.xack(key, GROUP, ids[0], ids[1], ids[3])
    assert prune(space, key)[1:] == [2, 1]
    assert space.ids(key) == [*ids[2:], *new]


def test_with_nothing_pending_all_that_was_delivered_is_trimmed(space: Keyspace, key: str) -> None:
    """Past the last delivered entry; new ones stay."""
    ids = space.held(key, 3, FOREIGN)
    new = space.add(key, 2)
    space.db.xack(key, GROUP, *ids)
    assert prune(space, key)[1] == 3
    assert space.ids(key) == new
    assert space.read(key) == new


def test_trimming_respects_sequence_numbers(space: Keyspace, key: str) -> None:
    """Entries of the same millisecond: the last delivered one goes, the next one stays."""
    for seq in (0, 1, 9_007_199_254_740_993, 9_007_199_254_740_994):
        space.db.xadd(key, {"f": "v"}, id=f"1795491213549-{seq}")
    space.db.xack(key, GROUP, *space.read(key, count=3))
    prune(space, key)
    assert "1795491213549-9007199254740994" in space.ids(key)
    assert "1795491213549-1" not in space.ids(key)


@pytest.mark.parametrize("name", ["audit", "zz-audit"])
def test_with_a_second_group_nothing_is_trimmed(space: Keyspace, key: str, name: str) -> None:
    """It may still need them; the caller is told how many groups there are."""
    ids = space.held(key, 3)
    space.db.xack(key, GROUP, *ids)
    space.db.xgroup_create(key, name, "0")
    assert prune(space, key)[1:] == [0, 2]
    assert space.ids(key) == ids


def test_without_delete_on_ack_nothing_is_trimmed(space: Keyspace, key: str) -> None:
    """Whoever wants to keep finished jobs keeps them."""
    ids = space.held(key, 3)
    space.db.xack(key, GROUP, *ids)
    assert prune(space, key, trim=0)[1] == 0
    assert space.ids(key) == ids


def test_a_group_that_was_made_again_loses_nothing(space: Keyspace, key: str) -> None:
    """Made again at 0 it has delivered nothing yet: all is to be run, nothing is trimmed; later only what was run."""
    ids = space.held(key, 4)
    space.db.xgroup_destroy(key, GROUP)
    space.db.xgroup_create(key, GROUP, "0")
    assert prune(space, key)[1] == 0
    assert space.ids(key) == ids
    space.db.xack(key, GROUP, *space.read(key, count=2))
    assert prune(space, key)[1] == 2
    assert space.read(key) == ids[2:]


def test_a_group_that_was_set_back_loses_nothing(space: Keyspace, key: str) -> None:
    """XGROUP SETID below what is pending: entries in between are to be delivered again."""
    ids = space.held(key, 4)
    space.db.xack(key, GROUP, *ids[:3])
    space.db.xgroup_setid(key, GROUP, "0")
    prune(space, key)
    assert space.ids(key) == ids


@pytest.mark.parametrize("state", ["no key", "no group", "wrong type"])
def test_without_a_group_there_is_nothing_to_do(space: Keyspace, key: str, state: str) -> None:
    """No error, nothing changed."""
    ids = space.held(key, 2)
    match state:
        case "no key":
            space.db.delete(key)
        case "no group":
            space.db.xgroup_destroy(key, GROUP)
            space.db.xgroup_create(key, "audit", "0")
        case _:
            space.plant(key)
    answer = prune(space, key)
    assert answer == ([0, 0, 1] if state == "no group" else [0, 0, 0])
    assert state != "no group" or space.ids(key) == ids


def test_with_full_memory_it_works(own: Keyspace) -> None:
    """Pruning frees memory, so it must not need any."""
    key = own.queue()
    own.db.xack(key, GROUP, *own.held(key, 3, FOREIGN))
    own.fill()
    deadline = time.monotonic() + 5
    while prune(own, key)[0] == 0:
        assert time.monotonic() < deadline
    assert own.ids(key) == []
