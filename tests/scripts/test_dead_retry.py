"""dead_retry.lua: a job leaves the dead letter and is back in its queue in one step, byte for byte what it was."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from keyspace import Keyspace

LAPSED = ["deadLetteredAt", "originalId", "deliveryCount", "queue", "reason", "error", "traceback",
          "attempt", "crashes", "since"]  # fmt: skip
JOB = {"taskName": "t", "payload": b'{"a": 1.50}', "enqueuedAt": "1795491213548", "jobId": "job-1"}
DEATH = {
    "originalId": "5-0",
    "deliveryCount": "2",
    "queue": "default",
    "reason": "error",
    "error": "E",
    "traceback": "T",
}


def bury(space: Keyspace, *, first: bool = True, **fields: Any) -> str:
    """An entry as finish.lua writes it."""
    entry = ({"deadLetteredAt": "1795491213600"} if first else {}) | fields | DEATH
    entry_id: bytes = space.db.xadd(space.keys.dead_letter("default"), entry)
    return entry_id.decode()


def retry(space: Keyspace, *ids: str, start: str = "-", to: str = "+", limit: int = 100) -> Any:
    keys = [space.keys.dead_letter("default"), space.keys.stream("default")]
    return space.run("dead_retry", keys, "default", ids, start, to, limit, LAPSED)


def stream(space: Keyspace) -> list[list[tuple[bytes, bytes]]]:
    """The entries of the queue, their fields in order."""
    return [list(fields.items()) for _, fields in space.db.xrange(space.keys.stream("default"))]


def test_a_retried_job_is_the_same_job_with_all_its_attempts_before_it(space: Keyspace) -> None:
    """Id, payload bytes, options and foreign fields stay, in the order of every entry; counts and causes are gone."""
    bury(space, **JOB, attempts="3", traceparent=b"\xff\x00", attempt="2", crashes="1", since="7")
    assert retry(space) == [1, b""]
    assert stream(space) == [
        [
            (b"taskName", b"t"),
            (b"payload", b'{"a": 1.50}'),
            (b"enqueuedAt", b"1795491213548"),
            (b"jobId", b"job-1"),
            (b"attempts", b"3"),
            (b"traceparent", b"\xff\x00"),
        ]
    ]
    assert space.db.xlen(space.keys.dead_letter("default")) == 0


def test_the_first_four_fields_stand_in_their_order_whoever_wrote_the_entry(space: Keyspace) -> None:
    """A job of another SDK gets its id from its queue and its first entry, in the place where ids stand."""
    bury(space, timeout="9", payload="{}", taskName="t", enqueuedAt="1")
    retry(space)
    assert stream(space) == [
        [
            (b"taskName", b"t"),
            (b"payload", b"{}"),
            (b"enqueuedAt", b"1"),
            (b"jobId", b"default:5-0"),
            (b"timeout", b"9"),
        ]
    ]


def test_only_the_named_entries_are_retried(space: Keyspace) -> None:
    """Ids that are not there, or are given twice, count for nothing."""
    first, second = bury(space, **JOB), bury(space, **JOB)
    assert retry(space, second, second, "1-1") == [1, b""]
    assert [id.decode() for id, _ in space.db.xrange(space.keys.dead_letter("default"))] == [first]


@pytest.mark.parametrize(
    "fields", [{"raw": "no job"}, {"payload": "{}"}, {"taskName": "t"}], ids=["raw", "no task", "no payload"]
)
def test_what_never_was_a_job_stays_and_is_told(space: Keyspace, fields: dict[str, str]) -> None:
    """It is passed over, by name and in a range alike; those behind it go on."""
    odd = bury(space, **fields)
    assert retry(space, odd) == [0, b"", odd.encode()]
    bury(space, **JOB)
    assert retry(space) == [1, b"", odd.encode()]
    assert space.db.xlen(space.keys.dead_letter("default")) == 1


def test_a_range_goes_on_where_its_limit_ended_it_and_stops_at_its_end(space: Keyspace) -> None:
    """What dies again during a retry of all is not retried for ever: it lies behind the end."""
    ids = [bury(space, **JOB) for _ in range(5)]
    moved, following = retry(space, to=ids[3], limit=3)
    assert (moved, following.decode()) == (3, f"({ids[2]}")
    assert retry(space, start=following.decode(), to=ids[3], limit=3) == [1, b""]
    assert [id.decode() for id, _ in space.db.xrange(space.keys.dead_letter("default"))] == [ids[4]]


@pytest.mark.parametrize("which", ["stream", "dead_letter"])
def test_a_key_of_another_type_refuses_the_call_before_anything_is_written(space: Keyspace, which: str) -> None:
    """The error names the key."""
    if which == "stream":
        bury(space, **JOB)
    key = getattr(space.keys, which)("default")
    space.db.set(key, "x")
    with pytest.raises(redis.ResponseError, match=f"{key} holds a string"):
        retry(space)
    if which == "stream":
        assert space.db.xlen(space.keys.dead_letter("default")) == 1


def test_a_full_server_refuses_and_the_job_stays_dead(own: Keyspace) -> None:
    """The job is added before it is deleted, so a refusal loses nothing."""
    bury(own, **JOB)
    own.fill()
    with pytest.raises(redis.ResponseError, match=r"OOM|maxmemory"):
        retry(own)
    own.db.config_set("maxmemory", 0)
    assert own.db.xlen(own.keys.dead_letter("default")) == 1
    assert stream(own) == []
