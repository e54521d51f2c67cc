"""The programs of `make bench` do their work. How fast they are is for `make bench` to say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted((ROOT / "benchmarks" / "systems").glob("*_.py"))
PEERS = [path for path in PROGRAMS if path.stem not in ("backstage_", "bare_", "shape_")]


@pytest.mark.parametrize("name", ["ceiling", "bare"])
def test_a_program_handles_all_its_jobs(name: str) -> None:
    """The limits are measured, and no job is lost or handled twice. Needs a C compiler.

    Of every other program CI asks the same, by `make bench ARGS="--smoke --peers"`.
    """
    words = [sys.executable, "-m", "benchmarks", "--smoke", "--systems", name]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        try:
            said, _ = running.communicate(timeout=50)
        finally:
            running.terminate()  # it ends its server and its workers
    assert running.returncode == 0, said
    assert re.search(r"^[1-9]\d* passed, 0 failed$", said, re.MULTILINE), said


def test_each_room_has_its_cost() -> None:
    """`make bench ARGS=--rooms` measures every step of a job's way, on a real server."""
    words = [sys.executable, "-m", "benchmarks", "--rooms"]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=50, check=True).stdout
    costs = [float(cost) for cost in re.findall(r"^\| .* \| (\d+\.\d\d) \|$", said, re.MULTILINE)]
    assert len(costs) == 17, said
    assert min(costs) > 0, said


@pytest.mark.parametrize("path", PEERS, ids=lambda path: path.stem)
def test_a_peers_program_is_sound(path: Path) -> None:
    """It compiles, and its environment is pinned. `python -m benchmarks --smoke --peers` runs it, which needs PyPI."""
    compile(path.read_text(), str(path), "exec")
    pins = (ROOT / "benchmarks" / "requirements" / f"{path.stem.rstrip('_')}.txt").read_text().splitlines()
    assert pins
    assert all("==" in pin for pin in pins), pins
