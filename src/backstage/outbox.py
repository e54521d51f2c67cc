"""Where enqueues of one moment meet: the calls of one turn of the loop travel as one batch."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol

from backstage.eager import start
from backstage.errors import BackstageError, RedisRefused, RedisUnavailable
from backstage.ready import Ready

AT_ONCE = 250
"""Jobs that close a batch of concurrent enqueues before the loop's turn ends."""

MOST, MOST_BYTES = 500, 1_048_576
"""What one call of a script carries: jobs, and characters of payload."""

IN_FLIGHT = 4

MARKER_MARGIN = 15_000
"""Ms for which a call's marker outlives the last try of that call."""


class Sender(Protocol):
    """Sends one batch: a Stream, or what makes more sure of it."""

    async def send(self, jobs: Sequence[Ready], call: str, marker_ttl: int) -> list[str | BackstageError | None]: ...


class Pending(asyncio.Future[str | None], Coroutine[Any, Any, str | None]):
    """The answer to an enqueue: a future, so that `gather` needs no task to wait for it, and a coroutine as well, for
    `create_task` and task groups take nothing else. Who cancels it only stops waiting: the job may leave all the same.
    """

    __slots__ = ()

    def send(self, value: None) -> object:
        return next(iter(self))

    def throw(self, *error: Any) -> object:
        self.cancel()
        return super().throw(*error)  # which raises it

    def close(self) -> None:
        self.cancel()


class Outbox:
    """Sends batches of jobs, and repeats a call whose fate is unknown: its id makes the repetition harmless.

    `budget`: ms after which it gives up. `mend` is awaited between tries (the embedded server may have to be started).
    `at_once` closes a batch, `in_flight` of them are on their way at the same time. `promise`: what a call waits for.
    """

    def __init__(
        self,
        sender: Sender,
        *,
        budget: int,
        mend: Callable[[], Awaitable[None]],
        at_once: int = AT_ONCE,
        in_flight: int = IN_FLIGHT,
        promise: str = "enqueued",
    ) -> None:
        self._sender, self._budget, self._mend = sender, budget, mend
        self._at_once, self._in_flight, self._promise = at_once, in_flight, promise
        own = secrets.token_hex(12)
        self._calls = (f"{own}-{n}" for n in itertools.count())
        """Ids of calls."""
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Ready, Pending]] = []
        self._armed = False
        self._sending: set[asyncio.Task[None]] = set()

    def put(self, job: Ready) -> Pending:
        """The job's id, in time; None for a duplicate; or the error."""
        pending = Pending(loop=self._loop)
        self._waiting.append((job, pending))
        if not self._armed:
            self._armed = True
            self._loop.call_soon(self._flush)
        elif len(self._waiting) >= self._at_once:
            self._send_off()  # the server works on it while this turn still enqueues
        return pending

    async def deliver(self, jobs: Sequence[Ready]) -> list[str | BackstageError | None]:
        """One call's batch (within what `cuts` says), tried again until it is answered or the budget is used up."""
        call, ttl = next(self._calls), self._budget + MARKER_MARGIN
        deadline, pause, why = self._loop.time() + self._budget / 1000, 0.05, "no answer"
        longest = self._budget / 2000  # half of it: should the connection be a dead one, there is time for another
        while True:
            try:
                async with asyncio.timeout(max(min(longest, deadline - self._loop.time()), 0.001)):
                    return await self._sender.send(jobs, call, ttl)
            except RedisRefused:
                raise
            except (RedisUnavailable, TimeoutError) as exc:
                why = str(exc) or why
                if deadline - self._loop.time() <= pause:
                    raise RedisUnavailable(
                        f"not {self._promise} within {self._budget} ms: {why.rstrip('.')}. "
                        "A try whose answer was lost may have arrived all the same"
                    ) from exc
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)
            await self._mend()

    async def drain(self) -> None:
        """Wait for all that was put before."""
        while self._waiting or self._sending:
            if self._sending:
                await asyncio.wait(self._sending)
            else:
                await asyncio.sleep(0)

    def _flush(self) -> None:
        self._armed = False
        self._send_off()

    def _send_off(self) -> None:
        while self._waiting and len(self._sending) < self._in_flight:
            most = next(cuts([job.payload for job, _ in self._waiting[: self._at_once]], self._at_once))
            batch, self._waiting = self._waiting[: most.stop], self._waiting[most.stop :]
            task = start(self._send(batch), self._loop, "backstage enqueue")
            if not task.done():
                self._sending.add(task)
                task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._send_off()

    async def _send(self, batch: list[tuple[Ready, Pending]]) -> None:
        try:
            verdicts = await self.deliver([job for job, _ in batch])
        except BackstageError as exc:
            verdicts = [exc] * len(batch)
        except asyncio.CancelledError:
            verdicts = [RedisUnavailable("closed while sending; the job may have arrived")] * len(batch)
        except Exception as exc:  # a mistake, ours or a serializer's: nobody may wait for ever because of it
            for _, pending in batch:
                if not pending.done():
                    pending.set_exception(exc)
            return
        for (_, pending), verdict in zip(batch, verdicts, strict=True):
            if pending.done():  # whoever asked has gone away
                continue
            if verdict is None or isinstance(verdict, str):
                pending.set_result(verdict)
            else:
                pending.set_exception(type(verdict)(str(verdict)))


def cuts(payloads: Sequence[str], most: int = MOST) -> Iterator[slice]:
    """In order, each within what one call carries. One payload alone may be larger."""
    longest = max(map(len, payloads), default=0)
    begin = size = 0
    if longest * most > MOST_BYTES:
        for at, payload in enumerate(payloads):
            if at - begin == most or (size and size + len(payload) > MOST_BYTES):
                yield slice(begin, at)
                begin, size = at, 0
            size += len(payload)
    for at in range(begin, len(payloads), most):
        yield slice(at, min(at + most, len(payloads)))
