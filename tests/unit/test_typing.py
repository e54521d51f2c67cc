"""The annotations, as users' type checkers read them: `mypy --strict` and pyright in strict mode accept what
`tests/typing` does, and refuse what `tests/typing_mistakes` does."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ACCEPTED = sorted((ROOT / "tests/typing").glob("*.py"))
MISTAKES = sorted((ROOT / "tests/typing_mistakes").glob("*.py"))

Found = dict[tuple[str, int], list[str]]
"""What a checker says, by file name and line."""


def mypy(files: list[Path]) -> Found:
    command = [sys.executable, "-m", "mypy", "--strict", "--show-absolute-path", "--hide-error-context"]
    result = subprocess.run([*command, *map(str, files)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode in (0, 1), result.stdout + result.stderr
    found: Found = {}
    for path, line, message in re.findall(r"^(.+?):(\d+): error: (.*)$", result.stdout, re.MULTILINE):
        found.setdefault((Path(path).name, int(line)), []).append(message)
    assert bool(found) == (result.returncode == 1), result.stdout + result.stderr
    return found


def pyright(files: list[Path]) -> Found:
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    result = subprocess.run([*command, *map(str, files)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode in (0, 1), result.stdout + result.stderr
    found: Found = {}
    for diagnostic in json.loads(result.stdout[result.stdout.index("{") :])["generalDiagnostics"]:
        place = Path(diagnostic["file"]).name, diagnostic["range"]["start"]["line"] + 1
        found.setdefault(place, []).append(diagnostic["message"])
    return found


@pytest.mark.parametrize("check", [mypy, pyright])
def test_accepted(check: Callable[[list[Path]], Found]) -> None:
    """Every correct use type-checks, strictly, without an ignore or a cast."""
    assert ACCEPTED
    assert check(ACCEPTED) == {}


@pytest.mark.parametrize("check", [mypy, pyright])
def test_refused(check: Callable[[list[Path]], Found]) -> None:
    """Every mistake is found where it stands, and nothing else is."""
    marked = {
        (file.name, number)
        for file in MISTAKES
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if "  # error: " in line
    }
    found = check(MISTAKES)
    assert marked
    assert {place: found.get(place) for place in marked ^ found.keys()} == {}


@pytest.mark.parametrize("file", ACCEPTED + MISTAKES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_strict(file: Path) -> None:
    """Each of these files asks pyright for its strict mode, and silences neither checker."""
    text = file.read_text()
    assert text.startswith("# pyright: strict\n")
    assert not re.search(r"type: ignore|pyright: ignore|\bcast\(", text)
