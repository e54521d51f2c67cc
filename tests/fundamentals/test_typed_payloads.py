"""Typed payloads: the annotation of a handler's first parameter says what it gets."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, TypedDict
from uuid import UUID

import msgspec
import pytest

from backstage import Inspector, Job, JsonSerializer, Run, TaskError, Worker
from support.waiting import wait_until


@dataclass
class Line:
    article: str
    amount: int = 1


@dataclass
class Order:
    id: UUID
    lines: list[Line]
    ordered_at: datetime
    note: str | None = None
    tags: set[str] = field(default_factory=set)


class Point(msgspec.Struct):
    x: float
    y: float = 0.0


class Address(TypedDict):
    street: str


class Color(Enum):
    RED = "red"


Short = Annotated[str, msgspec.Meta(max_length=3)]

AN_ORDER = Order(UUID("a" * 32), [Line("tea"), Line("cup", 2)], datetime(2026, 1, 2, 3, 4, tzinfo=UTC), tags={"gift"})


@pytest.mark.parametrize(
    ("annotation", "payload", "gets"),
    [
        (Order, AN_ORDER, AN_ORDER),
        (Line, {"article": "tea"}, Line("tea", 1)),
        (Point, Point(1, 2), Point(1, 2)),
        (Address, {"street": "Main"}, {"street": "Main"}),
        (list[Line], [{"article": "tea", "amount": 3}], [Line("tea", 3)]),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (tuple[int, str], (1, "a"), (1, "a")),
        (int | None, None, None),
        (int, 2**62, 2**62),
        (float, 3, 3.0),
        (Decimal, Decimal("1.10"), Decimal("1.10")),
        (date, date(2026, 2, 28), date(2026, 2, 28)),
        (timedelta, timedelta(seconds=90), timedelta(seconds=90)),
        (bytes, b"\x00\xff", b"\x00\xff"),
        (Color, Color.RED, Color.RED),
        (Short, "abc", "abc"),
        (Any, {"as": ["it", "came", None, 1.5]}, {"as": ["it", "came", None, 1.5]}),
        (object, [1], [1]),
    ],
    ids=str,
)
async def test_decoded(worker: Worker, annotation: Any, payload: object, gets: object) -> None:
    """Dataclasses, Structs, TypedDicts, containers, dates, enums …: what was enqueued arrives as what is annotated."""
    handled: list[object] = []

    async def handle(payload: object) -> None:
        handled.append(payload)

    handle.__annotations__["payload"] = annotation
    worker.on("t", handle)
    async with worker.running():
        await worker.enqueue("t", payload)
        await wait_until(lambda: handled)
    assert handled == [gets]
    assert type(handled[0]) is type(gets)


async def test_no_annotation(worker: Worker) -> None:
    """Without an annotation a payload arrives as JSON has it: dict, list, text, number, None."""
    handled: list[object] = []
    worker.on("t", lambda payload: handled.append(payload))
    async with worker.running():
        for payload in ({"id": "7"}, [1, 2.5], "text", None, True):
            await worker.enqueue("t", payload)
        await wait_until(lambda: len(handled) == 5)
    assert sorted(map(repr, handled)) == sorted(map(repr, [{"id": "7"}, [1, 2.5], "text", None, True]))


class Model:
    """What pydantic's models are for Backstage: `model_validate` in, `model_dump` out."""

    def __init__(self, id: int) -> None:
        self.id = id

    @classmethod
    def model_validate(cls, value: Any) -> Model:
        if not isinstance(value, dict) or not isinstance(value.get("id"), int):
            raise ValueError("id must be an int")
        return cls(value["id"])

    def model_dump(self, **options: Any) -> dict[str, int]:
        return {"id": self.id}


async def test_models(worker: Worker) -> None:
    """Models with pydantic's methods work, alone and inside other types."""
    handled: list[object] = []

    async def one(model: Model) -> None:
        handled.append(model.id)

    async def several(models: list[Model]) -> None:
        handled.append([model.id for model in models])

    worker.on("one", one)
    worker.on("several", several)
    async with worker.running():
        await worker.enqueue("one", Model(1))
        await worker.enqueue("several", [Model(2), {"id": 3}])
        await worker.enqueue("one", {"id": "x"}, queue="low")
        await wait_until(lambda: len(handled) == 2)
        (dead,) = await wait_until(lambda: Inspector(worker).dead("low"))
    assert sorted(handled, key=str) == [1, [2, 3]]
    assert (dead.reason, "id must be an int" in dead.error) == ("invalid-payload", True)


@pytest.mark.parametrize("payload", [{"x": "text"}, {"y": 1}, [1], None, "p"], ids=str)
async def test_wrong_shape(worker: Worker, payload: object) -> None:
    """What doesn't fit goes to the dead letter at once; the error tells what was expected."""
    worker.on("t", _point)
    async with worker.running():
        await worker.enqueue("t", payload)
        (dead,) = await wait_until(lambda: Inspector(worker).dead("default"))
    assert dead.reason == "invalid-payload"
    assert "xpected" in dead.error or "missing required field" in dead.error


async def _point(point: Point) -> None: ...


class Opaque:
    """A class of which JSON knows nothing."""


async def test_an_annotation_that_means_nothing_for_json(worker: Worker) -> None:
    """A type that nothing can be decoded to is refused before a job is taken, with the task's name."""

    @worker.on("order.pay")
    async def pay(payload: Opaque) -> None: ...

    with pytest.raises(TaskError, match=r"'order\.pay'.*can't be decoded to"):
        async with worker.running():
            pass


async def test_run_has_the_decoded_payload(worker: Worker) -> None:
    """`run.job.payload` is what the handler got."""
    seen: list[object] = []

    @worker.on("t")
    async def handle(point: Point, run: Run) -> None:
        seen.extend((point, run.job.payload))

    async with worker.running():
        await handle.enqueue(Point(1.5))
        await wait_until(lambda: seen == [Point(1.5), Point(1.5)])


async def test_ones_own_serializer(url: str, prefix: str, redis: Any) -> None:
    """`serializer=` takes whatever has `encode` and `decoder`; what it writes must be JSON, for others read it too."""

    class Upper(JsonSerializer):
        def encode(self, value: object) -> bytes:
            return super().encode(value).upper()

    handled: list[object] = []
    worker = Worker(url=url, prefix=prefix, serializer=Upper())
    worker.on("t", handled.append)
    async with worker.running():
        await worker.enqueue_many([Job("t", "shout")])
        await wait_until(lambda: handled == ["SHOUT"])
    await asyncio.sleep(0)
