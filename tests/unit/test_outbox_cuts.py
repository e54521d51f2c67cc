"""How a batch is cut into calls, and many payloads are encoded at once."""

from __future__ import annotations

import msgspec
import pytest

from backstage.errors import NotSerializable
from backstage.outbox import MOST, MOST_BYTES, cuts
from backstage.serializer import JsonSerializer, encode_all


@pytest.mark.parametrize(
    "sizes", [[], [1], [10] * MOST, [10] * (MOST + 1), [300_000] * 9, [MOST_BYTES + 5, 1, 1], [2_100] * 1200]
)
def test_cuts(sizes: list[int]) -> None:
    """Every payload once, in order; at most MOST in a call, and MOST_BYTES but for one that alone is larger."""
    payloads = ["x" * size for size in sizes]
    found = list(cuts(payloads))
    assert [payload for cut in found for payload in payloads[cut]] == payloads
    for cut in found:
        part = payloads[cut]
        assert 0 < len(part) <= MOST
        assert len(part) == 1 or sum(map(len, part)) <= MOST_BYTES


class Own:
    """A serializer of somebody's own."""

    def encode(self, value: object) -> bytes:
        return b"own"

    def decoder(self, type: object) -> object:
        return bytes


def test_many_payloads_are_encoded_as_one_by_one() -> None:
    """All at once or one by one: the same texts, also of text with line breaks and of JSON that brings its own."""
    serializer = JsonSerializer()
    values = [None, {"a": "x\ny"}, "ü☃", [1.5, True], msgspec.Raw(b'{"a":\n1}'), ""]
    for some in (values, values[:4], []):
        assert encode_all(serializer, some) == [serializer.encode(value).decode() for value in some]
    assert encode_all(Own(), [1, 2]) == ["own", "own"]


def test_the_one_that_json_cannot_carry_is_named() -> None:
    """Among many the error is that of the one."""
    with pytest.raises(NotSerializable, match=r"payload\['a'\]"):
        encode_all(JsonSerializer(), [{"a": 1}, {"a": object()}, {"a": 2}])
