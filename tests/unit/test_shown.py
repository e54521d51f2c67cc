"""What is shown of an error: enough to mend it, and never more than fits a line of a log or a dead letter."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from backstage import shown
from backstage.logs import JsonFormatter, TextFormatter

PAGE = "<html>" + "\n" * 1_000_000 + "</html>"
"""A message that Python takes a quarter of a second to print."""


def raised(*make: Callable[[], BaseException]) -> BaseException:
    """The last of them, each raised while the one before it was handled."""
    first, *others = make
    try:
        raise first()
    except BaseException as exc:
        if not others:
            return exc
        return raised_in(exc, *others)


def raised_in(context: BaseException, *make: Callable[[], BaseException]) -> BaseException:
    try:
        raise context
    except BaseException:
        return raised(*make)


def test_an_ordinary_error_is_shown_as_python_shows_it() -> None:
    """With what led to it, its notes, and of a group every part."""

    def noted() -> BaseException:
        error = ExceptionGroup("both", [ValueError("one"), KeyError("two")])
        error.add_note("ask the bank")
        return error

    text = shown.trace(raised(lambda: OSError("the cause"), noted))
    for part in ("Traceback (most recent call last)", "OSError: the cause", "another exception occurred", "both",
                 "ValueError: one", "KeyError: 'two'", "ask the bank", "test_shown.py"):  # fmt: skip
        assert part in text


@pytest.mark.parametrize("at", ["message", "cause", "note", "group"])
def test_of_a_message_of_megabytes_both_ends_are_shown(at: str) -> None:
    """And the frames, and the name of the error, whatever part of it is that long."""
    page: Callable[[], BaseException] = lambda: ValueError(PAGE)  # noqa: E731
    if at == "message":
        error = raised(page)
    elif at == "cause":
        error = raised(page, lambda: OSError("short"))
    elif at == "note":
        error = raised(lambda: OSError("short"))
        error.add_note(PAGE)
    else:
        error = raised(lambda: ExceptionGroup("some", [page(), OSError("short")]))
    text = shown.trace(error)
    assert len(text) <= shown.TRACEBACK
    assert "test_shown.py" in text
    assert f"{type(error).__name__}: " in text
    if at != "note":
        assert "ValueError: <html>" in text
        assert f"… {len(PAGE) + len('ValueError: ') - shown.ERROR + 40} characters …" in text
        assert "</html>" in text
    if at in ("cause", "group"):
        assert text.index("</html>") < text.rindex("which led to:") < text.rindex(f"{type(error).__name__}: ")


def test_an_error_that_cannot_be_shown() -> None:
    """Its __str__ raises: its name is told."""

    class Shy(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert shown.error(Shy()) == "Shy: (which can't be shown)"
    assert "Shy" in shown.trace(raised(Shy))


def test_errors_in_a_circle_come_to_an_end() -> None:
    """Each of them is the cause of the other."""
    one, two = ValueError(PAGE), OSError("two")
    one.__cause__, two.__cause__ = two, one
    assert "OSError: two" in shown.trace(one)


@pytest.mark.parametrize("length", [0, 99, 100, 101, 1_000])
def test_bounded(length: int) -> None:
    """Never longer than asked for, and whole where it fits; what UTF-8 can't carry is a question mark."""
    text = shown.bounded("a" + "\ud800" * length + "z", 101)
    assert len(text) <= 101
    assert (text[0], text[-1]) == ("a", "z")
    assert ("characters" in text) == (length > 99)
    assert "\ud800" not in text


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_line_of_the_log_is_bounded(formatter: logging.Formatter) -> None:
    """Either format shows the traceback so."""
    error = raised(lambda: ValueError(PAGE))
    record = logging.LogRecord("backstage", logging.ERROR, "", 1, "failed", None, (type(error), error, None))
    line = formatter.format(record)
    assert "ValueError: <html>" in line
    assert len(line) < shown.TRACEBACK
    record = logging.LogRecord("backstage", logging.ERROR, "", 1, "failed", None, (None, None, None))
    assert "no error" in formatter.format(record)
