"""The state machine is checked: a script with a mistake breaks an invariant, and the machine finds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis
from hypothesis import Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from properties.machine import Machine
from properties.mutants import (
    FENCE_WITHOUT_COUNT,
    MUTANTS,
    RELEASE_TO_SELF,
    RENEW_WITHOUT_COUNT,
    SUBTLE,
    Mutant,
)
from properties.system import QUEUES, System, Texts, genuine
from properties.world import WORKERS, World
from support import profiles
from support.server import Server

A, B = WORKERS


@pytest.fixture
def worlds(server: Server, prefix: str) -> Iterator[Callable[[Texts], World]]:
    """Makes worlds of given scripts."""
    with server.client() as db, redis.Redis(unix_socket_path=server.socket) as raw:
        yield lambda texts: World(System(db, raw, f"{prefix}-{texts.__qualname__}", QUEUES, texts))


def taken(world: World) -> World:
    """One job, in the hands of A."""
    world.enqueue([("default", False, "")])
    world.check()
    world.take(A, "default")
    world.check()
    return world


def there_and_back(world: World) -> World:
    """A took it, then B, and then A again, each too slow: A's first delivery is a ghost, its second one is live."""
    taken(world)
    for heir in (B, A):
        world.age(("default", world.held[0][0].at[1]), 1)
        world.reclaim(heir, "default", 1, scan=True)
        world.check()
    assert [held.times for held, _ in world.held] == [1, 2, 3]
    return world


def given_back(world: World) -> None:
    """What A gives back is B's at once."""
    world.finish(*taken(world).held[0], "released")
    world.check()
    world.reclaim(B, "default", 1, scan=False)
    world.check()


def ghost_fails(world: World) -> None:
    """The end of A's first run comes late; its third run goes on."""
    world.finish(*there_and_back(world).held[0], "again")
    world.check()


def ghost_renews(world: World) -> None:
    """A's first run, which was not told yet that it is lost, is told so at its next renewal."""
    world.renew([there_and_back(world).held[0]])
    world.check()


@pytest.mark.parametrize(
    ("mutant", "story", "broken"),
    [
        (RELEASE_TO_SELF, given_back, "live: pending for"),
        (FENCE_WITHOUT_COUNT, ghost_fails, "again by the ghost answers 1, not 0"),
        (RENEW_WITHOUT_COUNT, ghost_renews, "renew answers as lost"),
    ],
    ids=[mutant.name for mutant in SUBTLE],
)  # fmt: skip
def test_a_subtle_mistake_breaks_a_promise(
    mutant: Mutant, story: Callable[[World], None], broken: str, worlds: Callable[[Texts], World]
) -> None:
    """The same story goes well with the scripts as they are."""
    story(worlds(genuine))
    with pytest.raises(AssertionError, match=broken):
        story(worlds(mutant.text))


@pytest.mark.parametrize("mutant", MUTANTS if profiles.LONG else SUBTLE, ids=lambda mutant: mutant.name)
def test_the_machine_finds_a_mistake(mutant: Mutant, own_server: Server) -> None:
    """Random histories, without a hint: the subtle ones always, all of them in the long profile.

    What a mistake does may depend on the millisecond: then hypothesis has seen it, and not again.
    """

    class Broken(Machine):
        server = own_server
        texts = staticmethod(mutant.text)

    generate = settings(profiles.examples(250), phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises((AssertionError, Flaky)):
        run_state_machine_as_test(Broken, settings=settings(generate, stateful_step_count=50))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_is_one(mutant: Mutant) -> None:
    """The piece that it replaces stands in its script, once."""
    assert mutant.text(mutant.script) != genuine(mutant.script)
