from datetime import timedelta
from typing import Any

import pytest

from backstage.errors import ConfigError, InvalidName
from backstage.queue import DEFAULT_QUEUES, RESERVED, Priority, Queue, check_name, ordered, queue_name


@pytest.mark.parametrize("name", ["a", "9", "emails", "a.b-c_D", "x" * 128])
def test_good_names(name: str) -> None:
    """Letters, digits, `_ . -`; the first a letter or digit; up to 128."""
    assert check_name(name, "task") == name


@pytest.mark.parametrize(
    "name",
    ["", "-a", ".a", "_a", "a b", "a:b", "{a}", "a*", "a\n", "a\r\n", "a\0", "é", "٣", "😀", "x" * 129, None, 5, b"a"],
)  # fmt: skip
def test_bad_names(name: Any) -> None:
    """Everything else is InvalidName, which says whose name it was and stays short."""
    with pytest.raises(InvalidName, match=r"^task name") as caught:
        check_name(name, "task")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_names(name: str) -> None:
    """No queue can shadow a key of Backstage's own."""
    with pytest.raises(InvalidName, match="key of its own"):
        Queue(name)


def test_priorities_are_plain_strings_too() -> None:
    """The three default queues, in their order."""
    assert [queue.name for queue in DEFAULT_QUEUES] == ["urgent", "default", "low"]
    assert Priority("urgent").value == "urgent"


def test_queue_keeps_milliseconds() -> None:
    """Limits may be given as timedelta; attempts is max_retries + 1."""
    queue = Queue("emails", soft_timeout=timedelta(seconds=1), hard_timeout=2_000, max_retries=0)
    assert (queue.soft_timeout, queue.hard_timeout, queue.attempts) == (1_000, 2_000, 1)
    assert Queue("emails").attempts is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"priority": "1"}, "priority"),
        ({"priority": True}, "priority"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_retries": 1.0}, "max_retries"),
        ({"soft_timeout": 0}, "soft_timeout"),
        ({"soft_timeout": 10, "hard_timeout": 10}, "longer than soft_timeout"),
    ],
)
def test_bad_settings(options: dict[str, Any], says: str) -> None:
    """A setting that can't be right is an error that names the queue and the setting."""
    with pytest.raises(ConfigError, match=f"queue 'emails': .*{says}"):
        Queue("emails", **options)


def test_queues_are_frozen() -> None:
    """A queue is a value."""
    with pytest.raises(AttributeError):
        Queue("emails").name = "other"  # type: ignore[misc]
    assert Queue("emails") == Queue("emails")


def test_order() -> None:
    """The lowest priority number first, negative ones too; those without one last, as given; a name may repeat."""
    given: list[Queue | str] = [
        "emails",
        Queue("b", priority=0),
        "low",
        Queue("a", priority=-1),
        "urgent",
        "audit",
        "emails",
    ]
    assert [queue.name for queue in ordered(given)] == ["a", "b", "urgent", "low", "emails", "audit"]


def test_order_refuses_two_meanings() -> None:
    """One name with two settings is an error."""
    with pytest.raises(ConfigError, match="'emails' is given twice"):
        ordered(["emails", Queue("emails", priority=1)])


def test_queue_name_of_either() -> None:
    """A name or a Queue, checked."""
    assert queue_name("emails") == queue_name(Queue("emails")) == "emails"
    with pytest.raises(InvalidName):
        queue_name("dedupe")
