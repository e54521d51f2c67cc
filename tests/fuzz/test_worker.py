"""What others write where a worker reads: it lives, nothing vanishes, and the next good job is done within a second."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.evil import MIB, PAYLOADS, TEXTS, raws
from fuzz.stage import Stage
from support import profiles
from support.server import Server

NAMES = [b"taskName", b"payload", b"enqueuedAt", b"jobId", b"attempts", b"backoff", b"timeout", b"attempt", b"crashes",
         b"since", b"reason", b"queue", b"raw", b""]  # fmt: skip
TASKS = [b"any", b"direct", b"typed", b"thread", b"limited", b"unknown"]
NUMBERS = [b"0", b"1", b"2", b"5", b"-1", b"9007199254740991", b"9007199254740992", b"9" * 5_000, b"1.5", b"1e400",
           b"NaN", b"null", b"", b" 1", "٣".encode()]  # fmt: skip
BACKOFFS = [b'{"type":"fixed"}', b'{"type":"fixed","delay":1e999}', b'{"type":"exponential","delay":9007199254740991}',
            b'{"type":"x"}', b"{}", b"[]", b"null", b"1", b"[" * 100_000, b'{"type":"fixed","delay":NaN}',
            b'{"type":"fixed","delay":1,"jitter":1e400}', b'{"type":["fixed"]}',
            b'{"type":"fixed","delay":"1"}']  # fmt: skip

names = st.one_of(st.sampled_from(NAMES), raws.filter(lambda raw: len(raw) < 10_001))


def value_of(name: bytes) -> st.SearchStrategy[bytes]:
    """Mostly of the kind that belongs there."""
    fitting = {b"taskName": TASKS, b"payload": PAYLOADS, b"backoff": BACKOFFS}.get(name, NUMBERS)
    return st.one_of(st.sampled_from(fitting), raws) if name in NAMES else raws


pairs = names.flatmap(lambda name: st.tuples(st.just(name), value_of(name)))
whole = st.tuples(st.sampled_from(TASKS), st.sampled_from(PAYLOADS), st.lists(pairs, max_size=3)).map(
    lambda parts: [(b"taskName", parts[0]), (b"payload", parts[1]), *parts[2]]
)
entries = st.one_of(whole, st.lists(pairs, min_size=1, max_size=6))


@pytest.fixture
def stage(server: Server, prefix: str) -> Iterator[Stage]:
    with Stage(server, prefix) as running:
        yield running


def test_stream_entries(stage: Stage) -> None:
    """Each ran, waits because its task is unknown, or is in the dead letter."""

    @profiles.examples(120)
    @given(st.lists(entries, min_size=1, max_size=4))
    def throw(thrown: list[list[tuple[bytes, bytes]]]) -> None:
        for fields in thrown:
            stage.entry(fields)
        stage.lives()
        stage.accounted(thrown)

    throw()


@pytest.mark.parametrize("task", TASKS)
def test_every_payload_for_every_task(stage: Stage, task: bytes) -> None:
    """All of them by hand, in the order of the fast path and in another one."""
    thrown = []
    for payload in PAYLOADS:
        thrown += [[(b"taskName", task), (b"payload", payload), (b"enqueuedAt", b"1"), (b"jobId", b"j")],
                   [(b"payload", payload), (b"taskName", task)]]  # fmt: skip
    for fields in thrown:
        stage.entry(fields)
    stage.lives()
    stage.accounted(thrown)


def test_an_entry_of_many_fields_and_one_of_many_bytes(stage: Stage) -> None:
    """Thousands of fields, a name of a megabyte, a field that stands there ten thousand times."""
    thrown = [
        [(b"f%d" % i, b"v") for i in range(5_000)],
        [(b"taskName", b"any"), (b"payload", b"1"), *((b"f%d" % i, b"v") for i in range(5_000))],
        [(b"taskName", b"any")] * 10_000,
        [(b"x" * MIB, b"v")],
        [(b"taskName", b"x" * MIB), (b"payload", b"1")],
        [(b"taskName", b"any"), (b"payload", b"1"), (b"jobId", b"x" * MIB)],
        [(b"taskName", b"typed"), (b"payload", b"{}"), (b"jobId", b"\xff\0\r\n")],
    ]
    for fields in thrown:
        stage.entry(fields)
    stage.lives()
    stage.accounted(thrown)


def test_names_of_others(stage: Stage) -> None:
    """Tasks with names that we would refuse wait for a worker that knows them, as any unknown task does."""
    thrown = [[(b"taskName", text.encode(errors="surrogatepass")), (b"payload", b"1")] for text in TEXTS]
    for fields in thrown:
        stage.entry(fields)
    stage.lives()
    stage.accounted(thrown)


keys = ["default", "low", "x", "other:queue", "default:dead-letter", "workers", "workers:x", "retries", "broadcast", ""]
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from([text for text in TEXTS if len(text) < 200])
)
jsons = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("a"), inner), max_leaves=4
)


@st.composite
def members(draw: st.DrawFn, prefix: str) -> bytes:
    """A scheduled member, more or less."""
    if draw(st.integers(0, 3)) == 0:
        return draw(raws)
    member: dict[str, object] = {"taskName": draw(st.sampled_from([t.decode() for t in TASKS])), "payload": "1"}
    streams = st.one_of(st.sampled_from([f"{prefix}:{key}" for key in keys]), jsons)
    fields = {name.decode(): jsons for name in NAMES}
    fields |= {"streamKey": streams, "priority": st.one_of(st.sampled_from(keys), jsons)}
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True)):
        member[name] = draw(fields[name])
    return json.dumps(member, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")


dues = st.sampled_from([None, None, 0.0, -1e308, float("-inf"), 1e308])


@pytest.mark.parametrize("key", ["scheduled", "retries"])
def test_members(stage: Stage, key: str) -> None:
    """Each is promoted or in the dead letter; none holds up those behind it."""

    @profiles.examples(60)
    @given(st.lists(members(stage.prefix), min_size=1, max_size=3), dues)
    def throw(thrown: list[bytes], due: float | None) -> None:
        for member in thrown:
            stage.member(key, member, due)
        stage.lives(delay=1)
        stage.raw.zremrangebyscore(stage.key(key), 1e300, "+inf")
        assert key == "retries" or not stage.raw.zcard(stage.key(key))
        stage.dead(), stage.waiting()

    throw()


@pytest.mark.parametrize("key", ["scheduled", "retries"])
def test_bad_members_by_hand(stage: Stage, key: str) -> None:
    """What is no job is dead with its bytes."""
    job = {"taskName": "any", "payload": "1"}
    wrong = [
        job | {"taskName": 1}, job | {"payload": 1}, job | {"streamKey": "x"},
        job | {f"f{i}": "v" for i in range(5_000)},
        *(job | {"streamKey": stage.key(key)} for key in ("default:dead-letter", "workers:x", "broadcast", "")),
    ]  # fmt: skip
    bad = [
        *PAYLOADS,
        *(text.encode(errors="surrogatepass") for text in TEXTS),
        *(json.dumps(w).encode() for w in wrong),
    ]
    for member in set(bad):
        stage.member(key, member)
    stage.lives(delay=1)
    dead = stage.dead()
    assert {fields[b"reason"] for fields in dead} == {b"malformed"}
    assert {fields[b"raw"] for fields in dead} == set(bad)


def test_messages(stage: Stage) -> None:
    """A message that can't be read is passed over; the next one is heard, and jobs are done."""

    @profiles.examples(60)
    @given(st.lists(entries, min_size=1, max_size=3))
    def throw(thrown: list[list[tuple[bytes, bytes]]]) -> None:
        for fields in thrown:
            stage.entry([(name, b"typed" if value in TASKS else value) for name, value in fields], "broadcast")
        stage.hears()

    throw()
    stage.lives()


def test_the_control_channel(stage: Stage) -> None:
    """Whatever is said there, it is a hint at most."""

    @profiles.examples(60)
    @given(st.lists(st.one_of(raws, st.sampled_from([b"due", b"released"])), min_size=1, max_size=5))
    def throw(thrown: list[bytes]) -> None:
        for word in thrown:
            stage.raw.publish(stage.key("control"), word)
        stage.lives(delay=1)

    throw()


def test_what_handlers_raise(stage: Stage) -> None:
    """An error of any text, or of none: a failed run, dead after the last one, and the log survives it."""

    class Shy(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    errors: list[BaseException] = [ValueError(text) for text in TEXTS]
    errors += [Shy(), ValueError("x" * 10 * MIB), ValueError(10**5_000), ExceptionGroup("\ud800", [ValueError("\0")])]

    @stage.worker.on("raises", attempts=1)
    async def raises(at: int) -> None:
        raise errors[at]

    for at in range(len(errors)):
        stage.entry([(b"taskName", b"raises"), (b"payload", b"%d" % at)])
    stage.lives()
    dead = stage.dead()
    assert len(dead) == len(errors)
    assert all(len(fields[b"error"]) < 10_000 for fields in dead)
