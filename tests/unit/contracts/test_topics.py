"""The topic table."""

import pytest

from anabranch.shared.contracts.limits import MAX_MESSAGE_BYTES, MAX_RECORD_BYTES, MAX_WAIT_S
from anabranch.shared.contracts.topics import CONTROL, INBOX, STATE, STEPS, TOPICS, Cleanup, Partitions, TopicNames


def test_inbox_carries_broker_time() -> None:
    """Time is what the log says, not what a host says."""
    assert INBOX.settings()["message.timestamp.type"] == "LogAppendTime"


def test_changelog_is_compacted_and_has_as_many_partitions_as_the_inbox() -> None:
    """A run's state stands in the partition of its number."""
    assert STATE.settings()["cleanup.policy"] == "compact"
    assert STATE.partitions is INBOX.partitions is Partitions.RUNS


@pytest.mark.parametrize(
    "topic", [topic for topic in TOPICS if topic not in (CONTROL,)], ids=lambda topic: topic.suffix
)
def test_topic_keeps_its_records_longer_than_the_longest_wait(topic: object) -> None:
    """A run that waits must not lose its records; a compacted topic keeps the latest for ever."""
    settings = topic.settings()  # type: ignore[attr-defined]
    if settings["cleanup.policy"] == Cleanup.COMPACT:
        assert "retention.ms" not in settings
    else:
        assert int(settings["retention.ms"]) > MAX_WAIT_S * 1000
    assert int(settings["max.message.bytes"]) == MAX_RECORD_BYTES > MAX_MESSAGE_BYTES * 4 / 3


def test_names_follow_the_prefix() -> None:
    """One prefix per installation."""
    names = TopicNames(prefix="x")
    assert [names.inbox, names.state, names.run_events, names.control, names.steps("http")] == [
        "x.inbox", "x.state", "x.run-events", "x.control", "x.steps.http",
    ]  # fmt: skip
    assert (names.definitions, names.step_types, names.dead_letters) == (
        "x.definitions", "x.step-types", "x.dead-letters",
    )  # fmt: skip


def test_partition_counts_are_those_of_runs_of_steps_or_one() -> None:
    """P, S and 1 of the table."""
    assert [topic.partition_count(runs=12, steps=6) for topic in (INBOX, STEPS, CONTROL)] == [12, 6, 1]
