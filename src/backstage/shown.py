"""How an error is shown: at bounded length and bounded cost, whatever a handler raised.

An error may carry a whole answer of somebody's server. Python's own way to print one of ten megabytes takes up to
seconds, in which the event loop stands still.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator

ERROR, TRACEBACK = 2_000, 16_000
"""Characters that are kept: of type and message, of a traceback."""

_FRAMES = -30
"""The last ones."""


def bounded(text: str, most: int) -> str:
    """At most `most` characters that UTF-8 can carry, the middle left out: both ends of an error tell most."""
    if len(text) > most:
        half = most // 2 - 20
        text = f"{text[:half]}\n… {len(text) - 2 * half} characters …\n{text[-half:]}"
    return text.encode("utf-8", "replace").decode()


def error(exc: BaseException) -> str:
    """Type and message."""
    return bounded(f"{type(exc).__name__}: {_message(exc)}", ERROR)


def trace(exc: BaseException) -> str:
    """As Python prints it. Where some message is too long for that: of each error the frames, and what `error` says."""
    errors = [part for link in _chain(exc) for part in parts(link)]
    if sum(map(_length, errors)) <= TRACEBACK:
        return bounded("".join(traceback.format_exception(exc, limit=_FRAMES)), TRACEBACK)
    shown = [f"{''.join(traceback.format_tb(each.__traceback__, _FRAMES))}{error(each)}\n" for each in errors]
    return bounded("\nwhich led to:\n\n".join(reversed(shown)), TRACEBACK)


def parts(exc: BaseException) -> Iterator[BaseException]:
    """The exception and, of groups, every one inside."""
    yield exc
    if isinstance(exc, BaseExceptionGroup):
        for part in exc.exceptions:
            yield from parts(part)


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """The exception, what led to it, what led to that."""
    seen = set[int]()
    link: BaseException | None = exc
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _message(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # its __str__ is anybody's
        return "(which can't be shown)"


def _length(exc: BaseException) -> int:
    """Characters of the message and its notes."""
    return len(_message(exc)) + sum(len(note) for note in getattr(exc, "__notes__", ()) if isinstance(note, str))
