"""The worker processes of the demo: started, killed, stopped, and none left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WORKER = "backstage.cli.demo.staff:worker"

LAST_LINES = 25
"""Of a log that is shown."""


class Crew:
    """Workers by name. Each writes its log to a file in `folder`, and finds Redis by its environment."""

    def __init__(self, folder: Path, url: str, prefix: str) -> None:
        self.folder = folder
        self._settings = {"REDIS_URL": url, "BACKSTAGE_PREFIX": prefix}  # not on the command line, where `ps` shows it
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Runs `backstage worker`. The environment's own settings for Backstage are kept out of it."""
        others = {n: v for n, v in os.environ.items() if not n.startswith(("REDIS_", "BACKSTAGE_"))}
        command = [sys.executable, "-m", "backstage", "worker", WORKER]
        with self._log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(  # noqa: S603 - this interpreter and fixed words
                command,
                env={**others, **self._settings, "BACKSTAGE_WORKER_ID": name},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def exit_status(self, name: str) -> int | None:
        """None while it runs; negative where a signal ended it."""
        return self._processes[name].poll()

    def kill(self, name: str) -> None:
        """SIGKILL: it can't tidy up, nor give its jobs back."""
        self._processes[name].kill()
        self._processes[name].wait()

    def terminate(self) -> list[str]:
        """SIGTERM to all that run; returns their names."""
        running = [name for name in self._processes if self.exit_status(name) is None]
        for name in running:
            self._processes[name].terminate()
        return running

    def end(self, patience: float = 3.0) -> None:
        """None of them runs any more when this returns."""
        for name in self.terminate():
            try:
                self._processes[name].wait(patience)
            except subprocess.TimeoutExpired:
                self.kill(name)

    def logs(self) -> str:
        """The ends of all logs, for people."""
        parts = []
        for name in self._processes:
            lines = self._log(name).read_text(encoding="utf-8", errors="replace").splitlines()
            parts.append("\n".join([f"The log of {name} ends:", *(f"  {line}" for line in lines[-LAST_LINES:])]))
        return "\n".join(parts)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"
