from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest

from backstage.cron import CronTask
from backstage.errors import ConfigError, InvalidCronSchedule, InvalidName
from backstage.queue import Queue


class Route(NamedTuple):
    """What a Task shows of itself."""

    name: str
    queue: str | None


def slots(schedule: str, zone: str, day: str, until: str = "04:00") -> list[str]:
    """The slots of one day, from midnight on, as local times with their offsets."""
    start = datetime.fromisoformat(f"{day}T00:00").replace(tzinfo=ZoneInfo(zone))
    end = datetime.fromisoformat(f"{day}T{until}").replace(tzinfo=ZoneInfo(zone))
    found = CronTask(schedule, "t", timezone=zone).slots(start - timedelta(seconds=1), end)
    return [run.strftime("%H:%M%z")[:8] for run in found]


BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"


@pytest.mark.parametrize(
    ("schedule", "zone", "day", "expected"),
    [
        # A gap: what it skips runs right after it, once.
        ("30 2 * * *", BERLIN, "2026-03-29", ["03:00+02"]),
        ("0 2 * * *", BERLIN, "2026-03-29", ["03:00+02"]),
        ("0,30 2 * * *", BERLIN, "2026-03-29", ["03:00+02"]),
        ("30 1 * * *", BERLIN, "2026-03-29", ["01:30+01"]),
        ("30 2 * * *", NEW_YORK, "2026-03-08", ["03:00-04"]),
        # Hourly and more often: by elapsed time, nothing is made up for.
        ("0 * * * *", BERLIN, "2026-03-29", ["00:00+01", "01:00+01", "03:00+02", "04:00+02"]),
        ("*/30 1-3 * * *", BERLIN, "2026-03-29", ["01:00+01", "01:30+01", "03:00+02", "03:30+02"]),
        ("0 * * * *", NEW_YORK, "2026-03-08", ["00:00-05", "01:00-05", "03:00-04", "04:00-04"]),
        # An overlap: fixed hours once, at the first of the two.
        ("30 2 * * *", BERLIN, "2026-10-25", ["02:30+02"]),
        ("15,45 2 * * *", BERLIN, "2026-10-25", ["02:15+02", "02:45+02"]),
        ("30 1 * * *", NEW_YORK, "2026-11-01", ["01:30-04"]),
        ("30 2 * * *", NEW_YORK, "2026-11-01", ["02:30-05"]),
        # Hourly and more often: in both.
        ("0 * * * *", BERLIN, "2026-10-25", ["00:00+02", "01:00+02", "02:00+02", "02:00+01", "03:00+01", "04:00+01"]),
        ("*/30 2 * * *", BERLIN, "2026-10-25", ["02:00+02", "02:30+02", "02:00+01", "02:30+01"]),
        ("*/30 1 * * *", NEW_YORK, "2026-11-01", ["01:00-04", "01:30-04", "01:00-05", "01:30-05"]),
    ],
)
def test_clock_changes(schedule: str, zone: str, day: str, expected: list[str]) -> None:
    """Debian's rule: a gap runs right after it, an overlap runs once for fixed hours."""
    assert slots(schedule, zone, day) == expected


@pytest.mark.parametrize("zone", [BERLIN, NEW_YORK, "Africa/Cairo", "America/Havana", "Australia/Lord_Howe", "UTC"])
@pytest.mark.parametrize("schedule", ["30 2 * * *", "0 0 * * *", "*/30 0,1 * * 5", "0 */2 * * *", "0 * * * 5"])
def test_slots_depend_on_the_schedule_alone(schedule: str, zone: str) -> None:
    """Wherever a search starts it finds the same slots: two schedulers never disagree, clock changes included.

    Days far from a clock change are alike; the first of each month stands for them.
    """
    task = CronTask(schedule, "t", timezone=zone)
    found = [
        run.astimezone(UTC) for run in task.slots(datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    ]
    assert found == sorted(set(found))
    for one, following in pairwise(found):
        before, after = ((one + timedelta(days=days)).astimezone(ZoneInfo(zone)) for days in (-8, 8))
        if before.utcoffset() == after.utcoffset() and one.day != 1:
            continue
        for start in (one, one + (following - one) / 2, following - timedelta(seconds=1)):
            assert task.next_run(start).astimezone(UTC) == following


@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        ("* * * * *", "2026-01-01T00:00", "2026-01-01T00:01"),
        ("* * * * *", "2026-01-01T00:00:59.999999", "2026-01-01T00:01"),
        ("0 0 29 2 *", "2026-01-01T00:00", "2028-02-29T00:00"),
        ("0 0 29 2 *", "2096-03-01T00:00", "2104-02-29T00:00"),
        ("0 0 * * 7", "2026-01-01T00:00", "2026-01-04T00:00"),
        ("0 0 * * 0", "2026-01-01T00:00", "2026-01-04T00:00"),
        ("0 0 * * sun", "2026-01-01T00:00", "2026-01-04T00:00"),
        ("0 0 * * 5-7", "2026-01-03T00:00", "2026-01-04T00:00"),
        ("0 0 * * MON-fri", "2026-01-02T00:00", "2026-01-05T00:00"),
        ("0 0 1 jan,JUL *", "2026-01-01T00:00", "2026-07-01T00:00"),
        ("0 0 13 * FRI", "2026-01-01T00:00", "2026-01-02T00:00"),  # either: the first Friday
        ("0 0 13 * FRI", "2026-01-09T00:00", "2026-01-13T00:00"),  # … or the 13th, a Tuesday
        ("0 0 */2 * FRI", "2026-01-02T00:00", "2026-01-09T00:00"),  # a star in one: both
        ("0 0 L * *", "2026-02-01T00:00", "2026-02-28T00:00"),
        ("0 0 * * FRI#2", "2026-01-01T00:00", "2026-01-09T00:00"),
        ("0 0 * * 5L", "2026-01-01T00:00", "2026-01-30T00:00"),
        ("5/20 * * * *", "2026-01-01T00:05", "2026-01-01T00:25"),
        ("  0   12 * *  * ", "2026-01-01T00:00", "2026-01-01T12:00"),
        ("@hourly", "2026-01-01T00:00", "2026-01-01T01:00"),
        ("@daily", "2026-01-01T00:00", "2026-01-02T00:00"),
        ("@Midnight", "2026-01-01T00:00", "2026-01-02T00:00"),
        ("@weekly", "2026-01-01T00:00", "2026-01-04T00:00"),
        ("@monthly", "2026-01-01T00:00", "2026-02-01T00:00"),
        ("@yearly", "2026-01-01T00:00", "2027-01-01T00:00"),
        ("@annually", "2026-01-01T00:00", "2027-01-01T00:00"),
    ],
)
def test_next_run(schedule: str, after: str, expected: str) -> None:
    """The first instant strictly later."""
    run = CronTask(schedule, "t").next_run(datetime.fromisoformat(after).replace(tzinfo=UTC))
    assert run == datetime.fromisoformat(expected).replace(tzinfo=UTC)


def test_next_run_is_in_the_time_zone_of_the_task() -> None:
    """Whatever zone `after` came in."""
    run = CronTask("0 12 * * *", "t", timezone=BERLIN).next_run(datetime(2026, 7, 1, 3, tzinfo=ZoneInfo("Asia/Tokyo")))
    assert run.isoformat() == "2026-07-01T12:00:00+02:00"
    assert run.tzinfo == ZoneInfo(BERLIN)


def test_slots_are_after_the_start_and_up_to_the_end() -> None:
    """The start is excluded, the end included; none is an empty answer."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    task = CronTask("*/20 * * * *", "t")
    assert [run.minute for run in task.slots(start, start + timedelta(minutes=40))] == [20, 40]
    assert list(task.slots(start, start)) == []
    assert list(task.slots(start, start - timedelta(days=1))) == []


@pytest.mark.parametrize("instant", [datetime(2026, 1, 1), None, 5])
def test_instants_must_be_aware(instant: Any) -> None:
    """A datetime without a zone is refused, by name."""
    task = CronTask("* * * * *", "t")
    with pytest.raises(ConfigError, match=r"^after="):
        task.next_run(instant)
    with pytest.raises(ConfigError, match=r"^until="):
        list(task.slots(datetime(2026, 1, 1, tzinfo=UTC), instant))


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ("", "has 0 fields"),
        ("* * * *", "has 4 fields, must have five"),
        ("0 0 0 * * *", "six|seconds are not supported"),
        ("@reboot", "only @hourly"),
        ("60 * * * *", "minute '60'.*0-59"),
        ("* 24 * * *", "hour '24'.*0-23"),
        ("* * 0 * *", "day of month '0'.*1-31"),
        ("* * 32 * *", "day of month '32'"),
        ("* * * 13 *", "month '13'.*JAN-DEC"),
        ("* * * FOO *", "month 'FOO'"),
        ("* * * * 8", "day of week '8'.*0-7"),
        ("* * * * FRI-SUN", "day of week.*from the lower to the higher"),
        ("*/0 * * * *", r"minute '\*/0'"),
        ("*/90 * * * *", r"minute '\*/90'.*step above 60"),
        ("1,,2 * * * *", "minute '1,,2'"),
        ("½ * * * *", "minute"),
        ("-1 * * * *", "minute '-1'"),
        ("0 0 30 2 *", "never matches"),
        ("0 0 31 4,6,9,11 *", "never matches"),
        ("* " * 600, "must be a cron expression"),
        (None, "None: must be a cron expression"),
    ],
)
def test_bad_expressions(schedule: Any, says: str) -> None:
    """Refused at construction, with the expression quoted, the field named, and what is allowed."""
    with pytest.raises(InvalidCronSchedule, match=says) as caught:
        CronTask(schedule, "t")
    assert repr(schedule)[:70] in str(caught.value)


@pytest.mark.parametrize("zone", ["Mars/Base", "", "../../etc/passwd", "Europe", "\0", None, 5])
def test_bad_time_zones(zone: Any) -> None:
    """An unknown time zone is named."""
    with pytest.raises(InvalidCronSchedule, match=r"^time zone ") as caught:
        CronTask("* * * * *", "t", timezone=zone)
    assert repr(zone) in str(caught.value)


def test_values() -> None:
    """It takes a name or a Task, and a queue either way; the name defaults to the task's; it is frozen and hashable."""
    task = CronTask("@daily", Route("report", "reports"), args={"a": 1})
    assert (task.task, task.queue, task.name, task.args, task.catch_up) == (
        "report",
        "reports",
        "report",
        {"a": 1},
        "last",
    )
    assert CronTask("@daily", Route("report", "reports"), Queue("other")).queue == "other"
    assert CronTask("@daily", "report").queue is None
    assert CronTask("@daily", "report", name="nightly").name == "nightly"
    assert task == CronTask("@daily", "report", "reports", {"a": 1})
    assert len({task, CronTask("@daily", "report", "reports", {"a": 1})}) == 1
    with pytest.raises(AttributeError):
        task.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"task": 5}, ConfigError),
        ({"task": "a b"}, InvalidName),
        ({"name": "a b"}, InvalidName),
        ({"queue": "cron"}, InvalidName),
        ({"catch_up": "some"}, ConfigError),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception]) -> None:
    """The rest is checked at construction too."""
    with pytest.raises(error):
        CronTask("* * * * *", **{"task": "t", **options})
