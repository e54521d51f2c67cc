"""Outbox: enqueues of one moment travel together; a call whose fate is unknown is repeated, and adds nothing then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from backstage.eager import EAGER
from backstage.errors import BackstageError, RedisRefused, RedisUnavailable
from backstage.outbox import AT_ONCE, IN_FLIGHT, MOST, MOST_BYTES, Outbox, cuts
from backstage.ready import Ready, give_ids
from backstage.stream import Stream

Verdicts = list[str | BackstageError | None]


class Sender(Stream):
    """Takes the place of the connection: it writes down the calls, and answers as it is told."""

    def __init__(self, *, held: bool = False) -> None:
        self.calls: list[tuple[list[str], str, int]] = []
        self.errors: list[BaseException] = []
        self.refuse: dict[str, BackstageError] = {}
        self.gate = asyncio.Event()
        if not held:
            self.gate.set()

    async def send(self, jobs: Sequence[Ready], call: str, marker_ttl: int) -> Verdicts:
        give_ids(jobs)
        self.calls.append(([job.task for job in jobs], call, marker_ttl))
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        return [self.refuse.get(job.task) or (None if job.task == "duplicate" else job.id) for job in jobs]


class Bench:
    def __init__(self, *, held: bool = False, budget: int = 5_000) -> None:
        self.sender, self.mended = Sender(held=held), 0
        self.outbox = Outbox(self.sender, budget=budget, mend=self.mend)

    async def mend(self) -> None:
        self.mended += 1

    def put(self, *tasks: str) -> list[asyncio.Future[str | None]]:
        return [self.outbox.put(ready(task)) for task in tasks]


def ready(task: str = "t", payload: str = "null") -> Ready:
    return Ready(task, payload, "default")


async def test_one_turn_is_one_batch() -> None:
    """The calls of one turn of the loop travel as one call of the script, in their order."""
    bench = Bench()
    futures = bench.put("a", "b", "duplicate", "c")
    answers = await asyncio.gather(*futures)
    assert [tasks for tasks, _, _ in bench.sender.calls] == [["a", "b", "duplicate", "c"]]
    assert [answer is None for answer in answers] == [False, False, True, False]


async def test_a_batch_is_bounded() -> None:
    """More than a batch holds are several, few of them on their way at once; the rest waits."""
    bench = Bench(held=True)
    futures = bench.put(*["t"] * (AT_ONCE * (IN_FLIGHT + 2)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [len(tasks) for tasks, _, _ in bench.sender.calls] == [AT_ONCE] * IN_FLIGHT
    bench.sender.gate.set()
    await asyncio.gather(*futures)
    assert sum(len(tasks) for tasks, _, _ in bench.sender.calls) == AT_ONCE * (IN_FLIGHT + 2)


async def test_a_full_batch_leaves_before_the_turn_ends() -> None:
    """The server works on the first jobs of many while the same turn still enqueues, where tasks start eagerly."""
    bench = Bench(held=True)
    futures = bench.put(*["t"] * (AT_ONCE + 1))
    assert len(bench.sender.calls) == (1 if EAGER else 0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [len(tasks) for tasks, _, _ in bench.sender.calls] == [AT_ONCE, 1]
    bench.sender.gate.set()
    await asyncio.gather(*futures)


async def test_a_batch_is_bounded_in_bytes() -> None:
    """Large payloads close a batch too."""
    bench = Bench()
    await asyncio.gather(*(bench.outbox.put(ready(payload="x" * (MOST_BYTES // 2))) for _ in range(5)))
    assert [len(tasks) for tasks, _, _ in bench.sender.calls] == [2, 2, 1]


async def test_refused() -> None:
    """A job that was refused raises to its own caller alone."""
    bench = Bench()
    bench.sender.refuse["bad"] = RedisRefused("wrong type")
    good, bad = bench.put("good", "bad")
    assert await good
    with pytest.raises(RedisRefused, match="wrong type"):
        await bad


async def test_each_caller_gets_an_error_of_its_own() -> None:
    """One exception object raised to many callers would mix up their tracebacks."""
    bench = Bench()
    bench.sender.errors.append(RedisRefused("memory is full"))
    errors = await asyncio.gather(*bench.put("a", "b"), return_exceptions=True)
    assert [type(error) for error in errors] == [RedisRefused, RedisRefused]
    assert errors[0] is not errors[1]


async def test_nobody_waits_for_ever() -> None:
    """An error that is none of ours is raised to all callers of the batch too."""
    bench = Bench()
    bench.sender.errors.append(LookupError("a mistake"))
    errors = await asyncio.gather(*bench.put("a", "b"), return_exceptions=True)
    assert [repr(error) for error in errors] == ["LookupError('a mistake')"] * 2
    assert await bench.put("c")[0]


async def test_a_repeated_call_is_the_same_call() -> None:
    """After a lost answer it is sent again under its id, whose marker outlives the last try; the server is mended."""
    bench = Bench()
    bench.sender.errors += [RedisUnavailable("cut"), RedisUnavailable("cut")]
    (future,) = bench.put("t")
    assert await future
    first, second, third = bench.sender.calls
    assert first == second == third
    assert first[2] > 5_000
    assert bench.mended == 2


async def test_no_two_calls_have_one_id() -> None:
    """Or the second would add nothing."""
    bench = Bench()
    for _ in range(3):
        await asyncio.gather(*bench.put("t"))
    assert len({call for _, call, _ in bench.sender.calls}) == 3


async def test_a_refusal_is_not_repeated() -> None:
    """The server is there and says no: that is the answer."""
    bench = Bench()
    bench.sender.errors.append(RedisRefused("memory is full"))
    (future,) = bench.put("t")
    with pytest.raises(RedisRefused, match="memory is full"):
        await future
    assert len(bench.sender.calls) == 1


async def test_gives_up() -> None:
    """After its budget it raises RedisUnavailable, which says that the job may have arrived."""
    bench = Bench(budget=150)
    bench.sender.errors += [RedisUnavailable("nobody there")] * 100
    (future,) = bench.put("t")
    begun = time.monotonic()
    with pytest.raises(RedisUnavailable, match=r"not enqueued within 150 ms: nobody there\..*may have arrived"):
        await future
    assert 0.05 <= time.monotonic() - begun < 0.6
    assert len(bench.sender.calls) >= 2


async def test_no_answer() -> None:
    """A connection that is dead without saying so is given up in time for another try."""
    bench = Bench(held=True, budget=120)
    (future,) = bench.put("t")
    with pytest.raises(RedisUnavailable, match="no answer"):
        await future
    assert len(bench.sender.calls) >= 2


async def test_whoever_asked_has_gone_away() -> None:
    """A cancelled caller leaves the others of its batch alone."""
    bench = Bench(held=True)
    gone, there = bench.put("gone", "there")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gone.cancel()
    bench.sender.gate.set()
    assert await there


async def test_drain() -> None:
    """Waits for all that was put before."""
    bench = Bench(held=True)
    futures = bench.put(*["t"] * (AT_ONCE * 6))
    draining = asyncio.create_task(bench.outbox.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    bench.sender.gate.set()
    await draining
    assert all(future.done() for future in futures)


@pytest.mark.parametrize(
    ("sizes", "cut"),
    [
        ([], []),
        ([1], [1]),
        ([1] * MOST, [MOST]),
        ([1] * (MOST + 1), [MOST, 1]),
        ([MOST_BYTES], [1]),
        ([MOST_BYTES + 1, 1], [1, 1]),
        ([1, MOST_BYTES + 1, 1], [1, 1, 1]),
        ([MOST_BYTES // 2] * 5, [2, 2, 1]),
    ],
    ids=["none", "one", "full", "one more", "large", "too large", "too large between", "halves"],
)
def test_cuts(sizes: list[int], cut: list[int]) -> None:
    """In order, each within what one call carries; a payload that is larger by itself goes alone."""
    payloads = ["x" * size for size in sizes]
    found = [payloads[each] for each in cuts(payloads)]
    assert [len(part) for part in found] == cut
    assert [payload for part in found for payload in part] == payloads
