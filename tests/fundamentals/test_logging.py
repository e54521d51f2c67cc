"""Logging: the standard logger `backstage`, with the job's fields on every line about one."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backstage import Client, ConfigError, Discard, Inspector, LoggerConfig, Retry, Worker
from support.waiting import wait_until


@pytest.fixture(autouse=True)
def untouched_logger() -> Iterator[None]:
    """What a test configures is undone after it."""
    logger = logging.getLogger("backstage")
    before = logger.level, logger.propagate, logger.handlers[:]
    yield
    for handler in logger.handlers[:]:
        if handler not in before[2]:
            logger.removeHandler(handler)
            handler.close()
    logger.setLevel(before[0])  # not by the attribute: a logger remembers what it lets through
    logger.propagate = before[1]


async def fail_once(worker: Worker) -> str:
    """Runs a job that fails twice; its id."""

    @worker.on("order.pay", attempts=2, backoff={"type": "fixed", "delay": 0})
    async def pay(order: dict[str, str]) -> None:
        raise ValueError("no money")

    async with worker.running():
        job_id = await pay.enqueue({"card": "canary-4711"})
        await wait_until(lambda: Inspector(worker).dead("default"))
    return job_id


async def test_every_line_about_a_job_has_its_fields(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    """Id, task, queue and attempt are fields of the record, for whatever formatter there is."""
    caplog.set_level("DEBUG", "backstage")
    job_id = await fail_once(worker)
    lines: list[Any] = [record for record in caplog.records if "job failed" in record.message]
    assert [(line.id, line.task, line.queue, line.attempt) for line in lines] == [
        (job_id, "order.pay", "default", 1),
        (job_id, "order.pay", "default", 2),
    ]
    assert [line.levelname for line in lines] == ["WARNING", "ERROR"]
    assert all(line.exc_info for line in lines)
    assert {record.name for record in caplog.records if "backstage" in record.name} == {"backstage"}


async def test_payloads_are_not_logged(url: str, prefix: str, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """At INFO and above no line has a payload, whatever becomes of the job."""
    worker = Worker(url=url, prefix=prefix)
    worker.on("typed", _typed)
    worker.on("discarded", _discarded)
    worker.on("retried", _retried)
    caplog.set_level("INFO", "backstage")
    async with worker.running():
        for task in ("typed", "discarded", "unknown", "retried"):
            await client.enqueue(task, {"card": "canary-4711"})
        await client.redis.xadd(f"{prefix}:default", {"taskName": "typed", "payload": "{canary-4711"})
        await wait_until(lambda: _dead(client, 3))
    assert "canary" not in caplog.text


async def _dead(client: Client, n: int) -> bool:
    return len(await Inspector(client).dead("default")) == n


async def _typed(payload: list[int]) -> None: ...


async def _discarded(payload: object) -> None:
    raise Discard("no")


async def _retried(payload: object) -> None:
    raise Retry("later")


async def test_logging_is_left_alone_by_default(worker: Worker) -> None:
    """Without `logger=` the library adds no handler and sets no level; the root logger it never touches."""
    logger = logging.getLogger("backstage")
    root = logging.getLogger()
    before = (logger.handlers[:], logger.level, logger.propagate, root.handlers[:], root.level)
    worker.on("t", lambda: None)
    async with worker.running():
        pass
    assert before == (logger.handlers[:], logger.level, logger.propagate, root.handlers[:], root.level)


async def test_text(url: str, prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`LoggerConfig()` writes lines to stderr: time, level, message, the job's fields."""
    worker = Worker(url=url, prefix=prefix, logger=LoggerConfig())
    job_id = await fail_once(worker)
    await worker.aclose()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "next run in" in line]
    when, level, rest = line.split(maxsplit=2)
    assert when.endswith("Z")
    assert level == "WARNING"
    assert (
        rest == f"job failed, next run in 0 ms: ValueError: no money id={job_id} task=order.pay queue=default attempt=1"
    )


async def test_json(url: str, prefix: str) -> None:
    """`LoggerConfig(json=True)` writes one JSON object a line; `handler=` says where to."""
    out = io.StringIO()
    worker = Worker(url=url, prefix=prefix, logger=LoggerConfig(json=True, handler=logging.StreamHandler(out)))
    job_id = await fail_once(worker)
    await worker.aclose()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    (last,) = [line for line in lines if "for the last time" in line["message"]]
    assert "ValueError: no money" in last.pop("traceback")
    assert last.pop("time").endswith("Z")
    assert last == {
        "level": "ERROR",
        "logger": "backstage",
        "message": "job failed for the last time: ValueError: no money",
        "id": job_id,
        "task": "order.pay",
        "queue": "default",
        "attempt": 2,
    }


async def test_file(url: str, prefix: str, tmp_path: Path) -> None:
    """`file=` appends to a file."""
    path = tmp_path / "worker.log"
    worker = Worker(url=url, prefix=prefix, logger=LoggerConfig(file=path))
    await fail_once(worker)
    await worker.aclose()
    assert "consumes urgent, default, low" in path.read_text()


async def test_level(url: str, prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`LoggerConfig("ERROR")` leaves out what is below."""
    worker = Worker(url=url, prefix=prefix, logger=LoggerConfig("ERROR"))
    await fail_once(worker)
    await worker.aclose()
    err = capsys.readouterr().err
    assert "for the last time" in err
    assert "next run in" not in err


async def test_silent(url: str, prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`LoggerConfig(silent=True)` writes nothing."""
    worker = Worker(url=url, prefix=prefix, logger=LoggerConfig(silent=True))
    await fail_once(worker)
    await worker.aclose()
    assert capsys.readouterr() == ("", "")


async def test_a_logger_of_ones_own(url: str, prefix: str) -> None:
    """A `logging.Logger` instead of a config gets the lines, for its own handlers, by its own level."""
    out = io.StringIO()
    mine = logging.getLogger(f"mine.{prefix}")
    mine.addHandler(logging.StreamHandler(out))
    mine.setLevel("WARNING")
    mine.propagate = False
    worker = Worker(url=url, prefix=prefix, logger=mine)
    await fail_once(worker)
    await worker.aclose()
    assert "job failed for the last time" in out.getvalue()
    assert "consumes" not in out.getvalue()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LoggerConfig("LOUD"), "must be one of DEBUG, INFO"),
        (lambda: LoggerConfig(json=1), "must be True or False"),  # type: ignore[arg-type]
        (lambda: LoggerConfig(file=""), "must be a path"),
        (lambda: LoggerConfig(file="a", handler=logging.NullHandler()), "not both"),
        (lambda: LoggerConfig(handler=print), "must be a logging.Handler"),  # type: ignore[arg-type]
        (lambda: Worker(logger=LoggerConfig(file="/nowhere/at/all")), "can't be opened"),
    ],
)
def test_what_cannot_be(make: Any, says: str) -> None:
    """A logger that can't work is an error at once."""
    with pytest.raises(ConfigError, match=says):
        make()
