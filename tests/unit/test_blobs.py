"""What the scripts are given: flat, each key once, jobs without options in runs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from backstage import blobs
from backstage.job import Delivery, Job
from backstage.keys import Keys
from backstage.outcome import Again, Dead, Done, Outcome, Released
from backstage.ready import Ready
from backstage.serializer import JsonSerializer

KEYS = Keys("p")
unpack = msgspec.msgpack.decode


def enqueue(*jobs: tuple[Job, str]) -> tuple[list[str], Any]:
    keys, blob = blobs.enqueue(
        KEYS, [Ready.of(job, payload, job.queue or "default") for job, payload in jobs], "c", 5_000
    )
    return keys, unpack(blob)


def finish(
    others: list[tuple[Delivery, Outcome]], plain: dict[str, list[str]] | None = None, server: str = "s"
) -> tuple[list[str], Any]:
    encode = JsonSerializer().encode
    batch = blobs.finish(
        KEYS, plain or {}, others, server,
        group="g", consumer="me~1", delete=True, encode=lambda payload: encode(payload).decode(),
    )  # fmt: skip
    return batch.keys, unpack(batch.blob)


def delivery(queue: str = "default", *fields: bytes, times: int = 1) -> Delivery:
    return Delivery(queue, b"1-1", list(fields or (b"taskName", b"t", b"payload", b"1")), times, "s")


def test_neighbours_of_one_queue_and_task_travel_as_one_run() -> None:
    """Another queue, another task or an option begins a new run; the order is kept."""
    jobs = [
        Job("a", id="1"), Job("a", id="2"), Job("b", id="3"), Job("b", id="4", queue="low"),
        Job("b", id="5", attempts=2), Job("b", id="6", queue="low"),
    ]  # fmt: skip
    keys, (ttl, runs, control) = enqueue(*((job, f"p{job.id}") for job in jobs))
    assert keys == ["p:calls:c", "p:scheduled", "p:default", "p:low"]
    assert (ttl, control) == (5_000, "p:control")
    assert runs == [
        [3, "a", ["p1", "1", "p2", "2"]],
        [3, "b", ["p3", "3"]],
        [4, "b", ["p4", "4"]],
        [3, "b", ["p5", "5"], ["attempts", "2"], 0, "", 0, 0],
        [4, "b", ["p6", "6"]],
    ]


def test_keys_are_named_by_number() -> None:
    """Each key once, however many jobs name it."""
    keys, (_, runs, _) = enqueue(
        (Job("a", dedupe="k"), "1"), (Job("a", queue="low", dedupe={"key": "k", "ttl": 7}, delay=9), "2")
    )
    assert keys[2:] == ["p:default", "p:dedupe:k", "p:low"]
    assert [run[0] for run in runs] == [3, 5]
    assert (runs[0][6:], runs[1][6:]) == ([4, 3_600_000], [4, 7])
    assert (runs[1][4], msgspec.json.decode(runs[1][5])["streamKey"]) == (9, "p:low")


@pytest.mark.parametrize(
    ("outcome", "kind", "key"),
    [
        (Done(), "done", "p:scheduled"),
        (Again(5), "again", "p:retries"),
        (Dead("error"), "dead", "p:low:dead-letter"),
        (Released(), "released", None),
    ],
)
def test_an_item_names_its_keys_and_its_fence(outcome: Outcome, kind: str, key: str | None) -> None:
    """Kind, stream, stats, entry id, delivery count; the job id only where another server process handed it out."""
    found = delivery("low", times=3)
    keys, (group, consumer, delete, control, plain, (item,)) = finish([(found, outcome)])
    assert (group, consumer, delete, control, plain) == ("g", "me~1", 1, "p:control", [])
    assert (item[0], keys[item[1] - 1], item[3:6]) == (kind, "p:low", ["1-1", 3, ""])
    assert keys[item[2] - 1].startswith("p:stats:low:")
    assert key is None or keys[item[6] - 1] == key
    _, (*_, (item,)) = finish([(found, outcome)], server="another")
    assert item[5] == "low:1-1"


def test_successors_are_encoded_unless_they_are() -> None:
    """A payload is encoded with the serializer; JSON text that stands ready goes as it is."""
    ready = Job("b", msgspec.Raw(b'{"n": 1.0}'))
    _, (*_, (item,)) = finish([(delivery(), Done((Job("a", {"x": 1}, queue="low"), ready)))])
    assert [(n[1], n[2][0]) for n in item[7]] == [("a", '{"x":1}'), ("b", '{"n": 1.0}')]


def test_a_retry_that_no_member_can_carry_is_dead() -> None:
    """With bytes that JSON can't carry it is malformed; readable at least, should the entry be gone."""
    keys, (*_, (item,)) = finish([(delivery("low", b"taskName", b"t", b"payload", b"\xff"), Again(5))])
    assert (item[0], keys[item[6] - 1]) == ("dead", "p:low:dead-letter")
    assert item[7][item[7].index("reason") + 1] == "malformed"
    assert item[8] == ["taskName", "t", "payload", "\ufffd"]


def test_plain_ones_by_queue_and_none_for_empty_queues() -> None:
    """Stream, stats, ids."""
    keys, (*_, plain, items) = finish([], {"default": ["1-1", "1-2"], "low": []})
    assert (keys[plain[0] - 1], plain[2], len(plain), items) == ("p:default", ["1-1", "1-2"], 3, [])


def test_what_renew_answers_is_found_among_the_held() -> None:
    """By stream and entry id, for ids repeat across streams."""
    first, second, low = delivery(), Delivery("default", b"1-2", []), delivery("low", times=2)
    held = [[first, second], [low]]
    assert unpack(blobs.renew("g", "me~1", held)) == ["g", "me~1", [["1-1", 1, "1-2", 1], ["1-1", 2]]]
    assert blobs.lost(held, [2, b"1-1", 1, b"1-2"]) == [second, low]
    assert blobs.lost(held, []) == []
