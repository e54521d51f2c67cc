"""Broken variants of the protocol, for the test that the checker finds them. Each breaks one process."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from backstage import Done, Stream, stream
from backstage.job import Delivery
from backstage.outcome import Outcome
from backstage.ready import Ready, give_ids
from backstage.scripts import Script, load
from backstage.worker import lease
from backstage.worker.lease import Lease
from backstage.worker.slots import Slots
from backstage.worker.sources import Reclaimer
from backstage.worker.worker import Hall
from support.killpoints import die


def no_fence() -> None:
    """A retry, a dead letter, a release takes effect whoever holds the entry by now. (It does not renew either: the
    fence is what stands between a zombie that has not yet heard and the run of another.)"""
    _script(
        "finish",
        "return not p.err and #p == 1 and p[1][2] == me and p[1][4] == item[5]",
        "return not p.err and #p == 1",
    )
    no_renewal()


def ack_before_run() -> None:
    """What is taken is acknowledged at once, and then run: at-most-once."""
    make = Hall._make_slots

    def acknowledging(self: Hall, *args: Any) -> Slots:
        execute = self._executor.execute

        async def acknowledged(delivery: Delivery) -> Outcome:
            await self.stream.finish([(delivery, Done())])
            return await execute(delivery)

        self._executor.execute = acknowledged  # type: ignore[method-assign]
        return make(self, *args)

    Hall._make_slots = acknowledging  # type: ignore[method-assign]


def no_renewal() -> None:
    """Leases run from the moment of the take, however long the job is. (Nor does it look for abandoned jobs: what it
    finds of its own there begins its lease anew, too.)"""

    async def nothing(self: Reclaimer, room: int) -> list[Delivery]:
        return []

    Reclaimer.take = nothing  # type: ignore[method-assign]
    Lease._renew = lambda self: None  # type: ignore[method-assign]


def promote_in_two_calls() -> None:
    """What is due is taken out by one call and added by another. It dies between the two."""

    async def promoted(self: Stream, limit: int = 250) -> int | None:
        now = self.clock.now()
        found = await self._upkeep.call("ZRANGEBYSCORE", self.keys.scheduled, "-inf", now)
        if found:
            await self._upkeep.call("ZREM", self.keys.scheduled, *found)
            die()
        return None

    Stream.promote = promoted  # type: ignore[method-assign]


def dedupe_outside() -> None:
    """A dedupe key is taken by one call and its job added by another. It dies between the two."""

    async def sent(self: Stream, jobs: Sequence[Ready], call: str, marker_ttl: int) -> list[Any]:
        give_ids(jobs)
        for job in jobs:
            dedupe = job.options.dedupe if job.options else None
            if dedupe is not None:
                await self._sends.call("SET", self.keys.dedupe(dedupe.key), job.id, "NX", "PX", dedupe.ttl_ms)
        die()

    Stream.send = sent  # type: ignore[method-assign]


def renew_without_owner() -> None:
    """All that a worker believes to hold is claimed for it again, whoever has it by now."""
    _script("renew", "if mine[held[i]] == held[i + 1] then", "if true then")


VARIANTS: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (no_fence, ack_before_run, no_renewal, promote_in_two_calls, dedupe_outside, renew_without_owner)
}


def _script(name: str, old: str, new: str) -> None:
    sound = load(name)
    assert sound.text.count(old) == 1, f"{name}.lua has changed: {old!r} is not in it once"
    text = sound.text.replace(old, new)
    broken = Script(name, text, hashlib.sha1(text.encode()).hexdigest())

    @functools.cache
    def loaded(wanted: str) -> Script:
        return broken if wanted == name else load(wanted)

    stream.load = lease.load = loaded  # type: ignore[attr-defined]
