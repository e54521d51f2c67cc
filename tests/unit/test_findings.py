"""Findings: the rules about a server, on what its INFO says; and that the runbook knows every kind."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from backstage import findings as f
from backstage.findings import Finding, dangers, facts_of, judge, worst

SOUND = {
    "redis_version": "7.0.15",
    "role": "master",
    "maxmemory": "0",
    "maxmemory_policy": "noeviction",
    "aof_enabled": "1",
    "aof_last_write_status": "ok",
    "rdb_last_bgsave_status": "ok",
    "used_memory": "10",
    "used_memory_rss": "10",
    "total_system_memory": "100",
    "connected_clients": "10",
    "maxclients": "100",
}
KEPT = {"save": "3600 1", "appendfsync": "everysec"}


def test_a_sound_server_has_no_findings() -> None:
    """An append-only file, no eviction, room for everything."""
    assert judge(SOUND, KEPT) == []


@pytest.mark.parametrize(
    ("info", "settings", "kind"),
    [
        ({"redis_version": "6.2.14"}, {}, f.OLD),
        ({"redis_version": "7.2.4", "valkey_version": "9.0.0"}, {}, None),
        ({"redis_version": "10.0.0"}, {}, None),
        ({"maxmemory": "50", "maxmemory_policy": "allkeys-lru"}, {}, f.EVICTS),
        ({"maxmemory": "50", "maxmemory_policy": "volatile-ttl"}, {}, f.EVICTS),
        ({"maxmemory_policy": "allkeys-lru"}, {}, f.WOULD_EVICT),
        ({"aof_enabled": "0"}, {}, f.SNAPSHOTS),
        ({"aof_enabled": "0"}, {"save": ""}, f.NOT_KEPT),
        ({}, {"appendfsync": "no"}, f.LAZY_FSYNC),
        ({"aof_last_write_status": "err"}, {}, f.WRITES_FAIL),
        ({"rdb_last_bgsave_status": "err"}, {}, f.WRITES_FAIL),
        ({"rdb_last_bgsave_status": "err"}, {"save": ""}, None),
        ({"maxmemory": "100", "used_memory": "74"}, {}, None),
        ({"maxmemory": "100", "used_memory": "75"}, {}, f.FILLING),
        ({"maxmemory": "100", "used_memory": "90"}, {}, f.FULL),
        ({"used_memory_rss": "80"}, {}, f.FILLING),
        ({"role": "slave", "master_host": "a", "master_port": "1"}, {}, f.REPLICA),
        ({"slave0": "ip=10.0.0.2,port=6379,state=online,offset=1,lag=1"}, {}, None),
        ({"slave0": "ip=10.0.0.2,port=6379,state=online,offset=1,lag=11"}, {}, f.LAGS),
        ({"slave0": "ip=10.0.0.2,port=6379,state=wait_bgsave,offset=0,lag=0"}, {}, f.LAGS),
        ({"connected_clients": "91"}, {}, f.CROWDED),
        ({"connected_clients": "90"}, {}, None),
    ],
)
def test_what_info_says_is_judged(info: dict[str, str], settings: dict[str, str], kind: Finding | None) -> None:
    """One thing out of order is one finding of its kind; its bounds are exact."""
    found = judge(SOUND | info, KEPT | settings)
    assert [(each.title, each.severity) for each in found] == ([(kind.title, kind.severity)] if kind else [])


def test_a_server_that_does_not_tell_about_itself_is_a_notice_and_no_danger() -> None:
    """A user without the right to INFO: nothing is claimed."""
    assert [each.title for each in judge({}, {})] == [f.SILENT.title]
    assert dangers({}) == []


def test_a_worker_is_told_of_dangers_only() -> None:
    """What waits for an operator's leisure is for the doctor."""
    told = dangers(SOUND | {"aof_enabled": "0", "maxmemory": "50", "maxmemory_policy": "allkeys-lru"})
    assert [str(each) for each in told] == [f"{f.EVICTS.title} (maxmemory-policy allkeys-lru)"]


def test_info_is_read_line_by_line() -> None:
    """Sections and broken lines are passed over; values keep their colons."""
    assert facts_of("# Server\r\nredis_version:7.0\r\nexecutable:/a:b\r\n\r\nodd\r\n") == {
        "redis_version": "7.0", "executable": "/a:b"
    }  # fmt: skip


def test_the_worst_severity_counts() -> None:
    """ok < notice < warning < danger; nothing found is ok."""
    assert worst([]) == "ok"
    assert worst([f.DEAD, f.FULL, f.FILLING]) == "danger"
    assert worst([f.DEAD, f.FILLING, Finding("ok", "keys")]) == "warning"


def test_findings_are_values() -> None:
    """Frozen, and equal where they say the same."""
    assert f.DEAD.of(queue="q") == f.DEAD.of(queue="q") != f.DEAD.of(queue="r")
    with pytest.raises(FrozenInstanceError):
        f.DEAD.title = "x"  # type: ignore[misc]


def test_every_kind_is_listed_says_what_it_means_and_what_to_do_and_stands_in_the_runbook() -> None:
    """Whoever reads a title in a log or from the doctor finds it in docs/runbook.md."""
    assert {id(value) for value in vars(f).values() if isinstance(value, Finding)} == {id(kind) for kind in f.KINDS}
    runbook = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text()
    for kind in f.KINDS:
        assert kind.meaning
        assert kind.advice
        assert not kind.facts
        assert f"| {kind.severity} | {kind.title} |" in runbook, kind.title
    assert len({kind.title for kind in f.KINDS}) == len(f.KINDS)
