"""Priorities: urgent before default before low, strictly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from backstage import Client, Priority, Queue, Worker, WorkerConfig
from support.waiting import wait_until


@pytest.fixture
async def one_at_a_time(url: str, prefix: str) -> AsyncIterator[Worker]:
    """A worker with a single slot, so that the order of the starts is the order of the queues."""
    async with Worker(url=url, prefix=prefix, concurrency=1) as worker:
        yield worker


async def test_urgent_before_default_before_low(client: Client, one_at_a_time: Worker) -> None:
    """Whatever the order in which jobs came, the best queue is served first."""
    order: list[str] = []
    one_at_a_time.on("t", order.append)
    for priority in ("low", "default", "urgent", "low", "default", "urgent"):
        await client.enqueue("t", priority, priority=Priority(priority))
    async with one_at_a_time.running():
        await wait_until(lambda: len(order) == 6)
    assert order == ["urgent", "urgent", "default", "default", "low", "low"]


async def test_first_come_first_served_within_a_queue(client: Client, one_at_a_time: Worker) -> None:
    """Jobs of one priority start in the order in which they were enqueued."""
    order: list[int] = []
    one_at_a_time.on("t", order.append)
    for n in range(20):
        await client.enqueue("t", n)
    async with one_at_a_time.running():
        await wait_until(lambda: len(order) == 20)
    assert order == list(range(20))


async def test_a_better_job_that_comes_later_goes_first(client: Client, one_at_a_time: Worker) -> None:
    """While the slots are busy, a better job overtakes all worse ones, though those came before it."""
    order: list[str] = []
    first_is_running, go_on = asyncio.Event(), asyncio.Event()

    @one_at_a_time.on("t")
    async def handle(name: str) -> None:
        order.append(name)
        if name == "first":
            first_is_running.set()
            await go_on.wait()

    await client.enqueue("t", "first", priority="low")
    for name in ("a", "b", "c"):
        await client.enqueue("t", name, priority="low")
    async with one_at_a_time.running():
        await first_is_running.wait()
        await client.enqueue("t", "urgent", priority="urgent")
        go_on.set()
        await wait_until(lambda: len(order) == 5)
    assert order[0] == "first"
    assert order[1] == "urgent"


async def test_no_priority_given(client: Client, one_at_a_time: Worker) -> None:
    """Without queue and priority a job of a task that the producer doesn't know has the priority `default`."""
    order: list[str] = []
    one_at_a_time.on("t", order.append)
    await client.enqueue("t", "low", priority="low")
    await client.enqueue("t", "plain")
    await client.enqueue("t", "urgent", priority=Priority.URGENT)
    async with one_at_a_time.running():
        await wait_until(lambda: len(order) == 3)
    assert order == ["urgent", "plain", "low"]


async def test_queues_of_ones_own_have_a_place_too(url: str, prefix: str, client: Client) -> None:
    """The lower a queue's number the earlier it is served; queues without a number come last, as they are given."""
    order: list[str] = []
    queues = ["bulk", Queue("reports", priority=3), Queue("alarms", priority=-1), "default", "rest"]
    worker = Worker(url=url, prefix=prefix, concurrency=1, queues=queues)
    worker.on("t", order.append)
    assert [queue.name for queue in worker.config.queues] == ["alarms", "default", "reports", "bulk", "rest"]
    for queue in ("rest", "bulk", "reports", "default", "alarms"):
        await client.enqueue("t", queue, queue=queue)
    async with worker.running():
        await wait_until(lambda: len(order) == 5)
    assert order == ["alarms", "default", "reports", "bulk", "rest"]


async def test_priority_of_a_task(one_at_a_time: Worker) -> None:
    """A task may have a priority of its own; the caller's word beats it."""
    order: list[str] = []

    @one_at_a_time.on("mail", priority="low")
    async def mail(name: str) -> None:
        order.append(name)

    await mail.enqueue("as the task says")
    await mail.enqueue("as the caller says", priority="urgent")
    await one_at_a_time.enqueue("mail", "by name, as the task says")
    async with one_at_a_time.running():
        await wait_until(lambda: len(order) == 3)
    assert order == ["as the caller says", "as the task says", "by name, as the task says"]


def test_the_three_that_are_always_there() -> None:
    """A Priority is its name: the plain string works wherever it does."""
    assert [*Priority] == ["urgent", "default", "low"]
    assert [(queue.name, queue.priority) for queue in WorkerConfig().queues] == [
        ("urgent", 1),
        ("default", 2),
        ("low", 3),
    ]
