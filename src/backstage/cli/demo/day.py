"""What happens in the shop, step by step. Nothing is judged here but whether it is time to go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import click

from backstage import Broadcast, Client, Inspector, Job
from backstage.cli.demo import diary, facts, shop, verdict
from backstage.cli.demo.crew import Crew
from backstage.cli.demo.diary import Event, What
from backstage.cli.demo.facts import Facts
from backstage.cli.demo.progress import Progress, Step
from backstage.cli.demo.shop import Order

ALL, ONE = 50.0, 15.0
"""Seconds after which nothing is waited for any more: in the whole day, in one step."""
LOOK = 0.02


class Day:
    """`run` lives through it and returns what the server says about it."""

    def __init__(self, client: Client, crew: Crew, progress: Progress) -> None:
        self._client, self._crew, self._progress = client, crew, progress
        self._over = time.monotonic() + ALL
        self._staff: list[str] = []
        self.begun = False
        """Whether anything was written."""

    async def run(self) -> Facts:
        await self._night()
        await self._opening()
        await self._payments()
        await self._trouble()
        await self._news()
        await self._accident()
        await self._closing()
        return await facts.read(self._client, {name: self._crew.exit_status(name) for name in self._staff})

    # ---- steps -------------------------------------------------------------------------------------------------------

    async def _night(self) -> None:
        """Before any worker runs."""
        each = verdict.EACH
        with self._progress.step(
            f"{each} low, {each} default and {each} urgent jobs are enqueued, in this order"
        ) as step:
            tasks = (shop.send_newsletter, shop.send_parcel, shop.refund)
            jobs = [Job(task, Order(n)) for task in tasks for n in range(each)]
            step.note = f"{len(await self._client.enqueue_many(jobs))} jobs wait"
            self.begun = True
            await diary.set_back(self._client, shop.report.name, timedelta(days=100))

    async def _opening(self) -> None:
        with self._progress.step("A first worker process starts, and finds them and a report that is long due") as step:
            await self._hire("worker-1")
            await self._wait(step, "done", shop.send_newsletter.name, verdict.EACH)
            await self._wait(step, "done", shop.report.name)
        with self._progress.step("A second worker process starts"):
            await self._hire("worker-2")

    async def _payments(self) -> None:
        with self._progress.step("Three customers pay; each gets a receipt a second later") as step:
            for number in verdict.PAID:
                await self._client.enqueue(shop.charge, Order(number))
            await self._wait(step, "done", shop.send_receipt.name, len(verdict.PAID))
        with self._progress.step("A fourth one clicks twice on Pay") as step:
            key = f"payment:{verdict.TWICE}"
            ids = [await self._client.enqueue(shop.charge, Order(verdict.TWICE), dedupe=key) for _ in range(2)]
            step.note = f"{ids.count(None)} of the 2 calls is told that it is a duplicate"
            await self._wait(step, "done", shop.charge.name, len(verdict.PAID) + 1)

    async def _trouble(self) -> None:
        with self._progress.step("A label is printed; the printer fails twice") as step:
            await self._client.enqueue(shop.print_label, Order(1))
            await self._wait(step, "done", shop.print_label.name)
        with self._progress.step("A fax is sent; nobody answers, however often it's tried") as step:
            await self._client.enqueue(shop.send_fax, Order(1))
            await self._wait(step, "failed", shop.send_fax.name, 3)

    async def _news(self) -> None:
        with self._progress.step("New prices are broadcast to all workers") as step:
            await Broadcast(client=self._client).send("prices.changed")
            await self._wait(step, "heard", "prices.changed", len(self._staff))

    async def _accident(self) -> None:
        """The worker that packs is killed; what it held is left to the one that is still there."""
        with self._progress.step("A worker is killed (SIGKILL) in the middle of a job") as step:
            await self._client.enqueue(shop.pack, Order(5))
            for begun in (await self._wait(step, "started", shop.pack.name))[:1]:
                self._crew.kill(begun.worker)
                await diary.write(self._client, "killed", begun.worker)
                step.note = f"{begun.worker} is gone"
        with self._progress.step("The other worker finds the job when the lease of two seconds has ended") as step:
            for event in (await self._wait(step, "done", shop.pack.name))[:1]:
                step.note = f"{event.worker} has done it"

    async def _closing(self) -> None:
        with self._progress.step("The shop closes: the workers are asked to stop (SIGTERM)") as step:
            await self._until(step, self._quiet)
            stopping = self._crew.terminate()
            await self._until(step, lambda: all(self._crew.exit_status(name) is not None for name in stopping))

    # ---- waiting -----------------------------------------------------------------------------------------------------

    async def _hire(self, name: str) -> None:
        """Start a worker and wait until it is in the registry. ClickException if it doesn't come up."""
        self._crew.start(name)
        self._staff.append(name)

        async def registered() -> bool:
            status = self._crew.exit_status(name)
            if status is not None:
                raise click.ClickException(f"{name} ended while it started (exit status {status})")
            return name in [worker.id for worker in await Inspector(self._client).workers()]

        step = Step()
        await self._until(step, registered)
        if not step.ok:
            raise click.ClickException(f"{name} didn't come up: {step.note}")

    async def _wait(self, step: Step, what: What, task: str, count: int = 1) -> list[Event]:
        """Until the diary has so many events of a task; those that it has."""
        found: list[Event] = []

        async def enough() -> bool:
            found[:] = [e for e in await diary.read(self._client) if e.what == what and e.task == task]
            return len(found) >= count

        await self._until(step, enough)
        return found

    async def _quiet(self) -> bool:
        """Nothing is left to do."""
        queues = await Inspector(self._client).queues()
        return queues.waiting + queues.running + queues.scheduled == 0

    async def _until(self, step: Step, condition: Callable[[], bool | Awaitable[bool]]) -> None:
        """Wait for it; that it takes too long is noted, and the day goes on: the table will tell what is wrong."""
        limit, today = min(time.monotonic() + ONE, self._over), asyncio.current_task()
        while True:
            if today is not None and today.cancelling():  # before Python 3.12, redis-py can swallow a Ctrl-C
                raise asyncio.CancelledError
            answer = condition()
            if answer if isinstance(answer, bool) else await answer:
                return
            if time.monotonic() > limit:
                step.ok, step.note = False, "this takes too long"
                return
            await asyncio.sleep(LOOK)
