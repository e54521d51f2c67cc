"""How long the tests that draw their input look, and whether two runs draw the same (docs/testing.md)."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

LONG = os.environ.get("BACKSTAGE_TEST_EXAMPLES", "default") == "long"


def load() -> None:
    """`default`: short, the same input each time. `long`: twenty times as many examples, and others each time."""
    unbound = {"deadline": None, "suppress_health_check": list(HealthCheck),
               "phases": set(Phase) - {Phase.explain}}  # fmt: skip
    settings.register_profile("default", derandomize=True, database=None, **unbound)
    settings.register_profile("long", max_examples=2_000, database=None, print_blob=True, **unbound)
    settings.load_profile("long" if LONG else "default")


def examples(few: int) -> settings:
    """So many examples, or twenty times as many in the long profile."""
    return settings(max_examples=few * 20 if LONG else few)
