"""What nobody should send, and everybody does one day: values, texts and bytes, by hand and by chance."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from backstage.errors import BackstageError

MIB = 1024 * 1024

TEXTS = (
    "", " ", "\0", "a\0b", "\r\n", "a\r\nSET x 1", "{", "}", "{}", "*", ":", "a:b", "a b", "a/b", "..", "-", "~", "a~b",
    "😀", "é", "\u202e", "\ud800", "a\udcff", "%s%d{x}", "'\"`$(x)", "x" * 128, "x" * 129, "x" * 10_000, "٣", "²",
    "NaN", "Infinity", "-1", "0", "1e400", "9" * 5_000, "null", "true", "[]", "default", "default:dead-letter",
    "scheduled", "broadcast", "retries", "workers", "~released", "\x1b[2J", "\u2028", "İ",
)  # fmt: skip

PAYLOADS = (
    b"", b"\0", b"\xff\xfe", b"\xc3", b"NaN", b"Infinity", b"-Infinity", b"1e400", b"9" * 5_000, b"-" + b"9" * 5_000,
    b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 50_000, b'"\\ud800"', b'"\xed\xa0\x80"', b'"\\u0000"',
    b"{", b'{"id":', b"{}", b"null", b"true", b"[]", b"1", b'"x"', b'{"id":1,"id":"x"}', b'{"id":1e400}',
    b"\xef\xbb\xbf1",
    b'"' + b"x" * MIB + b'"', b"[" + b"0," * 300_000 + b"0]", b" " * 100_000, b"'", b"undefined", b"1" * 20, b"0x1",
)  # fmt: skip

VALUES: tuple[Any, ...] = (
    *TEXTS, None, True, False, 0, -1, 1, 2**63, 2**64, 10**5_000, -(10**5_000), 0.5, math.nan, math.inf, -math.inf,
    b"", b"\xff", [], [1], {}, {"key": 1}, {"type": "fixed"}, {"": ""}, (), set(), object(), timedelta.max,
    timedelta.min, timedelta(microseconds=1), timedelta(days=-1), complex(1, 1), print, int, range(3),
)  # fmt: skip

texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=20), st.characters(categories=["Cs", "Cc"]))
values = st.one_of(st.sampled_from(VALUES), texts, st.integers(), st.floats(), st.binary(max_size=8))
raws = st.one_of(
    st.sampled_from(PAYLOADS),
    st.sampled_from([t.encode(errors="surrogatepass") for t in TEXTS]),
    st.binary(max_size=20),
)


def refuses_or_takes(call: Callable[[], Any]) -> Any:
    """What it answers, or its error, which says something; AssertionError for an error that is not one of ours."""
    try:
        return call()
    except BackstageError as exc:
        said = str(exc)
        assert said
        assert len(said) < 6_500, f"an error of {len(said)} characters"
        said.encode(errors="strict" if said.isascii() else "surrogatepass")
        return exc
