"""finish.lua: the first finisher wins, only its effects happen, and none of them can fail half-way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from keyspace import GROUP, ME, OTHER, RELEASED, Keyspace


class Key(str):
    """A key's name in an item; the script gets its number."""


def finish(
    space: Keyspace, *items: Sequence[Any], plain: Sequence[tuple[str, list[str]]] = (), me: str = ME, delete: int = 1
) -> Any:
    keys: list[str] = []

    def number(key: str) -> int:
        if key not in keys:
            keys.append(key)
        return keys.index(key) + 1

    def numbered(part: Any) -> Any:
        if isinstance(part, Key):
            return number(part)
        return [numbered(p) for p in part] if isinstance(part, (tuple, list)) else part

    stats = Key(space.keys.stats("default", 0))
    runs = [numbered(part) for key, ids in plain for part in (Key(key), stats, ids)]
    kinds = [numbered((kind, Key(stream), stats, *rest)) for kind, stream, *rest in items]
    return space.run(
        "finish", keys or [space.keys.stream("default")], GROUP, me, delete, space.keys.control, runs, kinds
    )


def successor(stream: str, id: str = "next", *, delay: int = 0, dedupe: str = "") -> Sequence[Any]:
    key = Key(dedupe) if dedupe else 0
    return (Key(stream), "after", ('{"n":2}', id), ("attempts", "2"), delay, f"member of {id}", key, 9_000)


class Items:
    """One item of every kind, for one entry."""

    def __init__(self, space: Keyspace) -> None:
        self._keys = space.keys

    def done(self, key: str, id: str, times: int = 1, *next: Sequence[Any], verify: str = "") -> Sequence[Any]:
        return ("done", key, id, times, verify, Key(self._keys.scheduled), next)

    def again(self, key: str, id: str, times: int = 1, verify: str = "") -> Sequence[Any]:
        return ("again", key, id, times, verify, Key(self._keys.retries), 2_000, f"retry of {id}")

    def dead(self, key: str, id: str, times: int = 1, verify: str = "") -> Sequence[Any]:
        extra = ["originalId", id, "deliveryCount", str(times), "reason", "error"]
        return ("dead", key, id, times, verify, Key(self._keys.dead_letter("default")), extra, ["taskName", "kept"])

    def released(self, key: str, id: str, times: int = 1, verify: str = "") -> Sequence[Any]:
        return ("released", key, id, times, verify)


@pytest.fixture
def items(prefix: str, space: Keyspace) -> Items:
    return Items(space)


@pytest.fixture
def key(space: Keyspace) -> str:
    return space.queue()


FENCED = ("again", "dead", "released")
KINDS = ("done", *FENCED)


def test_plain_successes_are_acknowledged_and_deleted(space: Keyspace, key: str) -> None:
    """One XACK and one XDEL a queue; the count of the minute knows them."""
    ids = space.held(key, 3)
    assert finish(space, plain=[(key, ids)]) == [0]
    assert (space.ids(key), space.pending(key)) == ([], {})
    stats = space.keys.stats("default", 0)
    assert space.db.hgetall(stats) == {b"done": b"3"}
    assert 7_000 < space.db.ttl(stats) <= 7_200


def test_without_delete_on_ack_the_entries_stay(space: Keyspace, key: str, items: Items) -> None:
    """They are acknowledged all the same."""
    ids = space.held(key, 3)
    assert finish(space, items.done(key, ids[2]), plain=[(key, ids[:2])], delete=0) == [0, 1]
    assert (space.ids(key), space.pending(key)) == (ids, {})


def test_plain_successes_that_are_not_all_ours_are_deleted_all_the_same(space: Keyspace, key: str) -> None:
    """What somebody else acknowledged is over, too. So none runs again if the group is destroyed by then."""
    ids = space.held(key, 3)
    space.db.xack(key, GROUP, ids[1])
    assert finish(space, plain=[(key, ids)]) == [1]
    assert (space.ids(key), space.pending(key)) == ([], {})


def test_of_plain_successes_what_a_new_group_has_handed_out_is_over_and_the_rest_runs_again(
    space: Keyspace, key: str
) -> None:
    """Also those of one millisecond, and though more of them come after; a second destruction brings back no more."""
    ids = [f"7-{number}" for number in range(8, 13)]  # 7-9 is before 7-10
    for entry_id in ids:
        space.db.xadd(key, {"taskName": "t", "payload": "{}"}, id=entry_id)
    space.read(key)
    space.db.xgroup_destroy(key, GROUP)
    space.db.xgroup_create(key, GROUP, "0")
    assert space.read(key, count=2) == ids[:2]
    assert finish(space, plain=[(key, ids[:4])]) == [2]
    assert (space.ids(key), space.pending(key)) == (ids[2:], {})
    space.db.xgroup_destroy(key, GROUP)
    space.db.xgroup_create(key, GROUP, "0")
    assert space.read(key) == ids[2:]


def test_a_group_that_was_made_again_keeps_its_jobs(space: Keyspace, key: str) -> None:
    """Entries that the new group has not delivered yet are neither acknowledged nor deleted: they run again."""
    ids = space.held(key, 3)
    space.db.xgroup_destroy(key, GROUP)
    space.db.xgroup_create(key, GROUP, "0")
    assert finish(space, plain=[(key, ids)]) == [3]
    assert space.read(key) == ids


def test_done_with_successors(space: Keyspace, key: str, items: Items) -> None:
    """Successors go into their streams, or into `scheduled` with a delay, in the step that settles the parent."""
    (entry_id,) = space.held(key)
    other, now = space.keys.stream("mails"), space.now()
    verdicts = finish(space, items.done(key, entry_id, 1, successor(other), successor(key, "later", delay=5_000)))
    assert verdicts == [0, 1]
    assert space.ids(key) == []
    (entry,) = space.entries(other)
    assert now <= int(entry.pop("enqueuedAt")) <= space.now()
    assert entry == {"taskName": "after", "payload": '{"n":2}', "jobId": "next", "attempts": "2"}
    ((member, due),) = space.members(space.keys.scheduled).items()
    assert member == "member of later"
    assert now + 5_000 <= due <= space.now() + 5_000


def test_successors_respect_dedupe(space: Keyspace, key: str, items: Items) -> None:
    """A duplicate successor is not added, a new one takes the key; the parent is settled either way."""
    (entry_id,) = space.held(key)
    taken, free, mails = space.keys.dedupe("a"), space.keys.dedupe("b"), space.keys.stream("mails")
    space.db.set(taken, "somebody")
    next = (successor(mails, "x", dedupe=taken), successor(mails, "y", dedupe=free))
    assert finish(space, items.done(key, entry_id, 1, *next)) == [0, 1]
    assert [e["jobId"] for e in space.entries(mails)] == ["y"]
    assert (space.db.get(taken), space.db.get(free)) == (b"somebody", b"y")
    assert 0 < space.db.pttl(free) <= 9_000


def test_again_waits_in_retries(space: Keyspace, key: str, items: Items) -> None:
    """The member goes into `retries`, due after the delay by the server's clock; the entry is gone."""
    (entry_id,) = space.held(key)
    now = space.now()
    assert finish(space, items.again(key, entry_id)) == [0, 1]
    ((member, due),) = space.members(space.keys.retries).items()
    assert member == f"retry of {entry_id}"
    assert now + 2_000 <= due <= space.now() + 2_000
    assert due == int(due)
    assert (space.ids(key), space.pending(key)) == ([], {})


def test_dead_letters_keep_every_byte(space: Keyspace, key: str, items: Items) -> None:
    """The fields are copied from the stream, so that bytes which no codec can carry survive."""
    (entry_id,) = space.held(key, payload=b"\xff\xfe\x00")
    assert finish(space, items.dead(key, entry_id)) == [0, 1]
    ((_, fields),) = space.db.xrange(space.keys.dead_letter("default"))
    assert fields[b"payload"] == b"\xff\xfe\x00"
    assert fields[b"jobId"] == b"job-0"
    assert fields[b"originalId"] == entry_id.encode()
    assert (fields[b"reason"], fields[b"deliveryCount"]) == (b"error", b"1")
    assert abs(int(fields[b"deadLetteredAt"]) - space.now()) < 5_000
    assert (space.ids(key), space.pending(key)) == ([], {})


@pytest.mark.parametrize("gone", ["xdel", "xtrim"])
def test_a_dead_letter_of_a_deleted_entry_has_what_we_read(space: Keyspace, key: str, items: Items, gone: str) -> None:
    """Somebody deleted the body while it ran: the fields that the worker read stand in the dead letter."""
    (entry_id,) = space.held(key)
    if gone == "xdel":
        space.db.xdel(key, entry_id)
    else:
        space.db.xtrim(key, maxlen=0, approximate=False)
    assert finish(space, items.dead(key, entry_id)) == [0, 1]
    (entry,) = space.entries(space.keys.dead_letter("default"))
    assert (entry["taskName"], entry["originalId"]) == ("kept", entry_id)


@pytest.mark.parametrize("pairs", [3_000, 3_990, 6_000])
def test_an_entry_of_thousands_of_fields_is_not_lost(space: Keyspace, key: str, items: Items, pairs: int) -> None:
    """More fields than Lua can pass to one command: acknowledged and dead-lettered, or neither."""
    (entry_id,) = space.held(key, **{f"f{i}": "v" for i in range(pairs)})
    (second,) = space.held(key)
    _, verdict, other = finish(space, items.dead(key, entry_id), items.done(key, second))
    assert other == 1
    dead = space.entries(space.keys.dead_letter("default"))
    assert verdict == 1
    assert len(dead) == 1
    assert (dead[0]["originalId"], dead[0]["taskName"]) == (entry_id, "t")


def test_released_is_claimable_at_once_and_counts_as_no_delivery(space: Keyspace, key: str, items: Items) -> None:
    """It belongs to `~released`, one delivery fewer, and idle since 1970: whoever claims it has the same count."""
    once, twice = space.held(key, 2)
    space.age(key, [twice], 0, times=2)
    assert finish(space, items.released(key, once), items.released(key, twice, 2)) == [0, 1, 1]
    assert space.pending(key) == {once: (RELEASED, 0), twice: (RELEASED, 1)}
    assert space.idle(key, once) > 10**12
    assert len(space.ids(key)) == 2


def test_what_was_given_back_is_told(space: Keyspace, key: str, items: Items) -> None:
    """Once a batch, on the control channel, and only where it was really given back."""
    first, second, third = space.held(key, 3)
    with space.db.pubsub() as told:
        told.subscribe(space.keys.control)
        assert (told.get_message(timeout=1) or {})["type"] == "subscribe"
        finish(space, items.released(key, first), items.released(key, second), items.done(key, third))
        finish(space, items.released(key, first), items.done(key, third))
        messages = [told.get_message(timeout=1), told.get_message()]
    assert [message and message["data"] for message in messages] == [b"released", None]


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_finish_changes_nothing(space: Keyspace, key: str, items: Items, kind: str) -> None:
    """Repeated after a lost reply, with successors and all: told 0, and not one key differs."""
    (entry_id,) = space.held(key)
    next = (successor(space.keys.stream("mails")),) if kind == "done" else ()
    item = getattr(items, kind)(key, entry_id, 1, *next)
    assert finish(space, item) == [0, 1]
    state = space.state()
    assert finish(space, item) == [0, 0]
    assert space.state() == state


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", ["done", "again", "dead"])
def test_the_first_finisher_wins(space: Keyspace, key: str, items: Items, first: str, second: str) -> None:
    """What was settled stays as it was, whatever comes after, in the same batch too."""
    (entry_id,) = space.held(key)
    verdicts = finish(space, getattr(items, first)(key, entry_id), getattr(items, second)(key, entry_id))
    assert verdicts == [0, 1, 0]
    effects = [space.keys.retries, space.keys.dead_letter("default")]
    assert space.db.exists(*effects) == (first != "done")


@pytest.mark.parametrize("kind", FENCED)
@pytest.mark.parametrize("owner", [(OTHER, 2), (OTHER, 1), (ME, 2), (RELEASED, 0), (RELEASED, 1)])
def test_a_zombie_undoes_nothing(space: Keyspace, key: str, items: Items, kind: str, owner: tuple[str, int]) -> None:
    """Fenced by consumer and count: neither a new owner's run nor a newer run of our own is undone by an older one."""
    (entry_id,) = space.held(key)
    space.give(key, entry_id, *owner)
    state = space.state()
    assert finish(space, getattr(items, kind)(key, entry_id, 1)) == [0, 0]
    assert space.state() == state
    assert space.pending(key) == {entry_id: owner}


def test_a_zombies_success_counts(space: Keyspace, key: str, items: Items) -> None:
    """Done is not fenced: the work is done. The new owner is told 0, and its effects don't happen."""
    (entry_id,) = space.held(key, consumer=OTHER)
    next = successor(space.keys.stream("mails"))
    assert finish(space, items.done(key, entry_id, 1, next), me=ME) == [0, 1]
    assert finish(space, items.done(key, entry_id, 1, next), me=OTHER) == [0, 0]
    assert len(space.ids(space.keys.stream("mails"))) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", ["destroyed", "flushed"])
def test_without_a_group_nothing_is_ours(space: Keyspace, key: str, items: Items, kind: str, state: str) -> None:
    """The group or the stream is gone: 0, no error, no effect."""
    (entry_id,) = space.held(key)
    if state == "destroyed":
        space.db.xgroup_destroy(key, GROUP)
    else:
        space.db.delete(key)
    before = space.state()
    assert finish(space, getattr(items, kind)(key, entry_id), plain=[(key, [entry_id])]) == [1, 0]
    assert space.state() == before


class TestWrongTypes:
    """A key of the wrong type refuses its item by name before anything is written; the others go on."""

    @pytest.mark.parametrize("case", ["again", "dead", "done: stream", "done: scheduled"])
    def test_an_effects_key(self, space: Keyspace, key: str, items: Items, case: str) -> None:
        """The item stays pending, to be finished when the key is mended."""
        bad, good = space.held(key, 2)
        mails = space.keys.stream("mails")
        item, planted = {
            "again": (items.again(key, bad), space.keys.retries),
            "dead": (items.dead(key, bad), space.keys.dead_letter("default")),
            "done: stream": (items.done(key, bad, 1, successor(key, "x"), successor(mails)), mails),
            "done: scheduled": (items.done(key, bad, 1, successor(key, "x"), successor(key, "y", delay=9)),
                                space.keys.scheduled),
        }[case]  # fmt: skip
        space.plant(planted)
        _, error, fine = finish(space, item, items.done(key, good))
        assert error.decode() == f"WRONGTYPE the key {planted} holds a list"
        assert fine == 1
        assert space.pending(key) == {bad: (ME, 1)}
        assert space.ids(key) == [bad]
        space.db.delete(planted)
        assert finish(space, item) == [0, 1]

    def test_the_stream_itself(self, space: Keyspace, key: str, items: Items) -> None:
        """What was pending there is gone with it; the other queues' are settled."""
        (there,) = space.held(key)
        low = space.queue("low")
        (here,) = space.held(low)
        space.plant(key)
        lost, bad, good = finish(space, items.again(key, there), items.dead(low, here), plain=[(key, [there])])
        assert (lost, good) == (1, 1)
        assert key in bad.decode()
        assert not space.db.exists(space.keys.retries)

    def test_the_stats(self, space: Keyspace, key: str, items: Items) -> None:
        """Counting is no reason to refuse: settled, uncounted."""
        ids = space.held(key, 3)
        space.plant(space.keys.stats("default", 0))
        answer = finish(space, items.again(key, ids[0]), items.dead(key, ids[1]), plain=[(key, ids[2:])])
        assert answer == [0, 1, 1]
        assert space.pending(key) == {}


def test_with_full_memory_finishing_still_works(own: Keyspace) -> None:
    """Every kind is settled with all its effects: XACK frees the way for what follows it."""
    items, key, mails = Items(own), own.queue(), own.keys.stream("mails")
    ids = own.held(key, 6)
    own.fill()
    assert finish(own, plain=[(key, ids[:1])]) == [0]
    for item in (
        items.done(key, ids[1], 1, successor(mails, dedupe=own.keys.dedupe("k")), successor(mails, "l", delay=5)),
        items.again(key, ids[2]),
        items.dead(key, ids[3]),
        items.released(key, ids[4]),
    ):
        assert finish(own, item) == [0, 1]
    assert own.pending(key) == {ids[4]: (RELEASED, 0), ids[5]: (ME, 1)}
    assert own.ids(key) == ids[4:]
    assert own.db.get(own.keys.dedupe("k")) == b"next"
    assert [e["jobId"] for e in own.entries(mails)] == ["next"]
    assert list(own.members(own.keys.scheduled)) == ["member of l"]
    assert list(own.members(own.keys.retries)) == [f"retry of {ids[2]}"]
    assert [e["originalId"] for e in own.entries(own.keys.dead_letter("default"))] == [ids[3]]


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_restart_another_jobs_entry_id_settles_nothing(
    space: Keyspace, key: str, items: Items, kind: str
) -> None:
    """With a job id to verify, the entry must be that job; ids can be used again when the log's tail was lost."""
    (entry_id,) = space.held(key)
    item = getattr(items, kind)
    state = space.state()
    assert finish(space, item(key, entry_id, 1, verify="another")) == [0, 0]
    assert space.state() == state
    assert finish(space, item(key, entry_id, 1, verify="job-0")) == [0, 1]


def test_after_a_restart_an_entry_of_another_sdk_is_known_by_its_place(space: Keyspace, key: str, items: Items) -> None:
    """Without a jobId the id is `<queue>:<entry id>`, and an entry whose body is gone is nobody's."""
    space.db.xadd(key, {"taskName": "t", "payload": "1"})
    space.db.xadd(key, {"taskName": "t", "payload": "1", "jobId": ""})
    space.db.xadd(key, {"taskName": "t", "payload": "1"})
    plain, empty, gone = space.read(key)
    space.db.xdel(key, gone)
    assert finish(space, items.done(key, plain, verify="default:1-1")) == [0, 0]
    assert finish(space, items.done(key, plain, verify=f"default:{plain}")) == [0, 1]
    assert finish(space, items.done(key, empty, verify=f"default:{empty}")) == [0, 1]
    assert finish(space, items.done(key, gone, verify=f"default:{gone}")) == [0, 0]
