"""Every example runs as its docstring says, in a process of its own, on a real server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

import backstage
from backstage import Client, Inspector
from support.waiting import wait_until, wait_until_sync

EXAMPLES = Path(__file__).parent.parent / "examples"
PACKAGE = str(Path(backstage.__file__).parent.parent)
LIMIT = 20

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(url: str, prefix: str, tmp_path: Path) -> Iterator[Start]:
    """Starts `python …` in the folder of the examples; its output goes to `tmp_path/<n>.out`, its log to `<n>.err`."""
    processes: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "BACKSTAGE_"))}
        name = tmp_path / str(len(processes))
        with name.with_suffix(".out").open("w") as out, name.with_suffix(".err").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=EXAMPLES,
                env={**others, "REDIS_URL": url, "BACKSTAGE_PREFIX": prefix, "PYTHONPATH": PACKAGE},
                stdout=out,
                stderr=err,
                text=True,
            )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


ENDING = {
    "quickstart.py": ["order-1 paid", "receipt for order-1 sent"],
    "broadcast.py": ["worker-1: new prices for book, pen", "worker-2: new prices for book, pen"],
    "own_loop.py": ["[40, 2]: the sum is 42", "['not', 'numbers']: given up"],
}


@pytest.mark.parametrize("name", ENDING)
def test_an_example_that_ends_by_itself(name: str, start: Start, tmp_path: Path, url: str, prefix: str) -> None:
    """It says what it should, ends with 0, and warns of nothing."""
    process = start("-W", "error", name, *([url, prefix] if name == "own_loop.py" else []))
    status = process.wait(LIMIT)
    said, log = ((tmp_path / f"0.{kind}").read_text() for kind in ("out", "err"))
    assert status == 0, log
    for line in ENDING[name]:
        assert line in said.splitlines()
    assert "Traceback" not in log


@pytest.mark.parametrize("words", [["scheduler.py"], ["-m", "backstage", "scheduler", "scheduler:scheduler"]])
async def test_the_scheduler(words: list[str], start: Start, tmp_path: Path, redis: Redis, prefix: str) -> None:
    """It records its schedules, and SIGTERM ends it with 0."""
    process = start(*words)

    async def recorded() -> bool:
        assert process.poll() is None, (tmp_path / "0.err").read_text()
        return set(await redis.hkeys(f"{prefix}:cron")) == {"stock.sync", "report.send", "clean-cache"}

    await wait_until(recorded, LIMIT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == 0


async def test_the_shop(start: Start, tmp_path: Path, url: str, prefix: str) -> None:
    """Orders that one process places are paid, reserved and receipted by another; nothing is left but the dead job."""
    worker = start("-m", "backstage", "worker", "shop.app:worker")
    producer = start("-m", "shop.place_orders")
    assert producer.wait(LIMIT) == 0, (tmp_path / "1.err").read_text()
    assert "the second click: None" in (tmp_path / "1.out").read_text()

    def said() -> list[str]:
        assert worker.poll() is None, (tmp_path / "0.err").read_text()
        return (tmp_path / "0.out").read_text().splitlines()

    wait_until_sync(lambda: len(said()) >= 9, LIMIT, "three orders are paid, reserved and receipted")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(LIMIT) == 0
    assert sorted((tmp_path / "0.out").read_text().splitlines()) == [
        "order-1 paid, at attempt 1",
        "order-1: book, pen reserved",
        "order-1: receipt sent to ada@example.com",
        "order-2 paid, at attempt 2",
        "order-2: lamp reserved",
        "order-2: receipt sent to bob@example.com",
        "order-3 paid, at attempt 1",
        "order-3: lamp reserved",
        "order-3: receipt sent to bob@example.com",
    ]
    async with Client(url=url, prefix=prefix) as client:
        queues = await Inspector(client).queues()
        assert (queues.waiting, queues.running, queues.scheduled, queues.dead) == (0, 0, 0, 1)
        assert [job.reason for job in await Inspector(client).dead("payments")] == ["discarded"]


def test_no_example_is_left_out() -> None:
    """What lies in examples/ is run here."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*ENDING, "scheduler.py"}
    assert [path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__"] == ["shop"]
