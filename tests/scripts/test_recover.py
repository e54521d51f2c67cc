"""recover.lua: what is pending for a consumer that does not know of it, for a read's reply was lost."""

from __future__ import annotations

from typing import Any

import pytest
from keyspace import GROUP, ME, OTHER, Keyspace


@pytest.fixture
def key(space: Keyspace) -> str:
    return space.queue()


def recover(space: Keyspace, key: str, held: list[str], me: str = ME) -> Any:
    return [(id.decode(), times, fields) for id, times, fields in space.run("recover", [key], GROUP, me, held)]


def test_what_is_not_held_comes_back_with_its_body_and_count(space: Keyspace, key: str) -> None:
    """The count is kept, for a lost reply is no crash; the lease begins anew."""
    ids = space.held(key, 3)
    space.age(key, ids, 20_000, times=2)
    found = recover(space, key, [ids[1]])
    assert [(entry_id, times) for entry_id, times, _ in found] == [(ids[0], 2), (ids[2], 2)]
    assert found[0][2][:4] == [b"jobId", b"job-0", b"taskName", b"t"]
    assert space.pending(key) == dict.fromkeys(ids, (ME, 2))
    assert space.idle(key, ids[0]) < 5_000
    assert space.idle(key, ids[1]) >= 20_000


def test_others_are_left_alone(space: Keyspace, key: str) -> None:
    """Only this consumer's entries, and no new ones."""
    space.held(key, 2, OTHER)
    space.add(key)
    state = space.state()
    assert recover(space, key, []) == []
    assert space.state() == state


def test_a_lost_reply_behind_many_that_are_held(space: Keyspace, key: str) -> None:
    """More pages than one: 1,200 held, and 3 lost behind them."""
    ids = space.held(key, 1_203)
    assert [entry_id for entry_id, _, _ in recover(space, key, ids[:1_200])] == ids[1_200:]


def test_entries_without_a_body_are_dropped(space: Keyspace, key: str) -> None:
    """Deleted by somebody before we knew of them: there is nothing to run."""
    first, second = space.held(key, 2)
    space.db.xdel(key, first)
    assert [entry_id for entry_id, _, _ in recover(space, key, [])] == [second]
    assert space.pending(key) == {second: (ME, 1)}


@pytest.mark.parametrize("state", ["group destroyed", "stream deleted", "wrong type"])
def test_without_a_group_there_is_nothing(space: Keyspace, key: str, state: str) -> None:
    """No error either; the caller makes the group again."""
    space.held(key)
    match state:
        case "group destroyed":
            space.db.xgroup_destroy(key, GROUP)
        case "stream deleted":
            space.db.delete(key)
        case _:
            space.plant(key)
    assert recover(space, key, []) == []


def test_with_full_memory_it_works(own: Keyspace) -> None:
    """A worker that lost its connection while memory is full gets its jobs, so that finishing them frees some."""
    key = own.queue()
    ids = own.held(key, 2)
    own.fill()
    assert [entry_id for entry_id, _, _ in recover(own, key, [])] == ids
