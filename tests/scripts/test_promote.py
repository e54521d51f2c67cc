"""promote.lua: members whose time has come into their streams; nothing is lost, and nothing blocks those behind it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from keyspace import Keyspace

from backstage.queue import RESERVED
from backstage.wire import FIELDS

QUEUES = ("urgent", "default", "low")


class Promoted(NamedTuple):
    moved: int
    due: str
    missing: set[str]
    now: int
    more: bool


def promote(space: Keyspace, *queues: str, limit: int = 100) -> Promoted:
    """Once, with these queues' streams declared (the three default ones, if none is named)."""
    keys = [space.keys.scheduled, space.keys.retries, space.keys.dead_letter("default")]
    keys += [space.keys.stream(queue) for queue in queues or QUEUES]
    moved, due, missing, now, more = space.run("promote", keys, space.keys.prefix, limit, sorted(RESERVED), FIELDS)
    return Promoted(moved, due.decode(), {key.decode() for key in missing}, int(now), more == 1)


def member(space: Keyspace, queue: str = "default", **fields: Any) -> str:
    job = {"taskName": "t", "payload": '{"n":1}', "enqueuedAt": 1795491213549, "streamKey": space.keys.stream(queue)}
    return json.dumps({k: v for k, v in {**job, "priority": queue, **fields}.items() if v is not ...})


def plan(space: Keyspace, *members: str | bytes, due: float = 1, key: str = "") -> None:
    space.db.zadd(key or space.keys.scheduled, dict.fromkeys(members, due))


def test_due_members_become_entries_in_the_order_of_the_wire(space: Keyspace) -> None:
    """All fields, in the order that every entry has; numbers exact; from both sets."""
    options = {"attempts": 3, "backoff": '{"type":"fixed","delay":5}', "timeout": 2**53 - 1, "jobId": "j"}
    plan(space, member(space, **options))
    plan(space, member(space, attempt=2, crashes=1, since=1795491213000, jobId="r"), key=space.keys.retries)
    assert promote(space)[:3] == (2, "", set())
    ((_, first), (_, second)) = space.db.xrange(space.keys.stream("default"))
    assert [(k.decode(), v.decode()) for k, v in first.items()] == [
        ("taskName", "t"), ("payload", '{"n":1}'), ("enqueuedAt", "1795491213549"), ("jobId", "j"),
        ("attempts", "3"), ("backoff", '{"type":"fixed","delay":5}'), ("timeout", "9007199254740991"),
    ]  # fmt: skip
    assert (second[b"attempt"], second[b"crashes"], second[b"since"]) == (b"2", b"1", b"1795491213000")
    assert not space.db.exists(space.keys.scheduled, space.keys.retries)


def test_what_is_not_due_waits(space: Keyspace) -> None:
    """By the server's clock; the answer is the earliest due time of both sets."""
    later = space.now() + 60_000
    plan(space, member(space), due=later + 5)
    plan(space, member(space), due=later, key=space.keys.retries)
    found = promote(space)
    assert (found.moved, found.due, found.more) == (0, str(later), False)
    assert abs(found.now - space.now()) < 5_000
    assert len(space.members(space.keys.scheduled)) == 1
    assert not space.db.exists(space.keys.stream("default"))


def test_payloads_travel_untouched(space: Keyspace) -> None:
    """The payload is a string inside the member: Lua never sees its numbers, escapes or depth."""
    payloads = ["9007199254740993", "1e400", "[1.0,-0]", '"\\u0000\\ud83d\\ude00é\\n"', "[" * 2_000 + "]" * 2_000, ""]
    for n, payload in enumerate(payloads):
        plan(space, member(space, payload=payload, jobId=str(n)), due=n)
    assert promote(space).moved == len(payloads)
    assert [e["payload"] for e in space.entries(space.keys.stream("default"))] == payloads


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (1795491213549, "1795491213549"),
        (2**53 - 1, "9007199254740991"),
        (0, "0"),
        (1795491213549.0, "1795491213549"),
        ("1795491213549", "1795491213549"),
        (1.5, None),
        (None, None),
        (True, None),
        ([1], None),
        (2**60, None),
        (float("inf"), None),
        (float("nan"), None),
    ],
)
def test_numbers_are_exact_or_left_out(space: Keyspace, written: object, expected: str | None) -> None:
    """No exponents, no digits lost; what is no whole number is left out, and the job goes on without it."""
    plan(space, member(space, enqueuedAt=written, attempts=written))
    assert promote(space).moved == 1
    (entry,) = space.entries(space.keys.stream("default"))
    assert (entry.get("enqueuedAt"), entry.get("attempts")) == (expected, expected)


def test_what_others_add_travels_on(space: Keyspace) -> None:
    """Text fields that we don't know are kept; where the job is to go is not written into it."""
    plan(space, member(space, traceparent="00-ab", **{"": "empty"}, nested={"a": 1}, priority="low"))
    promote(space)
    (entry,) = space.entries(space.keys.stream("default"))
    assert set(entry) == {"taskName", "payload", "enqueuedAt", "traceparent", ""}


@pytest.mark.parametrize(
    ("fields", "queue"),
    [
        ({"streamKey": ..., "priority": "low"}, "low"),
        ({"streamKey": ..., "priority": ...}, "default"),
        ({"streamKey": None, "priority": None}, "default"),
        ({"priority": "urgent"}, "default"),
        ({"priority": ...}, "default"),
    ],
)
def test_the_stream_is_streamkey_else_priority_else_default(
    space: Keyspace, fields: dict[str, Any], queue: str
) -> None:
    """One other SDK routes by priority alone and may write no streamKey at all."""
    plan(space, member(space, **fields))
    assert promote(space).moved == 1
    assert len(space.ids(space.keys.stream(queue))) == 1


def test_a_member_without_a_payload_has_none(space: Keyspace) -> None:
    """The entry's payload is `null` then."""
    plan(space, member(space, payload=...))
    promote(space)
    (entry,) = space.entries(space.keys.stream("default"))
    assert entry["payload"] == "null"


MALFORMED: dict[str, Any] = {
    "no JSON": b"{not json",
    "not UTF-8": b"\xff\xfe\x00",
    "empty": b"",
    "no object": b'["taskName"]',
    "text": b'"taskName"',
    "number": b"5",
    "null": b"null",
    "too deep": b"[" * 5_000,
    "no task": {"taskName": ...},
    "task is null": {"taskName": None},
    "task is a number": {"taskName": 5},
    "payload is an object": {"payload": {"n": 1}},
    "payload is null": {"payload": None},
    "outside of the prefix": {"streamKey": "elsewhere:default"},
    "the prefix of a prefix": {"streamKey": "{prefix}x:default"},
    "the prefix alone": {"streamKey": "{prefix}:"},
    "a dead letter": {"streamKey": "{prefix}:default:dead-letter"},
    "a custom queue's dead letter": {"streamKey": "{prefix}:x:y:dead-letter"},
    "a dead letter by priority": {"streamKey": ..., "priority": "low:dead-letter"},
    "too long": {"streamKey": "{prefix}:" + "q" * 600},
    **{f"reserved: {name}": {"streamKey": "{prefix}:" + name} for name in sorted(RESERVED)},
    "below a reserved name": {"streamKey": "{prefix}:workers:w1"},
    "reserved by priority": {"streamKey": ..., "priority": "retries"},
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_job_goes_to_the_dead_letter_with_its_raw_bytes(space: Keyspace, case: str) -> None:
    """Malformed, or pointing to where no job may go: it never blocks those behind it, nor is it dropped."""
    bad: Any = MALFORMED[case]
    if isinstance(bad, dict):
        if isinstance(bad.get("streamKey"), str):
            bad = {**bad, "streamKey": bad["streamKey"].replace("{prefix}", space.keys.prefix)}
        bad = member(space, **bad).encode()
    plan(space, bad, due=1)
    plan(space, member(space), due=2)
    assert promote(space)[:3] == (2, "", set())
    ((_, entry),) = space.db.xrange(space.keys.dead_letter("default"))
    assert entry[b"raw"] == bad
    assert (entry[b"reason"], entry[b"queue"]) == (b"malformed", b"default")
    assert abs(int(entry[b"deadLetteredAt"]) - space.now()) < 5_000
    assert len(space.ids(space.keys.stream("default"))) == 1
    assert set(space.db.keys(f"{space.keys.prefix}:*")) == {
        space.keys.dead_letter("default").encode(), space.keys.stream("default").encode(),
    }  # fmt: skip


@pytest.mark.parametrize("queue", ["emails", "x:deadletter", "dead-letter", "dead-letters", "ünï köde", "a:b", "*"])
def test_streams_that_were_not_declared_are_answered_and_then_served(space: Keyspace, queue: str) -> None:
    """Others' queues may have any name; the member stays where it is until its stream is among the KEYS."""
    plan(space, member(space, queue), due=1)
    plan(space, member(space), due=2)
    first = promote(space)
    assert (first.moved, first.missing) == (1, {space.keys.stream(queue)})
    assert len(space.members(space.keys.scheduled)) == 1
    assert promote(space, queue)[:3] == (1, "", set())
    assert len(space.ids(space.keys.stream(queue))) == 1


def test_a_stream_name_that_is_no_utf8_is_answered_as_it_is(space: Keyspace) -> None:
    """Its bytes, so that the caller can give them back."""
    key = f"{space.keys.prefix}:".encode() + b"\xff"
    plan(space, b'{"taskName":"t","streamKey":"' + key + b'"}')
    keys: list[str | bytes] = [space.keys.scheduled, space.keys.retries, space.keys.dead_letter("default")]
    blob = (space.keys.prefix, 10, sorted(RESERVED), FIELDS)
    assert space.run("promote", keys, *blob)[2] == [key]
    assert space.run("promote", [*keys, key], *blob)[0] == 1
    assert space.db.xlen(key) == 1


def test_more_fields_than_lua_can_pass_on_go_to_the_dead_letter(space: Keyspace) -> None:
    """Kept whole there, as raw bytes; those behind it are promoted."""
    huge = member(space, **{f"f{i}": "v" for i in range(6_000)})
    plan(space, huge, due=1)
    plan(space, member(space), due=2)
    assert promote(space).moved == 2
    (entry,) = space.entries(space.keys.dead_letter("default"))
    assert entry["raw"] == huge


@pytest.mark.parametrize("bad", ["stream", "dead letter"])
def test_a_target_of_the_wrong_type_keeps_the_member_for_a_minute(space: Keyspace, bad: str) -> None:
    """It is put back, due a minute later; the others are promoted."""
    planted = space.keys.stream("low") if bad == "stream" else space.keys.dead_letter("default")
    space.plant(planted)
    stuck = member(space, "low") if bad == "stream" else "no json"
    plan(space, stuck, due=1)
    plan(space, member(space), due=2)
    before = space.now()
    found = promote(space)
    assert found.moved == 1
    ((kept, due),) = space.members(space.keys.scheduled).items()
    assert kept == stuck
    assert before + 60_000 <= due <= space.now() + 60_000
    assert found.due == str(int(due))
    assert len(space.ids(space.keys.stream("default"))) == 1


def test_a_stream_without_ids_left_keeps_the_member(space: Keyspace) -> None:
    """The XADD fails after the ZREM: the member is put back a minute later."""
    space.db.xadd(space.keys.stream("low"), {"f": "v"}, id="18446744073709551615-18446744073709551615")
    plan(space, member(space, "low"))
    assert promote(space).moved == 0
    ((_, due),) = space.members(space.keys.scheduled).items()
    assert due > space.now() + 50_000


@pytest.mark.parametrize("bad", ["scheduled", "retries"])
def test_a_set_of_the_wrong_type_is_left_out(space: Keyspace, bad: str) -> None:
    """The other one is promoted."""
    good = {"scheduled": "retries", "retries": "scheduled"}[bad]
    space.plant(getattr(space.keys, bad))
    plan(space, member(space), key=getattr(space.keys, good))
    assert promote(space)[:2] == (1, "")


def test_with_full_memory_nothing_is_lost(own: Keyspace) -> None:
    """Each due member is in its stream or still in its set; none is in both."""
    for n in range(5):
        plan(own, member(own, jobId=str(n)))
    plan(own, "no json")
    own.fill()
    promote(own)
    found = [e["jobId"] for e in own.entries(own.keys.stream("default"))]
    waiting = [json.loads(m)["jobId"] for m in own.members(own.keys.scheduled) if m != "no json"]
    assert sorted(found + waiting) == list("01234")
    assert own.db.exists(own.keys.dead_letter("default")) != ("no json" in own.members(own.keys.scheduled))


def test_a_repeated_call_moves_nothing_again(space: Keyspace) -> None:
    """Promotion is one step: after a lost reply the next call finds nothing due."""
    plan(space, member(space))
    assert promote(space).moved == 1
    assert promote(space).moved == 0
    assert len(space.ids(space.keys.stream("default"))) == 1


def test_two_equal_jobs_both_run(space: Keyspace) -> None:
    """Their ids keep them apart in the set; other SDKs' equal members are one, which is theirs to mend."""
    plan(space, member(space, jobId="a"), member(space, jobId="b"), member(space), member(space))
    assert promote(space).moved == 3


def test_a_batch_is_limited_and_says_that_there_is_more(space: Keyspace) -> None:
    """At most `limit` from each set, the earliest first."""
    for n in range(7):
        plan(space, member(space, jobId=f"s{n}"), due=n)
        plan(space, member(space, jobId=f"r{n}"), due=n, key=space.keys.retries)
    assert (promote(space, limit=3).moved, promote(space, limit=3).more) == (6, True)
    assert promote(space, limit=3)[0::4] == (2, False)
    found = [e["jobId"] for e in space.entries(space.keys.stream("default"))]
    assert found[:6] == ["s0", "s1", "s2", "r0", "r1", "r2"]
    assert len(set(found)) == 14


@pytest.mark.parametrize("score", ["-inf", "0", "1.5", "1795491213549e-3"])
def test_odd_scores_of_the_past_are_due(space: Keyspace, score: str) -> None:
    """Whatever stands for a time that has passed."""
    space.db.execute_command("ZADD", space.keys.scheduled, score, member(space))
    assert promote(space).moved == 1


def test_a_member_that_is_never_due_waits(space: Keyspace) -> None:
    """A score of +inf is a time that never comes; an earlier one of the other set is what the caller wakes for."""
    later = space.now() + 60_000
    space.db.execute_command("ZADD", space.keys.scheduled, "inf", member(space))
    assert promote(space).due == "inf"
    plan(space, member(space), due=later, key=space.keys.retries)
    assert promote(space).due == str(later)
