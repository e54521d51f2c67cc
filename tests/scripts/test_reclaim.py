"""reclaim.lua: what was given back or left behind, into the caller's hands; nobody else's."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from keyspace import FOREIGN, GROUP, ME, OTHER, RELEASED, Keyspace

IDLE, FOREIGN_IDLE = 30_000, 60_000


class Found(NamedTuple):
    cursor: str
    entries: list[tuple[str, int, bool]]
    """Entry id, delivery count, whether it was the caller's own."""
    gone: int
    now: int


def reclaim(
    space: Keyspace, key: str, room: int = 100, *, idle: int = IDLE, cursor: str = "-", latest: int = 0, heal: int = 0
) -> Found:
    mark, entries, gone, now = space.run(
        "reclaim", [key], GROUP, ME, idle, FOREIGN_IDLE, room, cursor, latest, heal
    )  # fmt: skip
    return Found(mark.decode(), [(id.decode(), n, own == 1) for id, n, _, own in entries], gone, int(now))


@pytest.fixture
def key(space: Keyspace) -> str:
    return space.queue()


def test_a_dead_workers_jobs_come_over_with_one_delivery_more(space: Keyspace, key: str) -> None:
    """Idle for a lease: ours now, body and all, counted, with a fresh lease; what is younger stays."""
    old, young = space.held(key, 2, OTHER, payload="[7]")
    space.age(key, [old], IDLE, times=2)
    space.age(key, [young], IDLE - 5_000)
    answer = space.run("reclaim", [key], GROUP, ME, IDLE, FOREIGN_IDLE, 10, "-", 0, 0)
    ((entry_id, times, fields, own),) = answer[1]
    assert (answer[0], entry_id, times, own, answer[2]) == (b"-", old.encode(), 3, 0, 0)
    assert fields[fields.index(b"payload") + 1] == b"[7]"
    assert space.pending(key) == {old: (ME, 3), young: (OTHER, 1)}
    assert space.idle(key, old) < 5_000


def test_what_was_released_is_taken_first_and_keeps_its_count(space: Keyspace, key: str) -> None:
    """The hand-over counts as no delivery, and comes before older abandoned ones, whatever its place in the list."""
    dead, back = space.held(key, 2, OTHER)
    space.age(key, [dead], IDLE)
    space.db.execute_command(
        "XCLAIM", key, GROUP, RELEASED, "0", back, "TIME", "0", "RETRYCOUNT", "1", "JUSTID", parse_justid=True
    )  # fmt: skip
    assert reclaim(space, key, 1).entries == [(back, 2, False)]
    assert reclaim(space, key, 1).entries == [(dead, 2, False)]
    assert space.pending(key) == {dead: (ME, 2), back: (ME, 2)}


def test_idle_minus_one_looks_only_at_what_was_released(space: Keyspace, key: str) -> None:
    """The look of every second: abandoned ones stay where they are."""
    dead, back = space.held(key, 2, OTHER)
    space.age(key, [dead], IDLE)
    space.give(key, back, RELEASED, 0)
    found = reclaim(space, key, idle=-1)
    assert (found.cursor, found.entries) == ("-", [(back, 1, False)])
    assert space.pending(key)[dead] == (OTHER, 1)


def test_other_sdks_get_longer(space: Keyspace, key: str) -> None:
    """They don't renew: a consumer without `~` counts as dead only after the foreign idle time."""
    working, dead = space.held(key, 2, FOREIGN)
    space.age(key, [working], FOREIGN_IDLE - 5_000)
    space.age(key, [dead], FOREIGN_IDLE)
    assert reclaim(space, key).entries == [(dead, 2, False)]
    assert space.pending(key)[working] == (FOREIGN, 1)


def test_our_own_entries_are_renewed_with_their_count(space: Keyspace, key: str) -> None:
    """No crash of ours: the caller is told that they are its own, and the count stays."""
    (entry_id,) = space.held(key)
    space.age(key, [entry_id], IDLE, times=2)
    assert reclaim(space, key).entries == [(entry_id, 2, True)]
    assert space.pending(key) == {entry_id: (ME, 2)}
    assert space.idle(key, entry_id) < 5_000


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("how", ["xdel", "xtrim"])
def test_entries_without_a_body_are_dropped_and_counted(space: Keyspace, key: str, how: str, released: bool) -> None:
    """Deleted by somebody while pending: out of the list, and the next one is still found."""
    gone, dead = space.held(key, 2, OTHER)
    space.age(key, [gone, dead], IDLE)
    if released:
        space.give(key, gone, RELEASED, 0)
    if how == "xdel":
        space.db.xdel(key, gone)
    else:
        space.db.xtrim(key, minid=dead, approximate=False)
    found = reclaim(space, key)
    assert (found.entries, found.gone) == ([(dead, 2, False)], 1)
    assert list(space.pending(key)) == [dead]


def test_a_body_that_is_gone_while_it_runs_is_not_dropped(space: Keyspace, key: str) -> None:
    """Within its lease it stays pending for its worker, who finishes it."""
    (running,) = space.held(key, consumer=OTHER)
    space.db.xdel(key, running)
    found = reclaim(space, key)
    assert (found.entries, found.gone) == ([], 0)
    assert space.pending(key) == {running: (OTHER, 1)}


@pytest.mark.parametrize("busy_idle", [0, 40_000])
def test_what_stands_behind_hundreds_of_busy_entries_is_found(space: Keyspace, key: str, busy_idle: int) -> None:
    """One look sees the whole list: behind 350 that are younger, or another SDK's and not old enough."""
    busy = space.held(key, 350, FOREIGN if busy_idle else OTHER)
    (dead,) = space.held(key, 1, OTHER)
    if busy_idle:
        space.db.xclaim(key, GROUP, FOREIGN, 0, busy, idle=busy_idle, justid=True)
    space.age(key, [dead], IDLE)
    found = reclaim(space, key)
    assert (found.cursor, found.entries) == ("-", [(dead, 2, False)])


def test_no_more_than_there_is_room_for_and_the_next_look_goes_on(space: Keyspace, key: str) -> None:
    """The cursor leads through the list: 250 abandoned ones in looks of 100, each taken once, none left out."""
    ids = space.held(key, 250, OTHER)
    space.db.xclaim(key, GROUP, OTHER, 0, ids, idle=IDLE, justid=True)
    cursor, taken = "-", []
    for expected in (100, 100, 50):
        found = reclaim(space, key, cursor=cursor)
        assert len(found.entries) == expected
        taken += [entry_id for entry_id, _, _ in found.entries]
        cursor = found.cursor
    assert (cursor, taken) == ("-", ids)
    assert set(space.pending(key).values()) == {(ME, 2)}


def test_released_ones_count_against_the_room(space: Keyspace, key: str) -> None:
    """Never more than there is room for, from both sources together; the cursor stays where it was."""
    ids = space.held(key, 6, OTHER)
    space.age(key, ids, IDLE)
    for entry_id in ids[:3]:
        space.give(key, entry_id, RELEASED, 0)
    assert [entry_id for entry_id, _, _ in reclaim(space, key, 2).entries] == ids[:2]
    assert [entry_id for entry_id, _, _ in reclaim(space, key, 2).entries] == ids[2:4]


def test_after_a_jump_of_the_servers_clock_nothing_is_taken(space: Keyspace, key: str) -> None:
    """Later than the clock can be: idle times are wrong until the living have renewed; not even what was released."""
    dead, back = space.held(key, 2, OTHER)
    space.age(key, [dead], IDLE)
    space.give(key, back, RELEASED, 0)
    state = space.state()
    assert reclaim(space, key, latest=space.now() - 1_000).cursor == "JUMPED"
    assert space.state() == state
    assert len(reclaim(space, key, latest=space.now() + 60_000).entries) == 2


def test_healing_leaves_owners_and_counts_alone(space: Keyspace, key: str) -> None:
    """After a step back of the clock entries that read 0 are renewed for their own owner; what is due is taken."""
    young, older, dead = space.held(key, 3, OTHER)
    space.age(key, [dead], IDLE)
    space.age(key, [older], IDLE - 5_000)
    space.age(key, [young], 0, times=2)
    assert reclaim(space, key, heal=1).entries == [(dead, 2, False)]
    assert space.pending(key) == {young: (OTHER, 2), older: (OTHER, 1), dead: (ME, 2)}
    assert space.idle(key, older) >= IDLE - 5_000


@pytest.mark.parametrize("state", ["group destroyed", "stream deleted", "wrong type"])
def test_without_a_group_it_says_so(space: Keyspace, key: str, state: str) -> None:
    """So that the caller makes it again."""
    space.held(key, consumer=OTHER)
    match state:
        case "group destroyed":
            space.db.xgroup_destroy(key, GROUP)
        case "stream deleted":
            space.db.delete(key)
        case _:
            space.plant(key)
    found = reclaim(space, key)
    assert (found.cursor, found.entries) == ("NOGROUP", [])
    assert abs(found.now - space.now()) < 5_000


def test_with_full_memory_it_works(own: Keyspace) -> None:
    """What a dead worker left behind can be taken over, and so be finished, while memory is full."""
    key = own.queue()
    dead, back = own.held(key, 2, OTHER)
    own.age(key, [dead], IDLE)
    own.give(key, back, RELEASED, 0)
    own.fill()
    assert reclaim(own, key).entries == [(back, 1, False), (dead, 2, False)]


def test_the_answer_of_a_call_that_was_lost_is_not_counted_twice(space: Keyspace, key: str) -> None:
    """Repeated by the same caller it brings nothing: the lease is fresh. After a lease they are its own, count kept."""
    (dead,) = space.held(key, consumer=OTHER)
    space.age(key, [dead], IDLE)
    assert reclaim(space, key).entries == [(dead, 2, False)]
    assert reclaim(space, key).entries == []
    space.age(key, [dead], IDLE, times=2)
    assert reclaim(space, key).entries == [(dead, 2, True)]
