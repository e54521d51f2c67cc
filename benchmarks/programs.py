"""Runs the programs: each system's in a virtual environment of its own, and the C driver, compiled on demand."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
OURS = ("backstage", "bare", "shape")

Line = dict[str, Any]


class Failed(Exception):
    """A program did not do what it is for; the text says which one, and what it said."""


class Program:
    """One running program, which prints lines of JSON."""

    def __init__(self, words: Sequence[str], env: dict[str, str], patience: float) -> None:
        self._patience = patience
        self._name = " ".join([Path(words[0]).name if len(words) < 2 else Path(words[1]).stem, *words[2:]])
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the program
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=self._errors, env=env, text=True)
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def line(self, key: str) -> Line:
        """The next line of JSON that has this key. Raises Failed where the program ends, or nothing comes."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                text = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self.kill()
                raise self._failed(f"said nothing of {key!r} for {self._patience:g} s") from None
            if text is None:
                raise self._failed(f"ended with status {self._process.wait()} and said nothing of {key!r}")
            if text.startswith("{"):
                found: Line = json.loads(text)
                if key in found:
                    return found

    def result(self, key: str = "jobs") -> Line:
        """The last word, once the program has ended well."""
        found = self.line(key)
        try:
            status = self._process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise self._failed("does not end") from None
        if status != 0:
            raise self._failed(f"ended with status {status}")
        return found

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _failed(self, what: str) -> Failed:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return Failed("\n    ".join([f"{self._name} {what}", *said[-12:]]))


class Programs:
    """Where each system's interpreter is; makes what is missing."""

    def __init__(self, url: str, python: str | None, *, patience: float = 300.0) -> None:
        """`patience`: seconds after which a program that says nothing counts as hanging."""
        self._python, self._patience = python, patience
        self._version = _version(python or sys.executable)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "BACKSTAGE_"))}
        self._env = {**kept, "BENCH_URL": url}
        self._port = url.rsplit(":", 1)[1].split("/")[0]
        self._made: dict[str, str] = {}
        self._ceiling: str | None = None

    @property
    def python_version(self) -> str:
        return self._version

    def start(self, system: str, *words: str, **env: str) -> Program:
        ours = {"PYTHONPATH": str(ROOT / "src")} if system in OURS else {}
        script = str(HERE / "systems" / f"{system}_.py")
        base = {name: value for name, value in self._env.items() if name != "PYTHONPATH"}
        return Program([self.interpreter(system), script, *words], {**base, **ours, **env}, self._patience)

    def run(self, system: str, *words: str, **env: str) -> Line:
        return _result(self.start(system, *words, **env))

    def ceiling(self, *words: str) -> Line:
        """The C driver."""
        if self._ceiling is None:
            self._ceiling = _compiled()
        return _result(Program([self._ceiling, self._port, *words], self._env, self._patience))

    def interpreter(self, system: str) -> str:
        """Of a system's environment, which is made at first, or when its requirements have changed."""
        if system in OURS and self._python is None:
            return sys.executable
        name = "backstage" if system in OURS else system
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def version(self, system: str) -> str:
        """The release of a system that is measured, as its requirements name it."""
        if system in OURS:
            return ""
        pins = dict(line.split("==") for line in self._requirements(system).split() if "==" in line)
        main = {"docket": "pydocket"}.get(system, system)
        return pins[main]

    def import_seconds(self, system: str, module: str) -> float:
        """How long `import` takes in a fresh interpreter, the best of five, without the start of Python itself."""
        ours = {"PYTHONPATH": str(ROOT / "src")} if system in OURS else {}
        env = {**{k: v for k, v in self._env.items() if k not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}, **ours}
        code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        words = [self.interpreter(system), "-c", code]
        runs = [subprocess.run(words, env=env, check=False, capture_output=True, text=True) for _ in range(5)]
        if failed := [run for run in runs if run.returncode != 0]:
            raise Failed(f"{system}: import {module} fails:\n    {failed[0].stderr.strip()}")
        return min(float(run.stdout) for run in runs)

    def _requirements(self, system: str) -> str:
        return (HERE / "requirements" / f"{system}.txt").read_text()

    def _make(self, name: str) -> str:
        place = HERE / ".venvs" / f"{name}-{self._version}"
        if name == "backstage":
            wanted, stamp = ["-e", f"{ROOT}[embedded,uvloop]"], (ROOT / "pyproject.toml").read_text()
        else:
            wanted, stamp = ["-r", str(HERE / "requirements" / f"{name}.txt")], self._requirements(name)
        digest = hashlib.sha256(stamp.encode()).hexdigest()
        python, mark = place / "bin" / "python", place / "made-of"
        if not mark.exists() or mark.read_text() != digest:
            print(f"setting up {name} in {place.relative_to(ROOT)} …", file=sys.stderr, flush=True)
            shutil.rmtree(place, ignore_errors=True)
            subprocess.run([self._python or sys.executable, "-m", "venv", str(place)], check=True)
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
            try:
                subprocess.run(pip, check=True, capture_output=True, text=True)
            except subprocess.CalledProcessError as error:
                raise Failed(f"{name} can't be installed:\n    {error.stderr.strip()}") from error
            mark.write_text(digest)
        return str(python)


def _result(program: Program) -> Line:
    try:
        return program.result()
    finally:
        program.kill()


def _version(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _compiled() -> str:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise Failed(
            "the server's ceiling is measured by a program in C, and there is no compiler: install cc, or set CC"
        )
    source = HERE / "ceiling.c"
    folder = HERE / ".venvs"
    folder.mkdir(exist_ok=True)
    binary = folder / f"ceiling-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if not binary.exists():
        fresh = binary.with_suffix(f".{os.getpid()}")
        words = [compiler, "-O2", "-Wall", "-o", str(fresh), str(source)]
        made = subprocess.run(words, check=False, capture_output=True, text=True)
        if made.returncode != 0:
            raise Failed(f"{' '.join(words)}:\n    {made.stderr.strip()}")
        fresh.rename(binary)
    return str(binary)
