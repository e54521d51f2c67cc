"""`backstage demo`: it shows what it should, fails where something is wrong, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

import backstage
from backstage import DeadJob
from backstage.cli.demo import shop, verdict
from backstage.cli.demo.diary import Event
from backstage.cli.demo.facts import Facts
from backstage.inspector import inspect
from support.waiting import wait_until_sync

PACKAGE = str(Path(backstage.__file__).parent.parent)
FEATURES = [
    "priorities", "chain, delay", "deduplication", "retries", "dead letter", "cron", "broadcast", "crash", "clean end",
    "shutdown",
]  # fmt: skip

Demo = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One in which temporary folders are made in `tmp_path`, and Redis is not where the environment says."""
    elsewhere = {"REDIS_URL": "redis://127.0.0.1:1", "BACKSTAGE_CONCURRENCY": "x"}
    return {**os.environ, **elsewhere, "TMPDIR": str(tmp_path), "PYTHONPATH": PACKAGE}


@pytest.fixture
def demo(environment: dict[str, str]) -> Iterator[Demo]:
    """Starts `backstage demo` with these options; killed if the test gives it up."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "backstage", "demo", *options]
        started.append(
            subprocess.Popen(
                command, env={**environment, **variables}, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def processes_of(folder: Path) -> list[str]:
    """Command lines and environments of live processes that name the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in told:
            found.append((process / "cmdline").name)
    return found


def nothing_left(folder: Path) -> None:
    wait_until_sync(lambda: not processes_of(folder), message="all processes have ended")
    assert not list(folder.glob("backstage-demo-*"))


def test_all_is_well(demo: Demo, tmp_path: Path) -> None:
    """Within a minute it ends with 0 and a ✓ for every feature. Its server, workers and folder are gone then."""
    began = time.monotonic()
    process = demo()
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    assert time.monotonic() - began < 60
    rows = said.split("FOUND ON THE SERVER\n")[1].splitlines()[: len(FEATURES)]
    assert [re.split(r" {2,}", row)[:2] for row in rows] == [["✓", feature] for feature in FEATURES]
    assert "\x1b" not in said
    nothing_left(tmp_path)


async def test_an_existing_server(demo: Demo, tmp_path: Path, redis: Redis, url: str, prefix: str) -> None:
    """Works under a random prefix, and removes what it wrote; a prefix with glob characters hits no other keys."""
    other = f"{prefix}-x-other"
    await redis.set(other, "stays")
    process = demo("--url", url, "--prefix", f"{prefix}?x*")
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    assert await redis.keys(f"{prefix}*") == [other]
    nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("line", "number"),
    [("A server starts", signal.SIGTERM), ("A first worker", signal.SIGINT), ("A worker is killed", signal.SIGHUP)],
)
def test_interrupted(line: str, number: signal.Signals, demo: Demo, tmp_path: Path) -> None:
    """Whatever ends it, and whenever: it tidies up and ends with 130."""
    process = demo()
    assert process.stdout is not None
    said = next(text for text in process.stdout if line in text)
    assert said.startswith("✓")
    process.send_signal(number)
    rest = process.communicate(timeout=20)[0]
    assert (process.returncode, rest.splitlines()[-1]) == (130, "Error: interrupted")
    nothing_left(tmp_path)


def test_no_server(demo: Demo, tmp_path: Path) -> None:
    """Where there is no Redis, the error is one line that says what to do."""
    process = demo("--url", "redis://127.0.0.1:1")
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("Error: no Redis at redis://127.0.0.1:1/0")
    assert "Traceback" not in said
    nothing_left(tmp_path)


def test_a_worker_that_does_not_start(demo: Demo, environment: dict[str, str], tmp_path: Path) -> None:
    """Then its log is shown: here a package that it needs is hidden from it."""
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(
        'import os, sys\nif "BACKSTAGE_WORKER_ID" in os.environ:\n    sys.modules["msgspec"] = None\n'
    )
    process = demo(PYTHONPATH=f"{tmp_path / 'hide'}:{environment['PYTHONPATH']}")
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 1
    assert "The log of worker-1 ends:" in said
    assert "import of msgspec halted" in said
    assert said.splitlines()[-1] == "Error: worker-1 ended while it started (exit status 1)"
    nothing_left(tmp_path)


async def test_on_a_terminal(environment: dict[str, str], tmp_path: Path, redis: Redis, url: str, prefix: str) -> None:
    """There it has spinners, colours and the same ticks. With --keep data and logs stay, and it says where."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "backstage", "demo", "--keep", "--url", url, "--prefix", prefix]
    process = subprocess.Popen(
        command, env={**environment, "TERM": "xterm-256color", "COLUMNS": "160"}, stdin=theirs, stdout=theirs
    )
    os.close(theirs)
    text = everything(ours)
    assert process.wait(10) == 0, text
    assert "⠋" in text
    assert text.count("\x1b[32m✓") == len(FEATURES) + 11
    (kept,) = re.findall(rf"backstage info --url {url}/0 --prefix (\S+)", text)
    assert kept.startswith(f"{prefix}-")
    assert (await inspect(redis, prefix=kept)).dead == 1
    (folder,) = tmp_path.glob("backstage-demo-*")
    assert str(folder) in text
    assert [path.name for path in sorted(folder.iterdir())] == ["worker-1.log", "worker-2.log"]


def everything(terminal: int) -> str:
    """What is written to a terminal until its last writer has gone."""
    parts = []
    with contextlib.suppress(OSError):  # how Linux tells the end
        while part := os.read(terminal, 65_536):
            parts.append(part)
    os.close(terminal)
    return b"".join(parts).decode()


# ---- the verdict ---------------------------------------------------------------------------------------------------


def happened(what: str, task: str = "", *orders: int, worker: str = "worker-1", at: float = 1.0) -> list[Event]:
    return [Event(at, what, worker, task, order) for order in orders or (0,)]  # type: ignore[arg-type]


def good() -> Facts:
    """A day as it should be."""
    waiting = [
        event
        for place, task in enumerate((shop.refund, shop.send_parcel, shop.send_newsletter))
        for event in happened("started", task.name, 0, 1, 2, 3, at=0.1 * place)
    ]
    events = [
        *waiting,
        *happened("started", shop.charge.name, 1, 2, 3, 4),
        *happened("done", shop.charge.name, 1, 2, 3, 4),
        *happened("started", shop.send_receipt.name, 1, 2, 3, 4, at=2.01),
        *happened("started", shop.print_label.name),
        *happened("failed", shop.print_label.name),
        *happened("failed", shop.print_label.name),
        *happened("done", shop.print_label.name),
        *happened("failed", shop.send_fax.name, 1, 1, 1),
        *happened("done", shop.report.name),
        *happened("heard", "prices.changed"),
        *happened("heard", "prices.changed", worker="worker-2"),
        *happened("started", shop.pack.name, worker="worker-2", at=5.0),
        *happened("killed", worker="worker-2", at=5.1),
        *happened("started", shop.pack.name, at=7.2),
        *happened("done", shop.pack.name, at=8.7),
    ]
    exits = {"worker-1": 0, "worker-2": -9}
    return Facts(tuple(events), (dead_fax(),), 0, 0, 0, ("worker-2",), exits)


def dead_fax(attempt: int = 3) -> DeadJob:
    return DeadJob(
        "1-0", "1", shop.send_fax.name, "default", "{}", "error", "ConnectionError: nobody", "", 1, attempt, None, {}
    )


def test_a_good_day() -> None:
    """Every row is as it should be."""
    assert [row.feature for row in verdict.judge(good()) if not row.ok] == []
    assert [row.feature for row in verdict.judge(good())] == FEATURES


def without(feature: str, task: str, count: int = 1) -> tuple[str, Callable[[Facts], Facts]]:
    """A day on which the last `count` events of that kind didn't happen."""

    def change(facts: Facts) -> Facts:
        lost = [event for event in facts.events if f"{event.what} {event.task}".strip() == task][-count:]
        assert lost
        return replace(facts, events=tuple(event for event in facts.events if event not in lost))

    return feature, change


def and_(feature: str, *more: Event) -> tuple[str, Callable[[Facts], Facts]]:
    """A day on which this happened, too."""
    return feature, lambda facts: replace(facts, events=(*facts.events, *more))


def with_(feature: str, **changes: object) -> tuple[str, Callable[[Facts], Facts]]:
    return feature, lambda facts: replace(facts, **changes)  # type: ignore[arg-type]


WRONG = [
    and_("priorities", *happened("started", shop.refund.name, 9)),
    without("priorities", "started newsletter.send"),
    without("chain, delay", "started email.receipt", 4),
    and_("chain, delay", *happened("started", shop.send_receipt.name, 1, at=2.5)),
    and_("deduplication", *happened("started", shop.charge.name, 4)),
    without("retries", "done label.print"),
    and_("retries", *happened("done", shop.print_label.name)),
    with_("dead letter", dead=()),
    with_("dead letter", dead=(dead_fax(), dead_fax())),
    with_("dead letter", dead=(dead_fax(attempt=2),)),
    without("cron", "done report.month"),
    and_("cron", *happened("done", shop.report.name)),
    without("broadcast", "heard prices.changed"),
    and_("broadcast", *happened("heard", "prices.changed")),
    without("crash", "done parcel.pack"),
    and_("crash", *happened("done", shop.pack.name)),
    and_("crash", *happened("started", shop.pack.name)),
    with_("clean end", waiting=1),
    with_("clean end", running=1),
    with_("clean end", scheduled=1),
    with_("shutdown", exits={"worker-1": 1, "worker-2": -9}),
    with_("shutdown", exits={"worker-1": None, "worker-2": -9}),
    with_("shutdown", registered=("worker-1", "worker-2")),
]


@pytest.mark.parametrize(("feature", "change"), WRONG)
def test_a_bad_day(feature: str, change: Callable[[Facts], Facts]) -> None:
    """What is not as it should be is marked, and nothing else is."""
    assert [row.feature for row in verdict.judge(change(good())) if not row.ok] == [feature]


def test_a_day_on_which_nothing_happened() -> None:
    """Every row can be told without facts; only an empty queue is as it should be."""
    rows = verdict.judge(Facts((), (), 0, 0, 0, (), {}))
    assert [row.feature for row in rows if row.ok] == ["clean end"]
    assert all(row.found for row in rows)
