import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backstage.errors import ConfigError
from backstage.logs import LoggerConfig, configure, ensure_visible, job_fields

LOGGER = logging.getLogger("backstage")
LINE = job_fields("id-1", "send", "emails", 2)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Logging is one for the process: put back what a test changes."""
    root = logging.getLogger()
    before = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate, root.handlers[:]
    yield
    for handler in LOGGER.handlers:
        if handler not in before[0]:
            handler.close()
    LOGGER.handlers[:], LOGGER.level, LOGGER.propagate, root.handlers[:] = before
    LOGGER.setLevel(before[1])


def to_text(**options: Any) -> io.StringIO:
    """Configured to write to the text that is returned."""
    stream = io.StringIO()
    configure(LoggerConfig(handler=logging.StreamHandler(stream), **options))
    return stream


def test_text() -> None:
    """One line: time in UTC, level, message, and the job's fields where the record has them."""
    stream = to_text()
    LOGGER.info("started")
    LOGGER.warning("failed", extra=LINE)
    first, second = stream.getvalue().splitlines()
    assert first[10] == "T"
    assert first[23:] == "Z INFO    started"
    assert second[23:] == "Z WARNING failed id=id-1 task=send queue=emails attempt=2"


def test_foreign_names_make_no_lines_of_their_own() -> None:
    """Another SDK may have written any name: a line break in one forges no line."""
    stream = to_text()
    LOGGER.info("failed", extra=job_fields("i", "a\n2026 INFO all well", "q", 1))
    assert stream.getvalue().count("\n") == 1


def test_json() -> None:
    """One object a line, with the traceback in it; odd text costs no line."""
    stream = to_text(json=True)
    try:
        raise ValueError("broken")
    except ValueError:
        LOGGER.exception("failed \ud800", extra=LINE, stack_info=True)
    line = json.loads(stream.getvalue())
    assert {**line, **LINE} == line
    assert (line["level"], line["logger"], line["message"]) == ("ERROR", "backstage", "failed \\ud800")
    assert "ValueError: broken" in line["traceback"]
    assert line["time"].endswith("Z")
    assert "stack" in line


def test_level() -> None:
    """What is below the level isn't written; a level may be given in any case."""
    stream = to_text(level="warning")
    LOGGER.info("no")
    LOGGER.warning("yes")
    assert "no" not in stream.getvalue()
    assert "yes" in stream.getvalue()


def test_twice_doubles_nothing() -> None:
    """The second call replaces what the first one did, and leaves the handlers of others."""
    other = logging.NullHandler()
    LOGGER.addHandler(other)
    first, second = to_text(), to_text()
    LOGGER.info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1
    assert other in LOGGER.handlers


def test_the_same_handler_twice() -> None:
    """It stays usable, and writes each line once."""
    stream = io.StringIO()
    config = LoggerConfig(handler=logging.StreamHandler(stream))
    configure(config)
    configure(config)
    LOGGER.info("once")
    assert stream.getvalue().count("once") == 1


def test_the_root_logger_is_left_alone() -> None:
    """Its handlers and level stay, and our lines don't reach it a second time."""
    root = logging.getLogger()
    stream = io.StringIO()
    root.addHandler(logging.StreamHandler(stream))
    before = root.handlers[:], root.level
    to_text()
    LOGGER.error("ours")
    assert (root.handlers, root.level) == before
    assert stream.getvalue() == ""


def test_file_is_appended_to_and_survives_logrotate(tmp_path: Path) -> None:
    """What was there stays; after a rename the next line opens a new file."""
    file = tmp_path / "worker.log"
    file.write_text("before\n")
    configure(LoggerConfig(file=file))
    LOGGER.info("one")
    file.rename(tmp_path / "worker.log.1")
    LOGGER.info("two \ud800")
    assert (tmp_path / "worker.log.1").read_text().splitlines()[0] == "before"
    assert "one" in (tmp_path / "worker.log.1").read_text()
    assert file.read_text().count("\n") == 1


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    """Is told at once, by its name, and changes nothing."""
    before = LOGGER.handlers[:]
    with pytest.raises(ConfigError, match=r"missing/worker.log.*can't be opened"):
        configure(LoggerConfig(file=str(tmp_path / "missing/worker.log")))
    assert LOGGER.handlers == before


def test_silent(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing, not even from Python's last resort."""
    configure(LoggerConfig(silent=True))
    LOGGER.critical("nobody hears")
    assert capfd.readouterr() == ("", "")


def test_a_formatter_is_kept() -> None:
    """A handler that knows how its lines look isn't told otherwise."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("<%(message)s>"))
    configure(LoggerConfig(handler=handler, json=True))
    LOGGER.info("mine")
    assert stream.getvalue() == "<mine>\n"


def test_a_logger_gets_the_lines() -> None:
    """By its own level and handlers."""
    stream = io.StringIO()
    target = logging.Logger("app.jobs", logging.WARNING)
    target.addHandler(logging.StreamHandler(stream))
    configure(target)
    LOGGER.info("no")
    logging.getLogger("backstage.worker").warning("yes")
    assert stream.getvalue() == "yes\n"


@pytest.mark.parametrize("name", ["backstage", "backstage.worker"])
def test_our_own_logger_changes_nothing(name: str) -> None:
    """Sending its lines to itself would never end."""
    before = LOGGER.handlers[:]
    assert configure(logging.getLogger(name)) is LOGGER
    assert LOGGER.handlers == before


def test_visible_where_nothing_is_configured(capsys: pytest.CaptureFixture[str]) -> None:
    """`worker.run()` in a fresh script says INFO on stderr; a level that was set stays."""
    logging.getLogger().handlers[:] = []
    LOGGER.handlers[:] = []
    LOGGER.setLevel(logging.DEBUG)
    ensure_visible()
    ensure_visible()
    LOGGER.debug("hello")
    assert capsys.readouterr().err.count("hello") == 1


def test_visible_leaves_a_configured_logger_alone() -> None:
    """Handlers of the application's root logger are enough."""
    LOGGER.handlers[:] = []
    logging.getLogger().addHandler(logging.NullHandler())
    ensure_visible()
    assert LOGGER.handlers == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"level": "LOUD"}, "level='LOUD'.*DEBUG, INFO"),
        ({"level": 20}, "level=20"),
        ({"json": 1}, "json=1"),
        ({"silent": "yes"}, "silent='yes'"),
        ({"file": 5}, "file=5"),
        ({"file": ""}, "file=''"),
        ({"handler": print}, "handler="),
        ({"file": "a", "handler": logging.NullHandler()}, "either file or handler"),
    ],
)
def test_bad_settings(options: dict[str, Any], says: str) -> None:
    """Each is an error that names the setting and what would be right."""
    with pytest.raises(ConfigError, match=says):
        LoggerConfig(**options)
