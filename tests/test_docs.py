"""The documentation does what it says: every code block runs, every module, key and link that it names is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import backstage
from backstage.keys import Keys
from support.pages import ROOT, blocks
from support.server import Server

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
INTERNALS = ROOT / "docs" / "internals.md"
SOURCE = ROOT / "src" / "backstage"


def _id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_every_block_of_a_page_runs(page: Path, server: Server, prefix: str, tmp_path: Path) -> None:
    """Each example works as it stands, and none is passed over."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "BACKSTAGE_"))}
    environment |= {
        "REDIS_URL": server.url,
        "BACKSTAGE_PREFIX": prefix,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
        "COLUMNS": "120",
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "support.pages", str(page)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ran {len(blocks(page))}" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_every_fence_of_a_page_is_a_block(page: Path) -> None:
    """No block escapes by the way in which it is written: indented, unclosed, or with tildes."""
    fences = re.findall(r"^\s*(?:```|~~~)", page.read_text(), re.MULTILINE)
    fenced = [block for block in blocks(page) if block.kind not in ("check", "stop")]
    assert len(fences) == 2 * len(fenced)


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    """Links to files find them, and links to headings find those."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{target} leads nowhere"
        if anchor:
            assert anchor in _anchors(file), f"{target}: there is no such heading"


def test_internals_names_every_module_and_no_other() -> None:
    """Whoever opens docs/internals.md and then a file finds what the page promised, and finds every file."""
    there = {str(file.relative_to(SOURCE)) for file in SOURCE.rglob("*.py")}
    there = {name for name in there if not name.startswith("cli/") and "__" not in name} | {
        "__init__.py",
        "__main__.py",
    }
    assert set(_floors()) - {"cli/"} == there


def test_internals_has_a_paragraph_for_every_module() -> None:
    """The table says where a module stands; a paragraph says what it is and what it may touch."""
    told = set(re.findall(r"^- \*\*`([^`]+)`\*\*", INTERNALS.read_text(), re.MULTILINE))
    assert told == set(_floors())


def test_the_floors_of_internals_are_those_of_the_import_contracts() -> None:
    """The page and the contracts tell one plan, and no module escapes it."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    house, worker = (contract["layers"][::-1] for contract in contracts if contract["type"] == "layers")
    at = house.index("backstage.worker")
    plan = [set(layer.split(" | ")) for layer in [*house[:at], *worker, *house[at + 1 :]]]
    floors = _floors()
    told = [
        {f"backstage.{name.rstrip('/').removesuffix('.py').replace('/', '.')}" for name in floors if floors[name] == n}
        for n in range(max(floors.values()) + 1)
    ]
    assert [floor for floor in told if floor != {"backstage.__init__"}] == plan


def test_the_protocol_names_every_key() -> None:
    """docs/protocol.md has every key, with what bounds it."""
    keys = Keys("backstage")
    every = {name: getattr(keys, name) for name in Keys.__slots__ if name != "prefix"}
    every |= {
        "stream": keys.stream("<queue>"),
        "dead_letter": keys.dead_letter("<queue>"),
        "dedupe": keys.dedupe("<key>"),
        "call": keys.call("<id>"),
        "worker": keys.worker("<worker id>"),
        "stats": keys.stats("<queue>", 1).replace(":1", ":<minute>"),
    }
    assert every.keys() == {name for name in dir(keys) if not name.startswith("_")} - {"prefix"}
    rows = re.findall(
        r"^\| `([^`]+)` \| \w+ \| .+ \| .+ \|$", (ROOT / "docs" / "protocol.md").read_text(), re.MULTILINE
    )
    assert not set(every.values()) - set(rows)


def test_the_protocol_names_every_script() -> None:
    """docs/protocol.md tells what each Lua file does."""
    text = (ROOT / "docs" / "protocol.md").read_text()
    missing = [script.name for script in (SOURCE / "lua").glob("*.lua") if f"`{script.name}`" not in text]
    assert not missing


def test_the_reference_names_every_public_name() -> None:
    """docs/api.md leaves no public name out."""
    text = (ROOT / "docs" / "api.md").read_text()
    assert not [name for name in backstage.__all__ if not re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", text)]


def _floors() -> dict[str, int]:
    """Module → floor, from the table in docs/internals.md."""
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", INTERNALS.read_text(), re.MULTILINE)
    return {name: int(floor) for floor, names in rows for name in re.findall(r"`([^`]+)`", names)}


def _anchors(file: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
