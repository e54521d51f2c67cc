"""Ready: a job on its way out. All about it has been checked, and its payload is text."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from backstage.ids import new_ids
from backstage.job import Job, Options


class Ready(msgspec.Struct, gc=False):
    """A job as it is sent. `payload` is JSON; `id` is empty until it leaves, where its caller gave none."""

    task: str
    payload: str
    queue: str
    options: Options | None = None
    id: str = ""

    @classmethod
    def of(cls, job: Job, payload: str, queue: str) -> Ready:
        """A Job, which has its id."""
        return cls(job._task, payload, queue, job._options, job.id)


def give_ids(jobs: Iterable[Ready]) -> None:
    """To those that have none yet: all at once costs a fraction of one by one."""
    missing = [job for job in jobs if not job.id]
    for job, id in zip(missing, new_ids(len(missing)), strict=True):
        job.id = id
