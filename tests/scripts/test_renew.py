"""renew.lua: a lease is ours while the entry is pending for us with the delivery count that we hold."""

from __future__ import annotations

from typing import Any

import pytest
from keyspace import GROUP, ME, OTHER, Keyspace


@pytest.fixture
def key(space: Keyspace) -> str:
    return space.queue()


def renew(space: Keyspace, *held: tuple[str, list[tuple[str, int]]], me: str = ME) -> Any:
    flat = [[part for entry in entries for part in entry] for _, entries in held]
    answer = space.run("renew", [key for key, _ in held], GROUP, me, flat)
    return [(number, entry_id.decode()) for number, entry_id in zip(answer[::2], answer[1::2], strict=True)]


def test_a_renewal_begins_the_lease_anew_and_keeps_the_count(space: Keyspace, key: str) -> None:
    """The idle time is 0 again, owner and delivery count stay as they were."""
    (entry_id,) = space.held(key)
    space.age(key, [entry_id], 50_000, times=3)
    assert renew(space, (key, [(entry_id, 3)])) == []
    assert space.idle(key, entry_id) < 5_000
    assert space.pending(key) == {entry_id: (ME, 3)}


@pytest.mark.parametrize("owner", [(OTHER, 1), (OTHER, 2), (ME, 2), ("~released", 0)])
def test_what_is_another_delivery_is_lost_and_left_alone(space: Keyspace, key: str, owner: tuple[str, int]) -> None:
    """Another owner, or the same one with another count: lost; neither its idle time nor its owner is touched."""
    (entry_id,) = space.held(key)
    space.give(key, entry_id, *owner)
    space.age(key, [entry_id], 50_000, times=owner[1])
    assert renew(space, (key, [(entry_id, 1)])) == [(1, entry_id)]
    assert space.pending(key) == {entry_id: owner}
    assert space.idle(key, entry_id) >= 50_000


def test_settled_entries_are_lost(space: Keyspace, key: str) -> None:
    """Acknowledged by somebody else, or not known at all."""
    first, second = space.held(key, 2)
    space.db.xack(key, GROUP, first)
    assert renew(space, (key, [(first, 1), (second, 1), ("1-1", 1)])) == [(1, first), (1, "1-1")]


@pytest.mark.parametrize("how", ["xdel", "xtrim"])
def test_an_entry_whose_body_is_gone_is_lost(space: Keyspace, key: str, how: str) -> None:
    """Somebody deleted it while it runs: that counts as cancelled. Its fellows are renewed."""
    first, second = space.held(key, 2)
    if how == "xdel":
        space.db.xdel(key, first)
    else:
        space.db.xtrim(key, minid=second, approximate=False)
    assert renew(space, (key, [(first, 1), (second, 1)])) == [(1, first)]


@pytest.mark.parametrize("state", ["group destroyed", "stream deleted", "wrong type"])
def test_without_a_group_all_of_that_stream_is_lost(space: Keyspace, key: str, state: str) -> None:
    """No error: the other streams are renewed."""
    low = space.queue("low")
    (bad,), (good,) = space.held(key), space.held(low)
    space.age(low, [good], 50_000)
    match state:
        case "group destroyed":
            space.db.xgroup_destroy(key, GROUP)
        case "stream deleted":
            space.db.delete(key)
        case _:
            space.plant(key)
    assert renew(space, (key, [(bad, 1)]), (low, [(good, 1)])) == [(1, bad)]
    assert space.idle(low, good) < 5_000


def test_thousands_are_renewed_in_one_call(space: Keyspace, key: str) -> None:
    """More than one page of the pending list, with others' entries among them, and lost ones at both ends."""
    ids = space.held(key, 1_500)
    theirs = space.held(key, 100, OTHER)
    ids += space.held(key, 1_000)
    space.db.xack(key, GROUP, ids[0], ids[-1])
    answer = renew(space, (key, [(entry_id, 1) for entry_id in [*ids, *theirs]]))
    assert answer == [(1, entry_id) for entry_id in (ids[0], ids[-1], *theirs)]


def test_with_full_memory_leases_are_kept(own: Keyspace) -> None:
    """XCLAIM needs no memory."""
    key = own.queue()
    (entry_id,) = own.held(key)
    own.age(key, [entry_id], 50_000)
    own.fill()
    assert renew(own, (key, [(entry_id, 1)])) == []
    assert own.idle(key, entry_id) < 5_000
