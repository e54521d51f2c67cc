"""What a function must look like to be a handler, and what is read off it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Optional

import pytest

from backstage.errors import TaskError
from backstage.handler import place_of, read_handler
from backstage.task import Run

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForCheckers


@dataclass
class Order:
    id: str


Positive = Annotated[int, "> 0"]


def read(fn: Callable[..., Any]) -> Any:
    return read_handler("order.pay", fn, Run)


def passing_on(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


def driving(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return list(fn(*args, **kwargs))

    return wrapper


class Service:
    async def __call__(self, order: Order, run: Run) -> None: ...

    def method(self, order: Order) -> None: ...

    @classmethod
    async def of_class(cls, order: Order) -> None: ...

    @staticmethod
    def static(order: Order) -> None: ...


async def nothing() -> None: ...
async def payload(order: Order) -> None: ...
async def payload_and_run(order: Order, run: Run) -> None: ...
async def run_first(run: Run, limit: int = 3) -> None: ...
async def run_by_keyword(*, me: Run) -> None: ...
async def run_last(order: Order, limit: int = 3, *, run: Run) -> None: ...
async def maybe_run(order: Order, run: Optional[Run] = None) -> None: ...  # noqa: UP045
async def or_none(order: Order, run: Run | None = None) -> None: ...
async def annotated_run(order: Order, run: Annotated[Run, "mine"]) -> None: ...
async def positional_only(order: Order, /, run: Run) -> None: ...
async def extra_keywords(order: Order, **rest: Any) -> None: ...
async def optional_payload(days: int = 30) -> None: ...
async def nested(orders: list[Order] | None) -> None: ...
async def constrained(count: Positive) -> None: ...
async def none(order: None) -> None: ...
async def two(dependency: str, order: Order) -> None: ...
def bare(order): ...  # type: ignore[no-untyped-def]
def unresolved_return(order: Order) -> OnlyForCheckers: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("fn", "takes", "hint", "run"),
    [
        (nothing, False, Any, None),
        (payload, True, Order, None),
        (payload_and_run, True, Order, "run"),
        (run_first, False, Any, "run"),
        (run_by_keyword, False, Any, "me"),
        (run_last, True, Order, "run"),
        (maybe_run, True, Order, "run"),
        (or_none, True, Order, "run"),
        (annotated_run, True, Order, "run"),
        (positional_only, True, Order, "run"),
        (extra_keywords, True, Order, None),
        (optional_payload, True, int, None),
        (nested, True, list[Order] | None, None),
        (constrained, True, Positive, None),
        (none, True, type(None), None),
        (bare, True, Any, None),
        (unresolved_return, True, Order, None),
        (lambda order: order, True, Any, None),
        (functools.partial(two, "x"), True, Order, None),
        (functools.partial(run_last, limit=5), True, Order, "run"),
        (Service(), True, Order, "run"),
        (Service().method, True, Order, None),
        (Service.of_class, True, Order, None),
        (Service.static, True, Order, None),
        (passing_on(payload_and_run), True, Order, "run"),
        (functools.partial(passing_on(two), "x"), True, Order, None),
        (len, True, Any, None),
    ],
)
def test_parameters(fn: Callable[..., Any], takes: bool, hint: object, run: str | None) -> None:
    """The payload is the first positional parameter unless that is the run; its annotation says how it is decoded."""
    handler = read(fn)
    assert (handler.takes_payload, handler.payload_type, handler.run_parameter) == (takes, hint, run)


@pytest.mark.parametrize(("fn", "optional"), [(optional_payload, True), (payload, False), (run_first, False)])
def test_optional_payload(fn: Callable[..., Any], optional: bool) -> None:
    """A payload with a default may be left out."""
    assert read(fn).payload_optional is optional


@pytest.mark.parametrize(
    ("fn", "is_async"),
    [
        (payload, True),
        (bare, False),
        (len, False),
        (Service(), True),
        (Service().method, False),
        (Service().of_class, True),
        (functools.partial(two, "x"), True),
        (functools.partial(bare), False),
        (passing_on(payload), True),
        (passing_on(bare), False),
        (driving(bare), True),
        (functools.partial(passing_on(Service()), run=None), True),
    ],
)
def test_async(fn: Callable[..., Any], is_async: bool) -> None:
    """A coroutine function is found beneath partials, methods, callable objects and decorators that pass it on."""
    assert read(fn).is_async is is_async


def generator(order: Order) -> Iterator[int]:
    yield 1


async def async_generator(order: Order) -> AsyncIterator[int]:
    yield 1


def test_driven_generator() -> None:
    """A generator beneath an async decorator is that decorator's business."""
    assert read(driving(generator)).is_async


async def two_runs(order: Order, run: Run, other: Run | None) -> None: ...
async def run_positional_only(order: Order, run: Run, /) -> None: ...
async def star(*args: Any) -> None: ...
async def payload_and_star(order: Order, *rest: Any) -> None: ...
async def keywords(**payload: Any) -> None: ...
async def keyword_payload(*, order: Order) -> None: ...
async def payload_after_run(run: Run, order: Order) -> None: ...
async def unresolved(order: OnlyForCheckers) -> None: ...
async def unresolved_inside(order: list[OnlyForCheckers]) -> None: ...
async def unresolved_later(order: Order, limit: OnlyForCheckers | None = None) -> None: ...


class Unreadable:
    __signature__ = "none"

    def __call__(self, order: Order) -> None: ...


def unwrapped(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: fn(*args, **kwargs)


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (two, "parameter 'order' can't be filled"),
        (payload_after_run, "parameter 'order' can't be filled"),
        (keyword_payload, "parameter 'order' can't be filled"),
        (functools.partial(two, dependency="x"), "parameter 'order' can't be filled"),
        (two_runs, "'run' and 'other' are both annotated Run"),
        (run_positional_only, "move it behind the `/`"),
        (star, r"\*args hides what it takes"),
        (payload_and_star, r"\*rest hides what it takes"),
        (unwrapped(payload), r"\*args hides .*functools\.wraps"),
        (keywords, r"\*\*payload gets nothing"),
        (generator, "a generator can't be a handler"),
        (async_generator, "a generator can't be a handler"),
        (passing_on(generator), "a generator can't be a handler"),
        (contextlib.contextmanager(generator), "a generator can't be a handler"),
        (Order, "the class Order can't be a handler"),
        (3, "3 can't be a handler"),
        (vars(Service)["of_class"], "can't be a handler"),
        (unresolved, "annotation of 'order', 'OnlyForCheckers', can't be resolved .* at module level"),
        (unresolved_inside, "can't be resolved"),
        (unresolved_later, "annotation of 'limit'"),
        (dict.get, r"parameter 'key' can't be filled"),
        (Unreadable(), "its parameters can't be read"),
    ],
)
def test_refused(fn: Any, said: str) -> None:
    """What can't be called with a payload and a run is refused, with the task, the place and what would be right."""
    with pytest.raises(TaskError, match=said) as refusal:
        read(fn)
    assert str(refusal.value).startswith(f"task 'order.pay' ({place_of(fn)}): ")


def test_local_types() -> None:
    """An annotation that names a local type is resolved if the handler uses that type, and explained otherwise."""

    @dataclass
    class Local:
        id: str

    async def uses(order: Local) -> Local:
        return Local(order.id)

    async def names_it_only(order: Local) -> None: ...

    assert read(uses).payload_type is Local
    with pytest.raises(TaskError, match=r"'Local', can't be resolved .*define or import that type at module level"):
        read(names_it_only)


def test_local_type_without_a_value() -> None:
    """A variable of the enclosing function that is not set yet does no harm."""

    async def handler(order: Order) -> object:
        return later

    assert read(handler).payload_type is Order
    later = 1
    assert asyncio.run(handler(Order("1"))) == later


def test_place() -> None:
    """The place is that of the function itself, beneath decorators, partials and methods."""
    line = payload.__code__.co_firstlineno
    assert place_of(payload) == f"{__file__}:{line}"
    assert place_of(passing_on(payload)) == place_of(functools.partial(payload)) == place_of(payload)
    assert place_of(Service().method) == f"{__file__}:{Service.method.__code__.co_firstlineno}"
    assert place_of(len) == "in builtins"
