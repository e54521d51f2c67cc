"""`backstage doctor`: what it prints, and with which status it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click.testing
import pytest

from backstage import findings as f
from backstage.cli import main
from support.server import Server

APP = """
from backstage import CronTask, Worker
worker = Worker(schedules=[CronTask("@hourly", "job", name="hourly")])
"""


def run(*args: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, ["doctor", *args], prog_name="backstage")


@pytest.fixture
def sound(own_server: Server) -> Server:
    """A server that keeps what it is given."""
    own_server.stop()
    own_server.start("--appendonly", "yes")
    return own_server


def test_the_status_tells_how_bad_it_is(sound: Server) -> None:
    """0 for nothing or notices, 1 for a warning, 2 for a danger; the last line counts."""
    result = run("--url", sound.url)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == "9 ok"
    with sound.client() as admin:
        admin.set("backstage:other", "x")
        result = run("--url", sound.url)
        assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "1 notice, 8 ok")
        admin.xadd("backstage:default:dead-letter", {"reason": "error"})
        result = run("--url", sound.url)
        assert (result.exit_code, result.stdout.splitlines()[-1]) == (1, "1 warning, 1 notice, 7 ok")
        admin.xadd("backstage:default", {"taskName": "t", "payload": "1"}, id="1-1")
        result = run("--url", sound.url)
        assert (result.exit_code, result.stdout.splitlines()[-1]) == (2, "1 danger, 1 warning, 1 notice, 7 ok")


def test_each_finding_says_what_it_means_and_what_to_do(sound: Server) -> None:
    """The worst comes first; what others wrote can't drive the terminal."""
    with sound.client() as admin:
        admin.set("backstage:\x1b[2Jevil", "x")
        admin.xadd("backstage:default", {"taskName": "t", "payload": "1"}, id="1-1")
    lines = run("--url", sound.url).stdout.splitlines()
    assert lines[0].startswith(f"danger   {f.UNSERVED.title} (queue default, waiting 1, seconds ")
    assert lines[1:3] == [f"         {f.UNSERVED.meaning}", f"         → {f.UNSERVED.advice}"]
    assert lines[3] == rf"notice   {f.FOREIGN.title} (keys \x1b[2Jevil (string), count 1)"


def test_json_has_all_of_it(sound: Server) -> None:
    """One object: the worst severity, and every finding with its facts."""
    with sound.client() as admin:
        admin.set("backstage:other", "x")
    shown = json.loads(run("--json", "--url", sound.url).stdout)
    assert shown["severity"] == "notice"
    assert shown["findings"][0] == {
        "severity": "notice", "title": f.FOREIGN.title, "meaning": f.FOREIGN.meaning, "advice": f.FOREIGN.advice,
        "facts": {"keys": "other (string)", "count": 1},
    }  # fmt: skip
    assert {each["severity"] for each in shown["findings"][1:]} == {"ok"}


def test_with_a_worker_its_schedules_are_known(sound: Server, tmp_path: Path) -> None:
    """`backstage doctor app:worker` tells one that is overdue from one that is not."""
    (tmp_path / "app.py").write_text(APP)

    def examine() -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "backstage", "doctor", "app:worker", "--url", sound.url]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=30)

    result = examine()
    assert (result.returncode, result.stderr) == (1, "")
    assert f"warning  {f.NEVER_SEEN.title} (schedule hourly)" in result.stdout
    with sound.client() as admin:
        admin.hset("backstage:cron", "hourly", "1000")
    result = examine()
    assert result.returncode == 2
    assert f"danger   {f.OVERDUE.title} (schedule hourly, due 1970-01-01T01:00:00+00:00)" in result.stdout


def test_without_redis_it_fails_with_one_line() -> None:
    """And no report."""
    result = run("--url", "redis://127.0.0.1:1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: no Redis at redis://127.0.0.1:1/0")
