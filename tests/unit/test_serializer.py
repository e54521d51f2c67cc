from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from inspect import Parameter
from typing import Any, Literal, TypedDict
from uuid import UUID

import msgspec
import pytest

from backstage.errors import NotSerializable, TaskError
from backstage.serializer import JsonSerializer

JSON = JsonSerializer()


class Colour(StrEnum):
    RED = "red"


class Row(TypedDict):
    a: int


class Point(msgspec.Struct):
    x: int


@dataclass
class Order:
    id: str
    lines: "list[Order] | None" = None


class Model:
    """The two methods of a pydantic model that matter here."""

    def __init__(self, id: int) -> None:
        self.id = id

    @classmethod
    def model_validate(cls, value: Any) -> "Model":
        if not isinstance(value, dict) or not isinstance(value.get("id"), int):
            raise Unfit(value)
        return cls(value["id"])

    def model_dump(self, *, mode: str, by_alias: bool, round_trip: bool) -> dict[str, int]:
        assert (mode, by_alias, round_trip) == ("json", True, True)
        return {"id": self.id}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and other.id == self.id

    __hash__ = None  # type: ignore[assignment]


class Unfit(ValueError):
    """As pydantic's: its text holds the input, its `errors` need not."""

    def errors(self, *, include_input: bool, include_url: bool, include_context: bool) -> list[dict[str, Any]]:
        assert [include_input, include_url, include_context] == [False] * 3
        return [{"loc": ("id",), "msg": "should be an integer"}]


@dataclass
class Holder:
    model: Model
    extra: object = None


class Plain:
    """A class that nothing can decode."""


@pytest.mark.parametrize(
    ("type", "value", "text"),
    [
        (Any, {"a": [1, 2.5, "é", None, True]}, '{"a":[1,2.5,"é",null,true]}'),
        (Any, 10**30, "1" + "0" * 30),
        (Any, None, "null"),
        (object, [1], "[1]"),
        (Parameter.empty, [1], "[1]"),
        (None, None, "null"),
        (dict[str, Any], {"a": 1}, '{"a":1}'),
        (dict[int, str], {1: "a"}, '{"1":"a"}'),
        (tuple[int, str], (1, "a"), '[1,"a"]'),
        (set[int], {1}, "[1]"),
        (bytes, b"x", '"eA=="'),
        (Row, {"a": 1}, '{"a":1}'),
        (Point, Point(1), '{"x":1}'),
        (list[Point], [Point(1)], '[{"x":1}]'),
        (Order, Order("a", [Order("b")]), '{"id":"a","lines":[{"id":"b","lines":null}]}'),
        (Colour, Colour.RED, '"red"'),
        (Literal["a", "b"], "a", '"a"'),
        (datetime, datetime(2026, 1, 2, tzinfo=UTC), '"2026-01-02T00:00:00Z"'),
        (UUID, UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Iterable[int], [1], "[1]"),
        (Model, Model(1), '{"id":1}'),
        (Model | None, Model(1), '{"id":1}'),
        (list[Model], [Model(1)], '[{"id":1}]'),
        (Holder, Holder(Model(1), "x"), '{"model":{"id":1},"extra":"x"}'),
    ],
)
def test_round_trip(type: object, value: object, text: str) -> None:
    """Compact JSON, and back to an equal value of the annotated type."""
    assert JSON.encode(value) == text.encode()
    assert JSON.decoder(type)(text.encode()) == value


@pytest.mark.parametrize("type", [Any, dict, Order, Point, list[int]])
def test_nothing_of_python_between_bytes_and_value(type: object) -> None:
    """The decoder of a standard type is msgspec's own method: it runs once a job."""
    assert isinstance(JSON.decoder(type).__self__, msgspec.json.Decoder)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("type", "text"),
    [
        (int, '"1"'),
        (Order, "{}"),
        (Order, "null"),
        (Point, '{"x":"1"}'),
        (Row, "[]"),
        (Literal["a"], '"b"'),
        (Iterable[int], "1"),
        (Model, "[]"),
        (list[Model], '[{"id":"1"}]'),
    ],
)
def test_wrong_shape(type: object, text: str) -> None:
    """A payload of another shape is a ValidationError; nothing is coerced."""
    with pytest.raises(msgspec.ValidationError):
        JSON.decoder(type)(text.encode())


def test_a_model_error_tells_no_payload() -> None:
    """pydantic's own text quotes the input: ours has only the place and the complaint."""
    with pytest.raises(msgspec.ValidationError, match=r"'id'.*should be an integer") as caught:
        JSON.decoder(Model)(b'{"id":"secret"}')
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"", msgspec.DecodeError),
        (b"{", msgspec.DecodeError),
        (b"NaN", msgspec.DecodeError),
        (b"{}x", msgspec.DecodeError),
        (b'"\\ud800"', msgspec.DecodeError),
        (b'"\xff"', UnicodeDecodeError),
        (b"[" * 100_000, RecursionError),
    ],
)
def test_not_json(text: bytes, error: type[Exception]) -> None:
    """Bytes that are no JSON are one of three errors, which the executor knows."""
    with pytest.raises(error):
        JSON.decoder(Any)(text)


@pytest.mark.parametrize(
    ("type", "says"),
    [
        (Plain, "Plain"),
        (list[Plain], "Plain"),
        (Callable, "Callable"),
        (Model | int, "unions"),
        (set[int] | list[int], "unions"),
        ("Order", "not supported"),
        (5, "not supported"),
    ],
)
def test_undecodable_annotation(type: object, says: str) -> None:
    """Told at registration, not by every job in the dead letter."""
    with pytest.raises(TaskError, match=f"payload type .*can't be decoded to.*{says}"):
        JSON.decoder(type)


def loop() -> list[object]:
    """A list that contains itself."""
    value: list[object] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Plain(), "the payload: Plain is no JSON type"),
        ({"a": [1, {"b": Plain()}]}, r"payload\['a'\]\[1\]\['b'\]: Plain"),
        (Order("a", [Plain()]), "the payload: Order: Plain is no JSON type"),  # type: ignore[list-item]
        (range(3), "range"),
        ({(1, 2): 3}, "a key in payload: it must be text or a number, not tuple"),
        ({"a": {None: 1}}, r"a key in payload\['a'\]: .*NoneType"),
        ("\ud800", "the payload: text with a lone surrogate"),
        (["a", "\ud800"], r"payload\[1\]: text with a lone surrogate"),
        ({"\ud800": 1}, "a key in payload: text with a lone surrogate"),
        ([10**5000], r"payload\[0\]: an integer of more digits"),
        (loop(), "contains itself"),
    ],
)
def test_not_serializable(value: object, says: str) -> None:
    """What JSON can't carry is refused at the caller, by its place and type; the message itself can be printed."""
    with pytest.raises(NotSerializable, match=says) as caught:
        JSON.encode(value)
    str(caught.value).encode()


def test_an_error_tells_no_payload() -> None:
    """The content stays out of the message."""
    with pytest.raises(NotSerializable) as caught:
        JSON.encode({"a": "secret\ud800"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_is_null(value: float) -> None:
    """As JSON.stringify does; the docstring says so."""
    assert JSON.encode([value]) == b"[null]"


def test_it_is_a_value() -> None:
    """All JsonSerializers are equal, so that two equal configs are."""
    assert JsonSerializer() == JsonSerializer()
