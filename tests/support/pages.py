"""Pages of documentation whose code blocks are run.

`python -m support.pages PAGE` runs every block of a Markdown file, in order, in the current folder, and exits non-zero
where one does not do what the page says. REDIS_URL and BACKSTAGE_PREFIX say where. What is done with a block:

    python      run; the blocks of a page share their names. A bare `await` works, as in `python -m asyncio`
    console     `$ command` lines are run; the lines below one are its output, with … for what may differ
    sh          every line is a command
    json, toml  must parse
    text        shown only

An HTML comment above a block says more: `<!-- file: app.py -->` writes it to a file instead of running it,
`<!-- run: app.py -->` also starts that file as a process of its own, which lives until the page ends or until
`<!-- stop: app.py -->`, is stopped by SIGTERM and must then exit with 0. `<!-- check: expression -->` is asked until it
is true; `out("app.py")` is what a process has said so far. What stands under /tmp/ in a block is put into the current
folder.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

_PART = re.compile(
    r"^<!-- (?P<verb>file|run|check|stop): (?P<what>.+?) -->\s*$|^```(?P<kind>\S*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_LONG = ("worker", "scheduler")
"""Commands that run until they are stopped."""
_READY = re.compile(r"worker \S+ consumes|scheduler runs")
_PATIENCE = 20.0


@dataclass
class Block:
    page: str
    line: int
    kind: str
    text: str
    verb: str = ""
    what: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """Every fenced block and every check of a page, in order."""
    source, found, directive = path.read_text(), [], None
    for match in _PART.finditer(source):
        line = source.count("\n", 0, match.start()) + 1
        if match["verb"] in ("check", "stop"):
            found.append(Block(path.name, line, match["verb"], match["what"]))
        elif match["verb"]:
            directive = match
        else:
            block = Block(path.name, line, match["kind"], match["text"])
            if directive is not None:
                between = source[directive.end() : match.start()]
                assert not between.strip(), f"{block}: text stands between the comment and its block"
                block.verb, block.what, directive = directive["verb"], directive["what"], None
            found.append(block)
    assert directive is None, f"{path.name}: a comment without a block: {directive and directive[0]}"
    return found


@dataclass
class Page:
    """One page while it is run."""

    folder: Path
    runner: asyncio.Runner
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, block: Block) -> None:
        text = block.text.replace("/tmp/", f"{self.folder}/")
        if block.verb in ("file", "run"):
            (self.folder / block.what).write_text(text)
            if block.verb == "run":
                self.start(block.what, [sys.executable, block.what])
            return
        match block.kind:
            case "python":
                self.python(block, text)
            case "check":
                self.check(block, text)
            case "stop":
                self.stop(block.text)
            case "console":
                for command, expected in _session(text):
                    self.command(block, command, expected)
            case "sh":
                for command in text.replace("\\\n", " ").splitlines():
                    if command.strip() and not command.startswith("#"):
                        self.command(block, command, None)
            case "json":
                json.loads(text)
            case "toml":
                tomllib.loads(text)
            case "text":
                pass
            case kind:
                raise AssertionError(f"{block}: a block of the unknown kind {kind!r}")

    def python(self, block: Block, text: str) -> None:
        code = compile("\n" * block.line + text, block.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if not code.co_flags & inspect.CO_COROUTINE:
            exec(code, self.names)
            return
        self.runner.run(_awaited(eval(code, self.names)))

    def check(self, block: Block, text: str) -> None:
        code = compile(text, str(block), "eval", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        names = {**self.names, "out": self.out}
        deadline = time.monotonic() + _PATIENCE
        while True:
            answer = eval(code, names)
            if inspect.iscoroutine(answer):
                answer = self.runner.run(_awaited(answer))
            if answer:
                return
            said = "\n".join(f"--- {name}\n{self.out(name)}" for name in self.processes)
            assert time.monotonic() < deadline, f"{block}: not true: {text}\n{said}"
            time.sleep(0.02)

    def command(self, block: Block, command: str, expected: str | None) -> None:
        words = shlex.split(command)
        match words:
            case ["make", target]:
                makefile = (ROOT / "Makefile").read_text()
                assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"{block}: no target {target!r}"
            case ["pip", "install", *packages]:
                for package in packages:
                    if package != "-e":
                        _check_package(block, package)
            case ["backstage", "demo", *_]:  # it takes its minute in a test of its own
                self.finish(block, ["backstage", "demo", "--help"], None)
            case ["pytest", *_]:
                self.finish(block, [sys.executable, "-m", *words, "-p", "no:cacheprovider"], expected)
            case ["backstage", name, *_] if name in _LONG:
                self.start(command, _ours(words))
            case ["backstage", *_]:
                self.finish(block, words, expected)
            case ["python", file] if (self.folder / file).exists():
                if ".run()" in (self.folder / file).read_text():
                    self.start(file, [sys.executable, file])
                else:
                    self.finish(block, [sys.executable, file], expected)
            case _:
                raise AssertionError(f"{block}: nobody knows how to check the command {command!r}")

    def finish(self, block: Block, words: list[str], expected: str | None) -> None:
        done = subprocess.run(_ours(words), capture_output=True, text=True, timeout=60, cwd=self.folder)
        assert done.returncode == 0, f"{block}: {words} exited with {done.returncode}\n{done.stdout}{done.stderr}"
        if expected:
            pattern = re.escape(" ".join(expected.split())).replace("…", ".*?")
            said = " ".join(done.stdout.split())
            assert re.fullmatch(pattern, said), f"{block}: {words} said\n{done.stdout}"

    def start(self, name: str, words: list[str]) -> None:
        log = (self.folder / _log(name)).open("wb")
        process = subprocess.Popen(words, stdout=log, stderr=log, cwd=self.folder)
        log.close()
        self.processes[name] = process
        deadline = time.monotonic() + _PATIENCE
        while not _READY.search(self.out(name)):
            assert process.poll() is None, f"{name} ended with {process.returncode}\n{self.out(name)}"
            assert time.monotonic() < deadline, f"{name} does not get ready\n{self.out(name)}"
            time.sleep(0.02)

    def out(self, name: str) -> str:
        return (self.folder / _log(name)).read_text()

    def stop(self, *names: str) -> None:
        for name in names or self.processes:
            self.processes[name].send_signal(signal.SIGTERM)
        for name in names or list(self.processes):
            process = self.processes.pop(name)
            status = process.wait(_PATIENCE)
            assert status == 0, f"{name} exited with {status}\n{self.out(name)}"


def _session(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with its output."""
    text = text.replace("\\\n", " ")
    assert text.startswith("$ "), f"a console block begins with a command: {text!r}"
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command.strip(), output


def _ours(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "backstage", *words[1:]] if words[0] == "backstage" else words


def _check_package(block: Block, package: str) -> None:
    found = re.fullmatch(r"([a-z-]+|\.)(?:\[([a-z,]+)\])?", package)
    assert found, f"{block}: {package!r} is no package"
    assert found[1] in (PROJECT["name"], "."), f"{block}: the package is called {PROJECT['name']}"
    for extra in (found[2] or "").split(","):
        assert not extra or extra in PROJECT["optional-dependencies"], f"{block}: there is no extra {extra!r}"


def _log(name: str) -> str:
    return re.sub(r"\W+", "-", name) + ".log"


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def main(path: Path) -> None:
    found = blocks(path)
    with asyncio.Runner() as runner:
        page = Page(Path.cwd(), runner)
        sys.path.insert(0, str(page.folder))
        try:
            for block in found:
                try:
                    page.run(block)
                except BaseException:
                    print(f"in the block at {block}:", file=sys.stderr)
                    raise
        finally:
            page.stop()
    print(f"ran {len(found)}")
    sys.stdout.flush()
    os._exit(0)  # what an example left open ends with the process


if __name__ == "__main__":
    main(Path(sys.argv[1]))
