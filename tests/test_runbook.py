"""docs/runbook.md knows every line of WARNING and ERROR of the library; docs/reliability.md names tests that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from backstage.rights import ROLES

ROOT = Path(__file__).parents[1]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
TOLD = re.findall(r"^\| (?:INFO|WARNING|ERROR) \| `([^`]+)` \| .+ \| .+ \|$", RUNBOOK, re.MULTILINE)


def lines(*levels: str) -> Iterator[tuple[str, str]]:
    """Format strings of the library's log calls of these levels, and where they stand; the command line's aside."""
    for file in sorted((ROOT / "src" / "backstage").rglob("*.py")):
        if "cli" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(
                    ast.Attribute(attr=("log" | "debug" | "info" | "warning" | "error" | "exception") as level)
                ):
                    texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                    if level in levels and texts:
                        yield texts[0], f"{file.name}:{node.lineno}"


def test_every_line_that_tells_of_trouble_is_in_the_runbook() -> None:
    """But for those that only pass on what another part says."""
    missing = [
        (text, where)
        for text, where in lines("log", "warning", "error", "exception")
        if len(re.findall(r"[a-z]{3,}", text)) > 1 and not any(words in text for words in TOLD)
    ]
    assert not missing


def test_the_runbook_tells_of_no_line_that_is_not_there() -> None:
    """Its words are those of the log, letter by letter."""
    every = [text for text, _ in lines("log", "info", "warning", "error", "exception")]
    assert len(TOLD) > 20
    assert not [words for words in TOLD if not any(words in text for text in every)]


def test_the_access_rules_of_the_runbook_are_those_that_the_doctor_asks_for() -> None:
    """One list of commands for each role."""
    containers = {"SCRIPT", "CLIENT", "XGROUP", "XINFO"}
    for role, commands in ROLES.items():
        told = re.search(rf"^{role} +(~.+(?:\n {{2,}}.+)*)", RUNBOOK, re.MULTILINE)
        assert told, role
        rules = {word for word in told[1].split() if word.startswith("+")}
        assert rules == {f"+{c[0]}|{c[1]}".lower() if c[0] in containers else f"+{c[0]}".lower() for c in commands}


def test_every_test_that_the_reliability_page_names_is_there() -> None:
    """A fault without its test would be a promise without proof."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    named = re.findall(r"`((?:\w+/)*test_\w+\.py)::(\w+)`", text)
    assert len(named) > 80
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / "tests" / file).exists()
        or not re.search(rf"^(?:async )?def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE)
    ]
    assert not missing


def test_every_fault_of_the_reliability_page_has_a_test() -> None:
    """No row without one."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    faults = text[text.index("## What happens at each fault") : text.index("## How it is proved")]
    rows = [row for row in re.findall(r"^\| (.+) \|$", faults, re.MULTILINE) if not row.startswith(("fault |", "-"))]
    assert len(rows) > 50
    assert not [row for row in rows if "::test_" not in row]
