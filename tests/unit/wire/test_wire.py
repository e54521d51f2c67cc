"""The wire: what other SDKs wrote is the same job here, and what we write is a job to them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from backstage import wire
from backstage.errors import MalformedJob
from backstage.job import Backoff, Delivery, Job, Options
from backstage.keys import Keys
from backstage.outcome import Again, Dead
from backstage.queue import RESERVED
from backstage.ready import Ready
from backstage.scripts import load, pack
from support.server import Server

HERE = Path(__file__).parent
TYPESCRIPT = json.loads((HERE / "typescript.json").read_text("utf-8"))
GO = json.loads((HERE / "go.json").read_text("utf-8"))
ENTRIES = [
    (key.removeprefix("backstage:"), entry_id, fields)
    for key, entries in TYPESCRIPT["streams"].items()
    for entry_id, fields in entries
]

JOBS: dict[str, dict[str, Any]] = {
    "order.create": {
        "payload": {"orderId": "123", "amount": 12.5, "note": 'ü ☃ "q"', "tags": [1, None, True, {"a": []}]},
    },
    "no.payload": {"payload": None},
    "text": {"payload": "plain text"},
    "fixed": {"payload": {"n": 3}, "attempts": 2, "backoff": Backoff("fixed", 500)},
    "deduped": {"payload": {"n": 8}},
    "low.task": {
        "payload": {"n": 2}, "attempts": 3, "backoff": Backoff("exponential", 1000, 30_000), "timeout": 10_000,
    },
    "custom": {"payload": {"n": 4}},
    "urgent.task": {"payload": {"n": 1}},
    "cache.invalidate": {"payload": {"key": "users"}},
    "reminder": {"payload": {"n": 5}},
    "reminder.custom": {"payload": {"n": 7}},
    "reminder.full": {"payload": {"n": 6}, "attempts": 3, "backoff": Backoff("fixed", 100), "timeout": 5_000},
}  # fmt: skip
"""What the TypeScript SDK was asked for when the samples were taken, by task."""


def delivery(fields: dict[str, Any] | list[bytes], queue: str = "default", *, times: int = 1) -> Delivery:
    if isinstance(fields, dict):
        fields = [part if isinstance(part, bytes) else part.encode() for pair in fields.items() for part in pair]
    return Delivery(queue, b"1795491213548-1", fields, times)


def read(found: Delivery) -> Job:
    return wire.decode(found, wire.any_payload(wire.payload_of(wire.fields_of(found.fields))))


def options(job: Job) -> dict[str, Any]:
    """Payload and options, those that are there."""
    given = {"attempts": job.attempts, "backoff": job.backoff, "timeout": job.timeout}
    return {"payload": job.payload, **{name: value for name, value in given.items() if value is not None}}


@pytest.fixture
def promoted(server: Server, prefix: str) -> Any:
    """Promotes members with our own script; the entries as deliveries, by queue."""
    keys = Keys(prefix)

    def promote(*members: str, retries: bool = False) -> dict[str, list[Delivery]]:
        queues = ("urgent", "default", "low", "notifications")
        with redis.Redis(unix_socket_path=server.socket) as db:
            db.zadd(keys.retries if retries else keys.scheduled, {m: n for n, m in enumerate(members)})
            names = [keys.scheduled, keys.retries, keys.dead_letter("default"), *map(keys.stream, queues)]
            moved, *_ = db.eval(
                load("promote").text, len(names), *names, pack((prefix, 100, sorted(RESERVED), wire.FIELDS))
            )
            assert moved == len(members)
            assert not db.exists(keys.dead_letter("default"))
            found = {}
            for queue in queues:
                entries = db.execute_command("XRANGE", keys.stream(queue), "-", "+")
                found[queue] = [
                    Delivery(queue, id, [p for pair in fields.items() for p in pair]) for id, fields in entries
                ]
                db.delete(keys.stream(queue))
            return found

    return promote


class TestTypeScript:
    @pytest.mark.parametrize(
        ("queue", "entry_id", "fields"), ENTRIES, ids=[f"{e[0]} {e[2]['taskName']}" for e in ENTRIES]
    )
    def test_its_entries_are_the_same_jobs(self, queue: str, entry_id: str, fields: dict[str, str]) -> None:
        """Task, payload, attempts, backoff, timeout, time of enqueueing; the id is made of queue and entry id."""
        found = Delivery(queue, entry_id.encode(), [p.encode() for pair in fields.items() for p in pair])
        job = read(found)
        lost = queue.endswith(":dead-letter")  # its dead letters keep the payload, not the options
        expected = JOBS[fields["taskName"]]
        assert options(job) == ({"payload": expected["payload"]} if lost else expected)
        assert (job.task, job.queue, job.id) == (fields["taskName"], queue, f"{queue}:{entry_id}")
        assert job.enqueued_at == datetime.fromtimestamp(int(fields["enqueuedAt"]) / 1000, UTC)
        assert (job.attempt, job.crashes, job.since, job.dedupe, job.delay) == (0, 0, None, None, None)

    def test_ids_repeat_across_streams_but_job_ids_do_not(self) -> None:
        """Entries of the capture share entry ids; each is a job of its own all the same."""
        jobs = [wire.job_id(Delivery(queue, id.encode(), []), {}) for queue, id, _ in ENTRIES]
        assert len({id for _, id, _ in ENTRIES}) < len(jobs) == len(set(jobs))

    def test_its_scheduled_members_are_the_same_jobs(self, promoted: Any, prefix: str) -> None:
        """Promoted by us into the stream that it meant."""
        members = [m.replace("backstage:", f"{prefix}:") for m, _ in TYPESCRIPT["zsets"]["backstage:scheduled"]]
        found = promoted(*members)
        tasks = {queue: [read(d).task for d in deliveries] for queue, deliveries in found.items()}
        assert tasks == {
            "urgent": [], "default": ["reminder"], "low": ["reminder.full"], "notifications": ["reminder.custom"],
        }  # fmt: skip
        for found_job in (read(d) for deliveries in found.values() for d in deliveries):
            assert options(found_job) == JOBS[found_job.task]
            assert found_job.enqueued_at == datetime.fromtimestamp(1795491213.549, UTC)


class TestGo:
    @pytest.mark.parametrize("sample", GO["entries"], ids=lambda s: s["job"]["task"])
    def test_its_entries_are_the_same_jobs(self, sample: dict[str, Any]) -> None:
        """A maxDelay of 0 means none."""
        job = read(delivery(sample["fields"]))
        expected = dict(sample["job"])
        assert job.task == expected.pop("task")
        if "backoff" in expected:
            expected["backoff"] = Backoff(*expected["backoff"])
        assert options(job) == expected

    def test_its_scheduled_members_are_the_same_jobs(self, promoted: Any, prefix: str) -> None:
        """With a priority and without, with a stream key and without."""
        found = promoted(*(s["member"].replace("backstage:", f"{prefix}:") for s in GO["members"]))
        for sample in GO["members"]:
            (job,) = [read(d) for d in found[sample["queue"]]]
            expected = dict(sample["job"])
            assert job.task == expected.pop("task")
            if "backoff" in expected:
                expected["backoff"] = Backoff(*expected["backoff"])
            assert options(job) == expected


FULL = Job(
    "reminder", id="0193a", attempts=3, backoff=Backoff("exponential", 1000, 30_000, 0.25), timeout=5_000, delay=9
)
BARE = Job("reminder", id="0193b", delay=9)
PAYLOAD = '{"n":9007199254740993,"s":"ü\\u0000"}'


class TestWritten:
    def test_options_have_the_names_and_formats_of_the_others(self) -> None:
        """Flat text: whole numbers, the backoff as JSON with camelCase; only what the caller gave."""
        assert wire.option_fields(FULL._options or Options()) == [
            "attempts", "3",
            "backoff", '{"type":"exponential","delay":1000,"maxDelay":30000,"jitter":0.25}',
            "timeout", "5000",
        ]  # fmt: skip
        assert wire.option_fields(Options(backoff=Backoff("fixed", 500))) == [
            "backoff", '{"type":"fixed","delay":500}',
        ]  # fmt: skip
        assert wire.option_fields(BARE._options or Options()) == []

    def test_a_member_has_the_shape_of_the_typescript_samples(self) -> None:
        """The same keys with values of the same JSON types, and our jobId."""
        (sample,) = [json.loads(m) for m, _ in TYPESCRIPT["zsets"]["backstage:scheduled"] if "reminder.full" in m]
        ours = json.loads(wire.member(Ready.of(FULL, PAYLOAD, "low"), "backstage:low"))
        assert ours.pop("jobId") == "0193a"
        assert {k: type(v) for k, v in ours.items()} == {k: type(v) for k, v in sample.items()}
        assert list(ours) == list(sample)
        assert (ours["streamKey"], ours["priority"], ours["payload"]) == ("backstage:low", "low", PAYLOAD)
        assert len(str(ours["enqueuedAt"])) == 13
        bare = json.loads(wire.member(Ready.of(BARE, PAYLOAD, "low"), "backstage:low"))
        assert set(bare) == {"taskName", "payload", "enqueuedAt", "streamKey", "priority", "jobId"}

    @pytest.mark.parametrize("job", [FULL, BARE], ids=["full", "bare"])
    def test_the_typescript_promoter_moves_a_job_that_we_understand(self, job: Job) -> None:
        """It copies six names as text to `streamKey`; the id is dropped, all else is the same."""
        member = json.loads(wire.member(Ready.of(job, PAYLOAD, "emails"), "backstage:emails"))
        assert member["streamKey"] == "backstage:emails"
        names = ("taskName", "payload", "enqueuedAt", "attempts", "backoff", "timeout")
        found = delivery({name: str(member[name]) for name in names if name in member}, "emails")
        assert options(read(found)) == {**options(job), "payload": json.loads(PAYLOAD)}
        assert (read(found).task, read(found).id) == ("reminder", "emails:1795491213548-1")

    @pytest.mark.parametrize("job", [FULL, BARE], ids=["full", "bare"])
    def test_the_go_promoter_moves_a_job_that_we_understand(self, job: Job) -> None:
        """It goes by `priority` alone, which names the queue, and copies three names."""
        member = json.loads(wire.member(Ready.of(job, PAYLOAD, "emails"), "backstage:emails"))
        assert f"backstage:{member['priority']}" == member["streamKey"]
        found = delivery({name: str(member[name]) for name in ("taskName", "payload", "enqueuedAt")}, "emails")
        assert (read(found).task, read(found).payload) == ("reminder", json.loads(PAYLOAD))
        assert read(found).enqueued_at is not None

    def test_our_own_promoter_moves_the_same_job(self, promoted: Any, prefix: str) -> None:
        """Id, options and payload text arrive as they were."""
        (found,) = promoted(wire.member(Ready.of(FULL, PAYLOAD, "low"), f"{prefix}:low"))["low"]
        assert wire.payload_of(wire.fields_of(found.fields)) == PAYLOAD.encode()
        assert (read(found).id, read(found).task) == ("0193a", "reminder")
        assert options(read(found)) == {**options(FULL), "payload": json.loads(PAYLOAD)}


ODD = ["1.5", "null", "1e400", "-1", "", " 3", "3 ", "+3", "٣", "1_0", "9" * 400, "0x10", "true", str(2**53)]


class TestReading:
    @pytest.mark.parametrize("value", ODD)
    @pytest.mark.parametrize("name", ["attempts", "timeout", "attempt", "crashes", "since", "enqueuedAt"])
    def test_odd_numbers_count_as_not_given(self, name: str, value: str) -> None:
        """The job runs with what its task and worker say."""
        job = read(delivery({"taskName": "t", "payload": "1", name: value}))
        assert (job.attempts, job.timeout, job.attempt, job.crashes, job.since) == (None, None, 0, 0, None)
        assert job.enqueued_at is None

    @pytest.mark.parametrize(
        "text",
        ["", "null", "[]", "5", '"fixed"', "{}", "{", '{"type":"linear","delay":5}', '{"type":"fixed","delay":-1}',
         '{"type":"fixed","delay":"5"}', '{"type":"fixed","delay":1.5}', '{"type":"fixed","delay":1e400}',
         '{"type":["fixed"]}', '{"type":{}}', '{"type":"fixed","maxDelay":"x"}', '{"type":"fixed","jitter":"x"}',
         '{"type":"fixed","jitter":7}', '{"type":"fixed","delay":null}', "[" * 5_000, '{"type":"fixed","delay":true}'],
    )  # fmt: skip
    def test_an_odd_backoff_counts_as_not_given(self, text: str) -> None:
        """Whatever stands there, the job runs."""
        assert read(delivery({"taskName": "t", "payload": "1", "backoff": text})).backoff is None

    @pytest.mark.parametrize("bad", [b"\xff\xfe", b"\x00\x80"])
    @pytest.mark.parametrize("name", ["attempts", "backoff", "timeout", "enqueuedAt", "traceparent", "attempt"])
    def test_bytes_that_are_no_text_in_an_optional_field(self, name: str, bad: bytes) -> None:
        """Ignored as well."""
        assert options(read(delivery({"taskName": "t", "payload": "1", name: bad}))) == {"payload": 1}

    def test_a_job_id_that_is_no_text_is_readable_at_least(self) -> None:
        """It is made readable, the same each time."""
        assert read(delivery({"taskName": "t", "payload": "1", "jobId": b"a\xff"})).id == "a\ufffd"

    def test_an_empty_job_id_is_none(self) -> None:
        """The id is that of an entry without one."""
        assert read(delivery({"taskName": "t", "payload": "1", "jobId": ""})).id == "default:1795491213548-1"

    def test_of_two_fields_of_one_name_the_first_counts(self) -> None:
        """As for whoever reads by position."""
        twice = [b"taskName", b"a", b"payload", b"1", b"taskName", b"b", b"payload", b"2"]
        job = read(delivery(twice))
        assert (job.task, job.payload) == ("a", 1)

    def test_fields_may_stand_in_any_order(self) -> None:
        """Names count, not places."""
        job = read(delivery({"timeout": "5", "jobId": "j", "payload": "1", "enqueuedAt": "0", "taskName": "t"}))
        assert (job.task, job.payload, job.timeout, job.id) == ("t", 1, 5, "j")
        assert job.enqueued_at == datetime(1970, 1, 1, tzinfo=UTC)

    @pytest.mark.parametrize("fields", [{}, {"payload": "1"}, {"taskName": b"\xff", "payload": "1"}])
    def test_without_a_readable_task_it_is_malformed(self, fields: dict[str, Any]) -> None:
        """MalformedJob, which says what is missing."""
        with pytest.raises(MalformedJob, match="taskName"):
            wire.decode(delivery(fields))

    def test_without_a_payload_it_is_malformed(self) -> None:
        """MalformedJob; a payload that is no JSON is the serializer's to refuse."""
        with pytest.raises(MalformedJob, match="payload"):
            wire.payload_of(wire.fields_of([b"taskName", b"t"]))

    def test_the_far_future_is_no_error(self) -> None:
        """A time beyond the calendar counts as not given."""
        assert read(delivery({"taskName": "t", "payload": "1", "enqueuedAt": str(2**53 - 1)})).enqueued_at is None


def retried(fields: dict[str, Any], again: Again, promoted: Any, prefix: str, times: int = 1) -> Delivery:
    """The delivery after a retry, on its own way through `retries`."""
    member = wire.retry_member(delivery(fields, "low", times=times), again, f"{prefix}:low")
    (found,) = promoted(member, retries=True)["low"]
    assert isinstance(found, Delivery)
    return found


class TestRetry:
    EVERY = {
        "taskName": "t", "payload": PAYLOAD, "enqueuedAt": "1795491213549", "jobId": "j", "attempts": "3",
        "backoff": '{"type":"fixed","delay":5}', "timeout": "5000", "traceparent": "00-ab-cd", "foreign": "1.50",
        "odd": "\x00\n\u2028", "": "no name",
    }  # fmt: skip

    def test_every_field_survives(self, promoted: Any, prefix: str) -> None:
        """Foreign and odd ones too, byte for byte; only the counts change."""
        found = retried(self.EVERY, Again(0), promoted, prefix)
        got = {k.decode(): v.decode() for k, v in wire.fields_of(found.fields).items()}
        assert got == {**self.EVERY, "attempt": "1"}
        assert found.fields[:8:2] == [b"taskName", b"payload", b"enqueuedAt", b"jobId"]

    def test_odd_numbers_survive_as_they_are(self, promoted: Any, prefix: str) -> None:
        """What we ignore we don't change."""
        odd = {"taskName": "t", "payload": "1", "jobId": "j", "attempts": "1.5", "timeout": "null", "enqueuedAt": "x"}
        found = retried(odd, Again(0), promoted, prefix)
        got = {k.decode(): v.decode() for k, v in wire.fields_of(found.fields).items()}
        assert got == {**odd, "attempt": "1"}

    @pytest.mark.parametrize(
        ("before", "times", "again", "after"),
        [
            ({}, 1, Again(0), {"attempt": "1"}),
            ({"attempt": "2"}, 1, Again(0), {"attempt": "3"}),
            ({}, 3, Again(0), {"attempt": "1", "crashes": "2"}),
            ({"crashes": "2", "attempt": "1"}, 2, Again(0), {"attempt": "2", "crashes": "3"}),
            ({}, 1, Again(0, counts=False, since=17), {"since": "17"}),
            ({"attempt": "2", "since": "17"}, 1, Again(0, counts=False, since=17), {"attempt": "2", "since": "17"}),
            ({"since": "17"}, 1, Again(0), {"attempt": "1"}),
            ({"attempt": "x", "crashes": "-1", "since": "1.5"}, 1, Again(0), {"attempt": "1"}),
        ],
    )
    def test_counts(
        self, promoted: Any, prefix: str, before: dict[str, str], times: int, again: Again, after: dict[str, str]
    ) -> None:
        """attempt: failed runs; crashes: deliveries without a finish, carried on; since: cleared by a real run."""
        base = {"taskName": "t", "payload": "1", "jobId": "j"}
        found = retried({**base, **before}, again, promoted, prefix, times)
        got = {k.decode(): v.decode() for k, v in wire.fields_of(found.fields).items()}
        assert got == {**base, **after}
        assert read(found).attempt == int(after.get("attempt", 0))

    def test_another_sdks_job_carries_its_id_from_now_on(self, promoted: Any, prefix: str) -> None:
        """`<queue>:<entry id>` of the first entry, though the next one has another id."""
        first = {"taskName": "t", "payload": "1"}
        second = retried(first, Again(0), promoted, prefix)
        assert read(second).id == "low:1795491213548-1"

    def test_the_queue_stays(self, promoted: Any, prefix: str) -> None:
        """streamKey and priority say where it came from, whatever fields of these names it had."""
        found = retried(
            {"taskName": "t", "payload": "1", "streamKey": "x", "priority": "y"}, Again(0), promoted, prefix
        )
        assert found.queue == "low"

    @pytest.mark.parametrize("bad", [{"foreign": b"\xff"}, {"payload": b"\xff"}, {b"\xff": "x"}])
    def test_bytes_that_json_cannot_carry(self, bad: dict[Any, Any]) -> None:
        """MalformedJob: the job belongs in the dead letter, where the bytes survive."""
        flat = [b"taskName", b"t"]
        for name, value in bad.items():
            flat += [part if isinstance(part, bytes) else part.encode() for part in (name, value)]
        with pytest.raises(MalformedJob):
            wire.retry_member(delivery(flat), Again(0), "p:default")

    def test_a_retry_that_others_promote_is_a_job_still(self) -> None:
        """`retries` is ours, but nothing in a member would break the promoter of another SDK."""
        member = json.loads(wire.retry_member(delivery(self.EVERY), Again(0), "backstage:default"))
        assert (type(member["payload"]), type(member["enqueuedAt"]), type(member["attempts"])) == (str, int, int)


class TestDead:
    def test_what_a_dead_letter_adds(self) -> None:
        """The samples' names, and ours; a job id where the entry has none."""
        found = delivery({"taskName": "t", "payload": "1"}, "low", times=2)
        flat = wire.dead_fields(found, Dead("error", "ValueError: x", "Traceback …"))
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        assert fields == {
            "originalId": "1795491213548-1", "deliveryCount": "2", "queue": "low", "reason": "error",
            "error": "ValueError: x", "traceback": "Traceback …", "jobId": "low:1795491213548-1",
        }  # fmt: skip
        ((_, sample),) = TYPESCRIPT["streams"]["backstage:default:dead-letter"]
        assert set(sample) - {"taskName", "payload", "enqueuedAt", "deadLetteredAt"} <= set(fields)

    def test_long_and_odd_texts_are_bounded(self) -> None:
        """Both ends of an error tell most; lone surrogates don't break the write."""
        flat = wire.dead_fields(delivery({"jobId": "j"}), Dead("error", "a" + "x" * 9_999 + "z", "\ud800" * 50_000))
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        assert len(fields["error"]) <= 2_000
        assert (fields["error"][0], fields["error"][-1]) == ("a", "z")
        assert len(fields["traceback"]) <= 16_000
        assert "jobId" not in fields
