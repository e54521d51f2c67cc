import copy
import time
from datetime import timedelta
from typing import Any, NamedTuple

import pytest

from backstage.errors import ConfigError, InvalidName
from backstage.ids import new_ids
from backstage.job import Backoff, Dedupe, Delivery, Job, Next, to_backoff, to_dedupe
from backstage.queue import Queue


class Route(NamedTuple):
    """What a Task shows of itself."""

    name: str
    queue: str | None


def test_ids_are_uuid7_and_sort_by_time() -> None:
    """Version 7, variant 10, the time in front, rising within a batch, never the same twice."""
    before = time.time_ns() // 1_000_000
    ids = new_ids(1_000)
    after = time.time_ns() // 1_000_000
    assert len({*ids, *new_ids(1_000)}) == 2_000
    assert ids == sorted(ids)
    for id in ids:
        assert [len(part) for part in id.split("-")] == [8, 4, 4, 4, 12]
        assert id[14] == "7"
        assert id[19] in "89ab"
        assert before <= int(id.replace("-", "")[:12], 16) <= after


def test_a_job_has_its_id_before_it_is_sent_and_keeps_it() -> None:
    """An id can be read at any time, or given, and never changes."""
    job = Job("send")
    assert job.id == job.id
    assert Job("send", id="order-1").id == "order-1"
    with pytest.raises(AttributeError):
        job.id = "other"  # type: ignore[misc]
    with pytest.raises(InvalidName, match=r"^job name"):
        Job("send", id="a b")


def test_options_are_kept_in_milliseconds() -> None:
    """Options as the wire has them, whichever way they were given."""
    job = Job(
        "send", {"a": 1}, queue=Queue("emails"), delay=timedelta(seconds=1), attempts=2, timeout=timedelta(seconds=3),
        dedupe="key", backoff={"type": "fixed", "delay": 5, "maxDelay": 6},
    )  # fmt: skip
    assert (job.task, job.payload, job.queue) == ("send", {"a": 1}, "emails")
    assert (job.delay, job.attempts, job.timeout) == (1_000, 2, 3_000)
    assert job.dedupe == Dedupe("key", 3_600_000)
    assert job.backoff == Backoff("fixed", 5, 6)
    assert not job.plain


def test_none_is_not_given() -> None:
    """None everywhere is the same as nothing; such a job is plain."""
    job = Job("send", priority=None, queue=None, delay=None, dedupe=None, attempts=None, backoff=None, timeout=None)
    assert job.plain
    assert job.queue is None


def test_queue_beats_priority() -> None:
    """Both may be given: the queue counts."""
    assert Job("send", priority="low").queue == "low"
    assert Job("send", priority="low", queue="emails").queue == "emails"
    assert Job("send", queue="emails").plain


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"priority": "high"}, "priority='high'.*give queue='high'"),
        ({"attempts": 0}, "attempts=0"),
        ({"attempts": True}, "attempts=True"),
        ({"delay": -1}, "delay=-1"),
        ({"delay": 0.5}, "delay=0.5"),
        ({"timeout": 0}, "timeout=0"),
        ({"dedupe": 5}, "dedupe=5"),
        ({"dedupe": ""}, "dedupe key"),
        ({"dedupe": "x" * 513}, "dedupe key"),
        ({"dedupe": {"key": "a", "ttl": 0}}, "dedupe ttl"),
        ({"dedupe": {"key": "a", "tll": 1}}, "unknown key 'tll'; known are key, ttl"),
        ({"backoff": {"type": "linear"}}, "'linear'"),
        ({"backoff": {"type": "fixed", "jitter": 2}}, "jitter"),
        ({"backoff": {"type": "fixed", "wait": 2}}, "unknown key 'wait'"),
        ({"backoff": 5}, "backoff=5"),
    ],
)
def test_bad_options(options: dict[str, Any], says: str) -> None:
    """Each is an error at once that names the option and what it got."""
    with pytest.raises(ConfigError, match=says):
        Job("send", **options)


@pytest.mark.parametrize("task", [None, 5, print, object()])
def test_bad_task(task: Any) -> None:
    """Neither a name nor a Task."""
    with pytest.raises(ConfigError, match="name or a Task"):
        Job(task)


def test_a_task_brings_its_queue_as_route() -> None:
    """The task's own queue counts only where the caller names none."""
    job = Job(Route("send", "emails"))
    assert (job.task, job.route, job.queue) == ("send", "emails", None)


def test_mappings_in_both_spellings() -> None:
    """camelCase as on the wire, snake_case as in Python; None is not given."""
    assert to_backoff({"type": "fixed", "max_delay": 5}) == to_backoff({"type": "fixed", "maxDelay": 5})
    assert to_backoff({"type": "fixed", "maxDelay": None}).max_delay is None
    assert to_dedupe({"key": "a", "ttl": timedelta(seconds=1)}) == Dedupe("a", 1_000)


def test_next_makes_a_new_job_each_time() -> None:
    """A Next is an instruction and may be returned often: every job of it has an id of its own."""
    following = Next(Route("send", "emails"), {"a": 1}, delay=5)
    first, second = following.job(), following.job()
    assert first.id != second.id
    assert (first.task, first.payload, first.delay, first.route) == ("send", {"a": 1}, 5, "emails")
    assert (first.attempt, first.crashes, first.since, first.enqueued_at) == (0, 0, None, None)


def test_no_payload_in_a_repr() -> None:
    """Payloads belong in no log."""
    assert "secret" not in repr(Job("send", "secret")) + repr(Next("send", "secret"))


def test_jobs_can_be_copied() -> None:
    """A copy is the same request."""
    job = Job("send", 1, delay=5)
    assert (copy.copy(job).id, copy.copy(job).delay) == (job.id, 5)


def test_deliveries_compare_by_identity() -> None:
    """Two deliveries of one entry are two values, and can be kept in a set."""
    one, two = Delivery("emails", b"1-0", []), Delivery("emails", b"1-0", [])
    assert one != two
    assert len({one, two}) == 2
