"""Worker processes for tests: started from a few lines of source, watched, signalled, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from support.waiting import wait_until

HEAD = '''
import asyncio, json, os, signal, sys, threading, time
from backstage import *

settings = json.loads(sys.argv[1])

def say(*words):
    """One fact, as one line: when it happened and what."""
    os.write(1, (" ".join([repr(time.monotonic()), *map(str, words)]) + "\\n").encode())

'''

WORKER = "worker = Worker(**settings)\n"
RUN = '\nworker.run()\nsay("returned")\n'


class Fact(NamedTuple):
    """What a process said."""

    at: float
    """On the monotonic clock, which all processes of this machine share."""
    words: tuple[str, ...]


class Process:
    """A Python process that runs `source` with `settings`. In it `say(*words)` tells a fact; stderr is its log."""

    def __init__(self, source: str, **settings: Any) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="backstage-process-"))
        self._out, self._err = self._folder / "out", self._folder / "err"
        (self._folder / "main.py").write_text(HEAD + source)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("REDIS_", "BACKSTAGE_"))}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, str(self._folder / "main.py"), json.dumps(settings)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=kept, start_new_session=True,
            )  # fmt: skip

    @classmethod
    def worker(cls, source: str, **settings: Any) -> Self:
        """A process whose `source` registers handlers on `worker`, which then runs until it is told to stop."""
        return cls(WORKER + source + RUN, **settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            print(f"---- facts\n{self._out.read_text()}\n---- log\n{self.log}")
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        return self._err.read_text(errors="replace")

    def facts(self, *words: object) -> list[Fact]:
        """What it said so far that begins with these words."""
        begin = tuple(map(str, words))
        lines = self._out.read_text(errors="replace").rpartition("\n")[0].splitlines()
        found = [Fact(float(at), tuple(rest)) for at, *rest in map(str.split, lines)]
        return [fact for fact in found if fact.words[: len(begin)] == begin]

    async def said(self, *words: object, times: int = 1, timeout: float = 10.0) -> Fact:
        """Wait until it has said this so many times; the last of those facts."""

        def enough() -> bool:
            assert len(self.facts(*words)) >= times or self.status is None, f"it ended:\n{self.log}"
            return len(self.facts(*words)) >= times

        await wait_until(enough, timeout, f"a process says {' '.join(map(str, words))!r} {times} times")
        return self.facts(*words)[times - 1]

    async def logged(self, text: str, timeout: float = 10.0) -> None:
        """Wait until its log has this text."""
        await wait_until(lambda: text in self.log, timeout, f"a process logs {text!r}")

    async def consuming(self) -> Self:
        """Wait until its worker takes jobs."""
        await self.logged(" consumes ")
        return self

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    @property
    def status(self) -> int | None:
        """Its exit status, as `Popen.returncode`; None while it lives."""
        return self._process.poll()

    async def ended(self, timeout: float = 10.0) -> int:
        """Wait for its end; the exit status."""
        await wait_until(lambda: self.status is not None, timeout, "a process ends")
        return self._process.returncode

    def close(self) -> None:
        """Kill it, and whatever it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)
