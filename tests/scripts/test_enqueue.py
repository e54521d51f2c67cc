"""enqueue.lua: a batch of jobs in, each with a verdict; never a dedupe key without its job."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from keyspace import Keyspace

from support.server import Server

TTL = 60_000


def enqueue(
    space: Keyspace, *runs: Any, queues: tuple[str, ...] = ("default",), dedupe: tuple[str, ...] = (), id: str = "c1"
) -> Any:
    """The first queue's stream is key 3, its fellows and then the dedupe keys follow."""
    keys = [space.keys.call(id), space.keys.scheduled]
    keys += [space.keys.stream(queue) for queue in queues] + [space.keys.dedupe(key) for key in dedupe]
    return space.run("enqueue", keys, TTL, runs, space.keys.control)


def special(
    id: str = "j", *, key: int = 3, options: tuple[str, ...] = (), delay: int = 0, dedupe: int = 0, ttl: int = 9_000
) -> Any:
    return (key, "t", ("{}", id), options, delay, f"member of {id}" if delay else "", dedupe, ttl)


def test_a_run_is_added_in_order_with_the_fields_of_the_wire(space: Keyspace) -> None:
    """Jobs without options: taskName, payload, enqueuedAt (the server's ms), jobId, in this order and no others."""
    before = space.now()
    assert enqueue(space, (3, "mail.send", ('{"n":1}', "a", '"é"', "b"))) == []
    (_, first), (_, second) = space.db.xrange(space.keys.stream("default"))
    assert list(first) == [b"taskName", b"payload", b"enqueuedAt", b"jobId"]
    assert (first[b"payload"], first[b"jobId"], second[b"payload"]) == (b'{"n":1}', b"a", '"é"'.encode())
    assert len(first[b"enqueuedAt"]) == 13
    assert before <= int(first[b"enqueuedAt"]) <= space.now()


def test_option_fields_follow(space: Keyspace) -> None:
    """Option fields stand behind the four fixed ones, as they were given."""
    enqueue(space, special(options=("attempts", "3", "timeout", "5000")))
    ((_, fields),) = space.db.xrange(space.keys.stream("default"))
    assert list(fields)[4:] == [b"attempts", b"timeout"]


def test_a_delayed_job_waits_until_the_servers_now_plus_delay(space: Keyspace) -> None:
    """A delay puts the member into `scheduled` with the due time as an exact integer, and nothing into the stream."""
    before = space.now()
    assert enqueue(space, special(delay=5_000)) == []
    ((member, due),) = space.members(space.keys.scheduled).items()
    assert member == "member of j"
    assert before + 5_000 <= due <= space.now() + 5_000
    assert due == int(due)
    assert not space.db.exists(space.keys.stream("default"))


def test_dedupe_adds_once_and_remembers_the_job(space: Keyspace) -> None:
    """While the key is there, in the same batch or a later one, a job with it is a duplicate: verdict 0."""
    args: Any = {"queues": ("default",), "dedupe": ("k",)}
    assert enqueue(space, special("a", dedupe=4), special("b", dedupe=4), **args) == [2, 0]
    assert enqueue(space, special("c", dedupe=4, delay=50), id="c2", **args) == [1, 0]
    assert space.db.get(space.keys.dedupe("k")) == b"a"
    assert 8_000 < space.db.pttl(space.keys.dedupe("k")) <= 9_000
    assert [e["jobId"] for e in space.entries(space.keys.stream("default"))] == ["a"]
    assert not space.db.exists(space.keys.scheduled)


def test_a_dedupe_key_of_any_type_counts_as_taken(space: Keyspace) -> None:
    """Whatever stands under the dedupe key, the key is present: a duplicate, and what stands there stays."""
    space.plant(space.keys.dedupe("k"))
    assert enqueue(space, special(dedupe=4), dedupe=("k",)) == [1, 0]
    assert space.db.lrange(space.keys.dedupe("k"), 0, -1) == [b"planted"]


def test_a_repeated_call_answers_the_same_and_adds_nothing(space: Keyspace) -> None:
    """The marker keeps the verdicts, so that a call repeated after a lost reply changes nothing."""
    space.plant(space.keys.stream("bad"))
    runs = [(3, "t", ("1", "a", "2", "b")), special("c", dedupe=5), special("d", dedupe=5), special("e", key=4)]
    args: Any = {"queues": ("default", "bad"), "dedupe": ("k",)}
    first = enqueue(space, *runs, **args)
    assert first[:3] == [4, 0, 5]
    state = space.state()
    assert enqueue(space, *runs, **args) == first
    assert space.state() == state


def test_an_empty_answer_is_kept_as_well(space: Keyspace) -> None:
    """All added is an empty list, the second time too."""
    assert enqueue(space, (3, "t", ("1", "a"))) == enqueue(space, (3, "t", ("1", "a"))) == []
    assert len(space.ids(space.keys.stream("default"))) == 1


def test_the_marker_lapses(space: Keyspace) -> None:
    """It has the TTL that the caller gave: the retry budget and a margin."""
    enqueue(space, (3, "t", ("1", "a")))
    assert TTL - 1_000 < space.db.pttl(space.keys.call("c1")) <= TTL


def test_a_call_that_stopped_half_way_is_not_repeated(space: Keyspace) -> None:
    """An empty marker means that some of the jobs may have been added: an error, and nothing is added."""
    space.db.set(space.keys.call("c1"), "")
    with pytest.raises(redis.ResponseError, match="INCOMPLETE"):
        enqueue(space, (3, "t", ("1", "a")))
    assert not space.db.exists(space.keys.stream("default"))


def test_a_stream_key_of_the_wrong_type_refuses_its_own_jobs_only(space: Keyspace) -> None:
    """Refused by name; the others of the batch are added, and a refused job leaves no dedupe key."""
    space.plant(space.keys.stream("bad"))
    answer = enqueue(
        space,
        (4, "t", ("1", "a", "2", "b")), (3, "t", ("3", "c")),
        special("d", key=4, dedupe=5), special("e", key=4, delay=9),
        queues=("default", "bad"), dedupe=("k",),
    )  # fmt: skip
    assert answer[::2] == [1, 2, 4]
    assert {error.decode() for error in answer[1::2]} == {f"WRONGTYPE the key {space.keys.stream('bad')} holds a list"}
    assert [e["jobId"] for e in space.entries(space.keys.stream("default"))] == ["c"]
    assert list(space.members(space.keys.scheduled)) == ["member of e"]
    assert not space.db.exists(space.keys.dedupe("k"))


def test_a_scheduled_key_of_the_wrong_type_refuses_the_delayed_only(space: Keyspace) -> None:
    """Delayed jobs are refused by name, without a dedupe key left; the others are added."""
    space.plant(space.keys.scheduled)
    at, error = enqueue(space, special("a", delay=5, dedupe=4), special("b"), dedupe=("k",))
    assert (at, space.keys.scheduled in error.decode()) == (1, True)
    assert [e["jobId"] for e in space.entries(space.keys.stream("default"))] == ["b"]
    assert not space.db.exists(space.keys.dedupe("k"))


def test_a_marker_of_the_wrong_type_refuses_the_call(space: Keyspace) -> None:
    """The call can't be told from a repeat then: an error, and nothing is added."""
    space.plant(space.keys.call("c1"))
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        enqueue(space, (3, "t", ("1", "a")))
    assert not space.db.exists(space.keys.stream("default"))


def test_a_stream_without_ids_left_refuses_its_job(space: Keyspace) -> None:
    """An XADD that fails is that job's verdict; its dedupe key is taken back, the others go on."""
    space.db.xadd(space.keys.stream("bad"), {"f": "v"}, id="18446744073709551615-18446744073709551615")
    answer = enqueue(
        space, special("a", key=4, dedupe=5), (3, "t", ("1", "b")), queues=("default", "bad"), dedupe=("k",)
    )
    assert answer[0] == 1
    assert len(answer) == 2
    assert not space.db.exists(space.keys.dedupe("k"))
    assert len(space.ids(space.keys.stream("default"))) == 1


def test_a_full_server_refuses_the_whole_call(own: Keyspace) -> None:
    """Out of memory: an error at the first write, with nothing added, no dedupe key and no marker."""
    own.fill()
    with pytest.raises(redis.ResponseError, match="not allowed when used memory"):
        enqueue(own, (3, "t", ("1", "a")), special("b", dedupe=4), special("c", delay=5), dedupe=("k",))
    assert own.state() == {}


def test_a_read_only_server_refuses_the_whole_call(own: Keyspace, own_server: Server) -> None:
    """A replica: an error, nothing added."""
    own.db.replicaof("127.0.0.1", "1")
    with pytest.raises(redis.ReadOnlyError):
        enqueue(own, (3, "t", ("1", "a")), special("b", dedupe=4), dedupe=("k",))
    assert own.state() == {}


def test_a_job_that_is_due_before_all_others_is_told(space: Keyspace) -> None:
    """On the control channel, once a call; later ones and those without a delay are no news."""
    with space.db.pubsub() as told:
        told.subscribe(space.keys.control)
        assert (told.get_message(timeout=1) or {})["type"] == "subscribe"
        enqueue(space, special("a", delay=60_000), special("b", delay=50_000), id="c1")
        enqueue(space, special("c", delay=70_000), special("d"), id="c2")
        enqueue(space, special("e", delay=10_000), id="c3")
        messages = [told.get_message(timeout=1), told.get_message(timeout=1), told.get_message()]
    assert [message and message["data"] for message in messages] == [b"due", b"due", None]


def test_a_server_that_forbids_the_channel_takes_the_jobs(own: Keyspace) -> None:
    """Telling is a courtesy: nothing depends on it."""
    own.db.acl_setuser("default", enabled=True, nopass=True, keys=["*"], commands=["+@all"], reset_channels=True)
    assert enqueue(own, special("a", delay=60_000)) == []
    assert len(own.members(own.keys.scheduled)) == 1
    assert enqueue(own, special("a", delay=60_000)) == []


def test_five_hundred_jobs_of_many_queues_in_one_call(space: Keyspace) -> None:
    """A full call: every job in its own stream, none mixed up."""
    queues = tuple(f"q{i}" for i in range(100))
    runs = [(3 + i % 100, f"task{i % 100}", (str(i), f"id{i}")) for i in range(500)]
    assert enqueue(space, *runs, queues=queues) == []
    for i, queue in enumerate(queues):
        found = space.entries(space.keys.stream(queue))
        assert [(e["taskName"], e["payload"]) for e in found] == [(f"task{i}", str(n)) for n in range(i, 500, 100)]
