"""The command line: what it does, and the one line that it says where it can't."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import click.testing
import pytest
import redis

import backstage
from backstage.cli import main
from backstage.cli.table import printable
from backstage.cli.tables import age
from backstage.client import Client
from backstage.keys import Keys
from backstage.outcome import Dead
from backstage.stream import Stream
from support.server import Server
from support.waiting import wait_until_sync

APP = """
from backstage.worker.worker import Worker
worker = Worker()
spare = None

@worker.on("shout")
async def shout(text: str) -> None:
    print(text.upper(), flush=True)

@worker.on("fail", attempts=1)
async def fail() -> None:
    raise ValueError("it can't")
"""
NO_REDIS = "redis://127.0.0.1:1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with `app.py`; what is imported from it is forgotten afterwards."""
    (tmp_path / "app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def keys(prefix: str) -> Keys:
    return Keys(prefix)


@pytest.fixture
def db(server: Server) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


Run = Callable[..., click.testing.Result]


@pytest.fixture
def run(url: str, prefix: str) -> Run:
    """A command against the shared server; `input` is its standard input."""

    def command(*args: str, input: str | bytes | None = None) -> click.testing.Result:
        return bare(*args, "--url", url, "--prefix", prefix, input=input)

    return command


def bare(*args: str, input: str | bytes | None = None) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, args, input=input, prog_name="backstage")


def fails(result: click.testing.Result, says: str, status: int = 1) -> None:
    """One line on stderr, nothing on stdout."""
    assert (result.exit_code, result.stdout) == (status, ""), result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert says in result.stderr, result.stderr


def kill(url: str, prefix: str, n: int = 1, queue: str = "emails", error: str = "ValueError: no") -> None:
    """Put n jobs into a queue's dead letter, as a worker would."""

    async def work() -> None:
        async with redis.asyncio.Redis.from_url(url) as client:
            stream = Stream(client, prefix=prefix, queues=[queue], consumer="w~1")
            for i in range(n):
                await stream.enqueue("t", {"n": i}, queue=queue)
                (taken,) = await stream.take(1)
                await stream.finish([(taken, Dead("error", error, "Traceback …"))])
            await stream.aclose()

    asyncio.run(work())


# ---- enqueue ---------------------------------------------------------------------------------------------------------


def test_enqueue_prints_the_id_of_the_job_it_added(run: Run, db: redis.Redis, keys: Keys) -> None:
    """With the options that were given, on the queue that was named."""
    result = run("enqueue", "email.send", '{"to": "ada"}', "--queue", "emails", "--attempts", "3", "--timeout", "1.5s")
    assert result.exit_code == 0, result.output
    ((_, fields),) = db.xrange(keys.stream("emails"))
    assert fields["jobId"] == result.stdout.strip()
    assert {k: fields[k] for k in ("taskName", "payload", "attempts", "timeout")} == {
        "taskName": "email.send", "payload": '{"to":"ada"}', "attempts": "3", "timeout": "1500"
    }  # fmt: skip


def test_enqueue_reads_a_payload_from_standard_input_and_sends_null_without_one(
    run: Run, db: redis.Redis, keys: Keys
) -> None:
    """`-` is standard input."""
    assert run("enqueue", "t", "-", input='["é"]').exit_code == 0
    assert run("enqueue", "t", "--priority", "default").exit_code == 0
    assert [fields["payload"] for _, fields in db.xrange(keys.stream("default"))] == ['["é"]', "null"]


@pytest.mark.parametrize(
    ("given", "ms"), [("1500", 1_500), ("90000ms", 90_000), ("1.5s", 1_500), ("2h", 7_200_000), ("1d", 86_400_000)]
)
def test_a_delay_is_in_ms_or_in_the_unit_that_is_written(
    run: Run, db: redis.Redis, keys: Keys, given: str, ms: int
) -> None:
    """As everywhere in Backstage, a bare number is milliseconds."""
    before = db.time()
    assert run("enqueue", "t", "--delay", given).exit_code == 0
    ((_, due),) = db.zrange(keys.scheduled, 0, -1, withscores=True)
    assert 0 <= due - (before[0] * 1000 + before[1] // 1000) - ms < 30_000


def test_a_duplicate_is_no_error_and_prints_no_id(run: Run) -> None:
    """Standard output stays empty; why is on stderr."""
    assert run("enqueue", "t", "--dedupe", "k").stdout
    again = run("enqueue", "t", "--dedupe", "k")
    assert (again.exit_code, again.stdout) == (0, "")
    assert "duplicate" in again.stderr


# ---- info ------------------------------------------------------------------------------------------------------------


def test_info_is_plain_columns_where_there_is_no_terminal(run: Run, url: str, prefix: str) -> None:
    """So that `awk` can read it."""
    kill(url, prefix, 2)
    run("enqueue", "t", "--queue", "emails")
    lines = run("info").stdout.splitlines()
    assert lines[0].split() == ["QUEUE", "WAITING", "RUNNING", "SCHEDULED", "DEAD", "OLDEST"]
    emails = next(line.split() for line in lines if line.startswith("emails"))
    assert emails[:5] == ["emails", "1", "0", "0", "2"]
    assert emails[5].endswith("s")
    assert next(line.split() for line in lines if line.startswith("all"))[:5] == ["all", "1", "0", "0", "2"]
    assert lines[-1] == "none"


def test_info_as_json_has_every_number(run: Run) -> None:
    """One object, durations in ms."""
    run("enqueue", "t", "--queue", "emails")
    shown = json.loads(run("info", "--json").stdout)
    (emails,) = (queue for queue in shown["queues"] if queue["name"] == "emails")
    assert emails["waiting"] == shown["waiting"] == 1
    assert 0 <= emails["oldest"] < 30_000
    assert shown["workers"] == []


def test_a_key_of_another_type_is_shown_in_its_row(run: Run, db: redis.Redis, keys: Keys) -> None:
    """The rest of the table stands."""
    db.set(keys.stream("urgent"), "x")
    result = run("info")
    assert result.exit_code == 0
    assert "holds a string" in result.stdout


# ---- dead ------------------------------------------------------------------------------------------------------------


def test_dead_jobs_are_listed_with_what_retry_and_purge_call_them(run: Run, url: str, prefix: str) -> None:
    """Of one queue or of all, the newest first, in columns, in full or as JSON."""
    kill(url, prefix, 2)
    kill(url, prefix, 1, "other")
    shown = [json.loads(line) for line in run("dead", "list", "--json").stdout.splitlines()]
    assert [(job["queue"], job["payload"]) for job in shown] == [
        ("emails", '{"n":1}'), ("emails", '{"n":0}'), ("other", '{"n":0}')
    ]  # fmt: skip
    assert shown[0]["error"] == "ValueError: no"
    header, row = run("dead", "list", "emails", "--limit", "1").stdout.splitlines()
    assert header.split()[:4] == ["ENTRY", "QUEUE", "TASK", "REASON"]
    assert row.split()[:4] == [shown[0]["entry"], "emails", "t", "error"]
    assert "Traceback …" in run("dead", "list", "emails", "--full").stdout
    assert run("dead", "list", "nothing").stdout == "none\n"


def test_what_others_wrote_cannot_drive_the_terminal(run: Run, url: str, prefix: str) -> None:
    """Escape sequences in errors are shown as text."""
    kill(url, prefix, error="\x1b[2J[bold]boo")
    for args in (("dead", "list"), ("dead", "list", "--full")):
        out = run(*args).stdout
        assert "\x1b" not in out
        assert r"\x1b[2J[bold]boo" in out


def test_dead_jobs_go_back_all_or_those_that_are_named(
    run: Run, url: str, prefix: str, db: redis.Redis, keys: Keys
) -> None:
    """It says how many did."""
    kill(url, prefix, 3)
    entry = json.loads(run("dead", "list", "emails", "--limit", "1", "--json").stdout)["entry"]
    assert run("dead", "retry", "emails", entry).stdout == "1 dead job of emails put back\n"
    assert run("dead", "retry", "emails").stdout == "2 dead jobs of emails put back\n"
    assert (db.xlen(keys.stream("emails")), db.xlen(keys.dead_letter("emails"))) == (3, 0)


def test_an_entry_that_is_not_there_fails_the_command(run: Run, url: str, prefix: str) -> None:
    """What could be done was done, and is told."""
    kill(url, prefix)
    result = run("dead", "retry", "emails", "1-1")
    assert result.exit_code == 1
    assert result.stderr == "Error: 1 of the 1 entries are no jobs in the dead letter of emails\n"


def test_purging_all_asks_first(run: Run, url: str, prefix: str, db: redis.Redis, keys: Keys) -> None:
    """No answer, or no: nothing is deleted. A yes, or --yes: all."""
    kill(url, prefix, 2)
    for answer in ("", "n\n"):
        result = run("dead", "purge", "emails", input=answer)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "2 dead jobs of emails" in result.stderr
        assert "--yes" in result.stderr
    assert db.xlen(keys.dead_letter("emails")) == 2
    assert run("dead", "purge", "emails", input="y\n").stdout == "2 dead jobs of emails deleted\n"
    kill(url, prefix)
    assert run("dead", "purge", "emails", "--yes").stdout == "1 dead job of emails deleted\n"


def test_purging_named_entries_asks_nothing(run: Run, url: str, prefix: str) -> None:
    """They were named."""
    kill(url, prefix, 2)
    entry = json.loads(run("dead", "list", "emails", "--limit", "1", "--json").stdout)["entry"]
    assert run("dead", "purge", "emails", entry).stdout == "1 dead job of emails deleted\n"


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [("info",), ("dead", "list"), ("dead", "retry", "q"), ("dead", "purge", "q", "--yes")])
def test_without_redis_a_command_says_where_it_looked_and_how_to_get_one(
    args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, wherever the address came from."""
    result = bare(*args, "--url", f"redis://:hush@{NO_REDIS.removeprefix('redis://')}")
    fails(result, "no Redis at redis://127.0.0.1:1/0")
    assert "REDIS_URL" in result.stderr
    assert "--url embedded:///folder" in result.stderr
    assert "hush" not in result.stderr
    monkeypatch.setenv("REDIS_URL", NO_REDIS)
    fails(bare(*args), "no Redis at redis://127.0.0.1:1/0")


def test_an_enqueue_without_redis_says_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """And that the job may have arrived."""
    impatient = partial(Client, connect_timeout=100)  # it waits that long for Redis to come
    monkeypatch.setattr("backstage.cli.session.Client", impatient)
    fails(bare("enqueue", "t", "--url", NO_REDIS), "no Redis at redis://127.0.0.1:1/0 (not enqueued within")


def test_several_keyspaces(prefix: str, url: str) -> None:
    """Jobs go to all, counts are of all, and a dead job's ENTRY says where it is."""
    where = ("--url", url, "--prefix", f"{{{prefix}}}", "--keyspaces", "3")
    for _ in range(12):
        assert bare("enqueue", "t", *where).exit_code == 0
    told = json.loads(bare("info", "--json", *where).stdout)
    assert told["waiting"] == 12
    for n in range(3):
        assert (
            0 < json.loads(bare("info", "--json", "--url", url, "--prefix", f"{{{prefix}:{n}}}").stdout)["waiting"] < 12
        )
        kill(url, f"{{{prefix}:{n}}}")
    entries = [json.loads(line)["entry"] for line in bare("dead", "list", "--json", *where).stdout.splitlines()]
    assert sorted(entry[:2] for entry in entries) == ["0:", "1:", "2:"]
    assert bare("dead", "retry", "emails", entries[0], *where).stdout == "1 dead job of emails put back\n"
    assert bare("dead", "purge", "emails", "--yes", *where).stdout == "2 dead jobs of emails deleted\n"
    fails(bare("demo", "--keyspaces", "2"), "the demo has one keyspace", 2)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("enqueue", "no spaces"), "task name 'no spaces'"),
        (("enqueue", "t", "--queue", "cron"), "queue name 'cron'"),
        (("dead", "retry", "q", "x"), "entry id 'x'"),
        (("info", "--url", "http://x"), "unknown scheme 'http'"),
        (("info", "--prefix", ""), "prefix=''"),
        (("info", "--keyspaces", "2"), "prefix='backstage': with keyspaces=2"),
    ],
)
def test_an_error_of_backstage_is_its_message(run: Run, args: tuple[str, ...], says: str) -> None:
    """On one line, with status 1."""
    fails(bare(*args) if args[0] == "info" else run(*args), says)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("bogus",), "No such command 'bogus' (see: backstage --help)"),
        (("info", "--bogus"), "(see: backstage info --help)"),
        (("enqueue",), "Missing argument 'TASK'"),
        (("enqueue", "t", "{"), "a text needs its own quotes"),
        (("enqueue", "t", "--delay", "5x"), "'5x' is no duration"),
        (("enqueue", "t", "--attempts", "0"), "--attempts"),
        (("worker",), "MODULE"),
    ],
)
def test_a_wrong_command_line_is_one_line_too(args: tuple[str, ...], says: str) -> None:
    """With status 2, and where to read on."""
    fails(bare(*args), says, status=2)


def test_debug_shows_the_error_itself() -> None:
    """For those who want the traceback."""
    result = bare("info", "--url", NO_REDIS, "--debug")
    assert isinstance(result.exception, backstage.errors.RedisUnavailable)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nope:worker", "there is no module 'nope', neither in "),
        ("app:nope", "app has no 'nope'; Workers there: app:worker"),
        ("app:shout", "app:shout is a Task, not a Worker; Workers there: app:worker"),
        ("app:spare", "app:spare is a NoneType, not a Worker"),
        ("app.py:worker", "names a file; write the module's name, like app:worker"),
        ("two", "two holds 2 Workers (a, b): say which, like two:a"),
        ("empty", "empty holds no Worker"),
        ("broken", "importing broken failed: ZeroDivisionError: division by zero"),
        ("needy", "importing needy failed: No module named 'not_installed'"),
        ("syntax", "importing syntax failed: SyntaxError"),
        (":worker", "is no module:attribute"),
    ],
)
def test_a_wrong_target_is_told_with_what_is_there(folder: Path, target: str, says: str) -> None:
    """One line; the user's code may fail in any way."""
    sources = {
        "two": "from backstage.worker.worker import Worker\na = Worker()\nb = Worker()\nc = b\n",
        "empty": "",
        "broken": "1 / 0",
        "needy": "import not_installed",
        "syntax": "def",
    }
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    fails(bare("worker", target), says)


def test_a_scheduler_is_looked_for_in_the_same_way(folder: Path) -> None:
    """A worker is none."""
    fails(bare("scheduler", "app:worker"), "app:worker is a Worker, not a Scheduler; and no other Scheduler is in app")


# ---- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    ["", "worker", "scheduler", "enqueue", "info", "dead", "dead list", "dead retry", "dead purge"],
)
def test_every_help_has_examples(command: str) -> None:
    """And says how to reach Redis, where the command does."""
    result = bare(*command.split(), "--help")
    assert result.exit_code == 0
    assert re.search(rf"Examples:\n +backstage {command}", result.stdout)
    assert ("  --url URL" in result.stdout) == (command not in ("", "dead"))


def test_the_version_is_that_of_the_distribution() -> None:
    """`backstage, version x.y.z`."""
    result = bare("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("backstage, version ")


def test_rich_is_imported_only_for_a_terminal() -> None:
    """It is slow, and a shell completion or a cron job must not wait for it."""
    code = "import sys, backstage.cli.info, backstage.cli.dead; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0.0s"), (9.9, "9.9s"), (59, "59s"), (200, "3m 20s"), (18_600, "5h 10m"), (187_200, "2d 4h"), (-1, "0.0s")],
)
def test_ages_have_two_units_at_most(seconds: float, shown: str) -> None:
    """They are read at a glance."""
    assert age(timedelta(seconds=seconds)) == shown


def test_printable_text_is_one_line() -> None:
    """Whatever it was."""
    assert printable("a\nb\x1b\u202e\ud800é") == r"a b\x1b\u202e\ud800é"


# ---- processes -------------------------------------------------------------------------------------------------------


def spawn(*args: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "backstage.cli", *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(backstage.__file__).parents[1])}, **options,
    )  # type: ignore[call-overload]  # fmt: skip


def test_a_worker_runs_jobs_until_sigterm_and_ends_with_status_0(
    folder: Path, run: Run, url: str, prefix: str, db: redis.Redis, keys: Keys
) -> None:
    """It's seen in `info`; the options given hold; its log is JSON where that's asked for."""
    options = ("--concurrency", "7", "--queues", "default, emails", "--log-json")
    process = spawn("worker", "app", *options, "--url", url, "--prefix", prefix)
    try:
        wait_until_sync(lambda: db.zcard(keys.workers), timeout=15, message="the worker is in the registry")
        shown = json.loads(run("info", "--json").stdout)
        facts = shown["workers"][0]["facts"]
        assert (facts["concurrency"], facts["queues"]) == ("7", "default,emails")
        run("enqueue", "shout", '"hello"')
        run("enqueue", "fail", "--queue", "emails")
        wait_until_sync(lambda: db.xlen(keys.dead_letter("emails")), message="the failing job is dead")
    finally:
        process.send_signal(signal.SIGTERM)
        out, log = process.communicate(timeout=15)
    assert process.returncode == 0, log
    assert out == "HELLO\n"
    assert all(json.loads(line)["level"] for line in log.splitlines())


def test_a_worker_without_redis_fails_with_one_line(folder: Path) -> None:
    """After its connect_timeout; the address is told."""
    (folder / "app.py").write_text(APP.replace("Worker()", "Worker(connect_timeout=200)"))
    process = spawn("worker", "app", "--url", NO_REDIS, "--log-level", "error")
    _, log = process.communicate(timeout=30)
    assert process.returncode == 1
    assert log.startswith("Error: no Redis at redis://127.0.0.1:1/0")
    assert log.count("\n") == 1, log


def test_a_scheduler_runs_until_sigterm(folder: Path, url: str, prefix: str) -> None:
    """It ends with status 0."""
    (folder / "plan.py").write_text(
        "from backstage.cron import CronTask\nfrom backstage.scheduler import Scheduler\n"
        'scheduler = Scheduler(schedules=[CronTask("0 0 1 1 *", "yearly")])\n'
    )
    process = spawn("scheduler", "plan", "--url", url, "--prefix", prefix)
    assert process.stderr is not None
    assert "yearly" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=15)
    assert process.returncode == 0, log


def test_watch_looks_again_until_ctrl_c(url: str, prefix: str) -> None:
    """One JSON line a look where nobody looks at a terminal; Ctrl-C is its end, not an error."""
    process = spawn("info", "--watch", "--json", "--url", url, "--prefix", prefix)
    assert process.stdout is not None
    assert [json.loads(process.stdout.readline())["waiting"] for _ in range(2)] == [0, 0]
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=15)
    assert (process.returncode, log) == (0, "")


def test_an_embedded_server_will_do(tmp_path: Path) -> None:
    """`--url embedded:///folder`: no Redis needs to be installed."""
    address = ("--url", f"embedded://{tmp_path}/r")
    assert bare("enqueue", "t", *address).exit_code == 0
    assert json.loads(bare("info", "--json", *address).stdout)["waiting"] == 1
