"""Payloads as JSON: what a caller gives → bytes, and bytes → what a handler's annotation asks for."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from backstage.errors import NotSerializable, TaskError


class Serializer(Protocol):
    """How payloads become text and back. Whatever it writes must be JSON: other SDKs read the same streams."""

    def encode(self, value: object) -> bytes:
        """JSON as UTF-8. Raises NotSerializable for a value that JSON can't carry."""
        ...

    def decoder(self, type: object) -> Callable[[bytes], Any]:
        """A function from JSON to a value of one annotation (`Any`: as it came); built once, when a task is registered.

        Raises TaskError for an annotation that nothing can be decoded to. The function raises
        `msgspec.ValidationError` for a payload of another shape, and `msgspec.DecodeError`, UnicodeDecodeError or
        RecursionError for bytes that aren't JSON.
        """
        ...


@dataclass(frozen=True, slots=True)
class JsonSerializer:
    """Compact JSON by msgspec: builtins, dataclasses, `msgspec.Struct`, TypedDict, enums, dates, UUID, Decimal, …

    Models with pydantic's methods (`model_validate`, `model_dump`) work too, alone or inside other types.

    NaN and Infinity are written as `null`, as JSON.stringify does: to refuse them, every payload would have to be read
    a second time, which takes longer than encoding it.
    """

    def encode(self, value: object) -> bytes:
        try:
            return _encode(value)
        except RecursionError as error:
            raise NotSerializable("the payload is nested too deep for JSON, or contains itself") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise NotSerializable(_explain(value, error)) from error

    def decoder(self, type: object) -> Callable[[bytes], Any]:
        if type is inspect.Parameter.empty:
            type = Any
        try:
            classes = list(_custom(msgspec.inspect.type_info(type), set()))
            for cls in classes:
                if not (hasattr(cls, "model_validate") or any(issubclass(builtin, cls) for builtin in _BUILTINS)):
                    raise TaskError(
                        f"payload type {_shown(type)}: JSON can't be decoded to {_shown(cls)}; use a dataclass, "
                        "a msgspec.Struct, a TypedDict, a pydantic model, builtins, or no annotation"
                    )
            # Without a hook there is nothing of Python between the bytes and the value.
            hook = _from_builtins if classes else None
            return msgspec.json.Decoder(type, dec_hook=hook).decode
        except (TypeError, NameError, AttributeError, RecursionError) as error:
            raise TaskError(f"payload type {_shown(type)}: JSON can't be decoded to it: {error}") from error


def encode_all(serializer: Serializer, values: Sequence[object]) -> list[str]:
    """Each value as JSON text. With the default serializer they are written at once, for a quarter of the time.

    Raises NotSerializable for the first value that JSON can't carry.
    """
    if type(serializer) is JsonSerializer and values:
        try:
            lines = _encoder.encode_lines(values).decode().split("\n")
        except (TypeError, ValueError, OverflowError, RecursionError):
            lines = []  # one by one, to say which
        if len(lines) == len(values) + 1:  # else some value brought line breaks of its own: msgspec.Raw may
            del lines[-1]
            return lines
    return [serializer.encode(value).decode() for value in values]


def _custom(info: object, seen: set[int]) -> Iterator[type]:
    """The classes inside a type that msgspec leaves to a hook. Types may refer to themselves."""
    if id(info) in seen:
        return
    seen.add(id(info))
    if isinstance(info, msgspec.inspect.CustomType):
        yield info.cls
    elif isinstance(info, (msgspec.inspect.Type, msgspec.inspect.Field)):
        for name in info.__struct_fields__:
            yield from _custom(getattr(info, name), seen)
    elif isinstance(info, tuple):
        for part in info:
            yield from _custom(part, seen)


_QUOTES = re.compile(r"(Invalid (?:enum )?value|Object contains unknown field) .*?(?= - at `[^`]*`\Z|\Z)", re.DOTALL)


def without_values(error: Exception) -> str:
    """What a decoder's error says, less the value that msgspec may quote: payloads belong in no log."""
    return _QUOTES.sub(r"\1", str(error))


def _to_builtins(value: Any) -> Any:
    """A model as what its own class reads back: aliases as on the wire, nothing computed."""
    if callable(getattr(type(value), "model_dump", None)):
        return value.model_dump(mode="json", by_alias=True, round_trip=True)
    raise TypeError(f"{_shown(type(value))} is no JSON type")


def _from_builtins(cls: Any, value: Any) -> Any:
    """A model from builtins. Its error is told without the input, for payloads belong in no log."""
    if not hasattr(cls, "model_validate"):
        return value  # `object` or an abstract type: as it came, and msgspec checks that it is one
    try:
        return cls.model_validate(value)
    except ValueError as error:
        errors: Any = getattr(error, "errors", None)
        if not callable(errors):
            raise
        found: Any = errors(include_url=False, include_context=False, include_input=False)
        raise ValueError("; ".join(f"{_path(e['loc'])}: {e['msg']}" for e in found)) from None


_BUILTINS = (dict, list, str, int, float, bool, type(None))

_encoder = msgspec.json.Encoder(enc_hook=_to_builtins)
_encode = _encoder.encode


def _explain(value: object, error: Exception) -> str:
    """Which part of a payload JSON can't carry, by its place and type; its content isn't told."""
    place, part, at_key = _culprit(value, ())
    what = "a key" if at_key else "a value"
    where = f"{what} in payload{_path(place)}" if place or at_key else "the payload"
    if isinstance(part, str):
        why = "text with a lone surrogate (half of a character), which UTF-8 can't carry"
    elif isinstance(part, int):
        why = "an integer of more digits than Python will write; send it as text"
    elif at_key:
        why = f"it must be text or a number, not {_shown(type(part))}"
    elif str(error).startswith(_shown(type(part))):
        why = str(error)
    else:
        why = f"{_shown(type(part))}: {error}"
    return f"JSON can't carry {where}: {why}"


def _culprit(value: object, place: tuple[object, ...]) -> tuple[tuple[object, ...], object, bool]:
    """The innermost part of builtin containers that fails by itself: its place, itself, and whether it is a key."""
    parts: list[tuple[object, object]] = []
    if isinstance(value, Mapping):
        for key in value:
            if not _fits({key: None}):
                return place, key, True
        parts = list(value.items())
    elif isinstance(value, (list, tuple)):
        parts = list(enumerate(value))
    for key, part in parts:
        if not _fits(part):
            return _culprit(part, (*place, key))
    return place, value, False


def _fits(value: object) -> bool:
    try:
        _encode(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _path(place: tuple[object, ...]) -> str:
    return "".join(f"[{repr(key)[:60]}]" for key in place)


def _shown(type: object) -> str:
    return getattr(type, "__qualname__", None) or repr(type)
