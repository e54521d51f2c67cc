from typing import Any

import pytest

from backstage.errors import ConfigError
from backstage.keys import Keys, check_prefix
from backstage.queue import RESERVED


def test_keys_of_the_wire() -> None:
    """The names that the SDKs of other languages use: docs/protocol.md."""
    keys = Keys("backstage")
    assert keys.stream("default") == "backstage:default"
    assert keys.dead_letter("default") == "backstage:default:dead-letter"
    assert keys.scheduled == "backstage:scheduled"
    assert keys.dedupe("a:b") == "backstage:dedupe:a:b"
    assert keys.broadcast == "backstage:broadcast"


def test_keys_of_our_own() -> None:
    """The first word after the prefix of each is a name that no queue can have."""
    keys = Keys("p")
    own = [keys.retries, keys.cron, keys.workers, keys.worker("w"), keys.stats("emails", 7), keys.call("c")]
    assert own == ["p:retries", "p:cron", "p:workers", "p:workers:w", "p:stats:emails:7", "p:calls:c"]
    shared = [keys.scheduled, keys.broadcast, keys.dedupe("k")]
    assert {key.split(":")[1] for key in own + shared} <= RESERVED


def test_hash_tag() -> None:
    """With a hash-tagged prefix all keys of a keyspace carry the tag, so they live in one slot of a cluster."""
    keys = Keys("{backstage:0}")
    assert all(key.startswith("{backstage:0}:") for key in (keys.stream("a"), keys.retries, keys.call("c")))


@pytest.mark.parametrize("prefix", ["", "a\n", "\0", "x" * 257, None, 5])
def test_bad_prefix(prefix: Any) -> None:
    """An error that names the setting, or the variable that it came from."""
    with pytest.raises(ConfigError, match=r"^prefix="):
        Keys(prefix)
    with pytest.raises(ConfigError, match=r"^BACKSTAGE_PREFIX="):
        check_prefix(prefix, "BACKSTAGE_PREFIX")
