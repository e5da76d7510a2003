"""The changelog: what stands in it is what the partition is, and nothing else."""

from collections.abc import Iterable

import pytest

from anabranch.services.orchestrator.core import changelog
from anabranch.services.orchestrator.core.changelog import Change, ChangelogCorrupt, restore, take_changes
from anabranch.services.orchestrator.core.partition import Partition
from anabranch.services.orchestrator.core.transitions import Ignore
from anabranch.shared.contracts.messages import RunSettings
from tests.support.builders import (
    RETRIES,
    RUN,
    ARun,
    a_run,
    a_step,
    a_submission,
    a_transform,
    cancel_run,
    cancelled,
    failed,
    renewed,
    started,
    succeeded,
)


class Compacted:
    """What a compacted topic holds after some checkpoints."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.offset = 0

    def checkpoint(self, partition: Partition) -> list[Change]:
        self.offset += 1
        changes = take_changes(partition, self.offset)
        self.write(changes)
        return changes

    def write(self, changes: Iterable[Change]) -> None:
        for key, value in changes:
            self.records.pop(key, None)
            if value is not None:
                self.records[key] = value

    def keys(self) -> set[str]:
        return {key.decode().replace(RUN, "R") for key in self.records} - {"_checkpoint"}

    def restored(self, run: ARun) -> ARun:
        partition, _ = restore(self.records)
        return ARun(partition=partition, at=run.at, armed=partition.runs[RUN].timers() if partition.runs else {})


def test_a_change_costs_a_record_for_the_step_and_one_for_its_run() -> None:
    """The submission is written once, untouched steps never."""
    topic, run = Compacted(), a_run({"a": a_step(), "b": a_step("a"), "c": a_step("b")})
    topic.checkpoint(run.partition)
    assert topic.keys() == {"R", "R/.submission", "R/a"}
    run.takes(succeeded("a"))
    assert [key.decode().replace(RUN, "R") for key, _ in topic.checkpoint(run.partition)] == [
        "R", "R/a", "R/b", "_checkpoint",
    ]  # fmt: skip


def test_nothing_of_an_ended_run_is_left() -> None:
    """Tombstones for its head, its submission and every step that was ever written."""
    topic, run = Compacted(), a_run({"a": a_step(), "b": a_step("a")})
    topic.checkpoint(run.partition)
    run.takes(succeeded("a"))
    topic.checkpoint(run.partition)
    run.takes(succeeded("b"))
    topic.checkpoint(run.partition)
    assert topic.keys() == set()
    assert run.partition == Partition(at=run.at)


def test_a_run_that_begins_and_ends_between_two_checkpoints_costs_no_record() -> None:
    """Only the checkpoint itself is written."""
    topic, run = Compacted(), a_run().takes(succeeded("a"))
    assert [key for key, _ in topic.checkpoint(run.partition)] == [changelog.CHECKPOINT_KEY]


def test_an_ended_run_whose_key_is_promised_leaves_that_it_finished() -> None:
    """A repeat of its start is recognised, restored or not, until the promise is over; then that goes, too."""
    topic, run = Compacted(), a_run(keep_s=60)
    topic.checkpoint(run.partition)
    run.takes(succeeded("a"))
    topic.checkpoint(run.partition)
    assert topic.keys() == {"R"}
    for each in (run, topic.restored(run)):
        assert each.ignores(a_submission({"a": a_step()}, keep_s=60), 59_999) is Ignore.FINISHED_RUN
    run.take(cancel_run("another"), after_ms=1)
    topic.checkpoint(run.partition)
    assert topic.keys() == set()
    assert run.partition.finished == {}


def test_a_run_that_begins_again_when_its_promise_is_over_is_not_deleted_with_the_promise() -> None:
    """The tombstone of the expired promise does not hit the head of the new run of the same id."""
    topic, run = Compacted(), a_run(keep_s=60).takes(succeeded("a"))
    topic.checkpoint(run.partition)
    run.at += 60_000
    run.takes(a_submission({"a": a_step()}, keep_s=60))
    topic.checkpoint(run.partition)
    assert topic.keys() == {"R", "R/.submission", "R/a"}
    assert topic.restored(run).step("a").status == "queued"


def test_a_promise_of_an_earlier_run_does_not_outlive_the_later_one() -> None:
    """What the later run does not promise is forgotten with its end."""
    topic, run = Compacted(), a_run(keep_s=60).takes(succeeded("a"))
    topic.checkpoint(run.partition)
    run.at += 60_000
    run.takes(a_submission({"a": a_step()}), succeeded("a"))
    topic.checkpoint(run.partition)
    assert topic.keys() == set()


def test_a_run_that_begins_again_before_the_next_checkpoint_inherits_nothing() -> None:
    """Neither the submission nor a step of the run that had its id before."""
    topic, run = Compacted(), a_run({"a": a_step(), "b": a_step("a")})
    run.takes(succeeded("a"))
    topic.checkpoint(run.partition)
    run.takes(succeeded("b"), a_submission({"x": a_step(), "b": a_step("x")}))
    topic.checkpoint(run.partition)
    assert topic.keys() == {"R", "R/.submission", "R/x"}
    again = topic.restored(run)
    assert [step.status for step in again.run.steps] == ["queued", "pending"]


def test_settings_that_were_stamped_stay_when_a_later_version_has_other_defaults() -> None:
    """The changelog holds every setting, also those that equal today's default."""
    topic, run = Compacted(), a_run()
    topic.checkpoint(run.partition)
    submission = topic.records[f"{RUN}/.submission".encode()].decode()
    assert all(f'"{name}":' in submission for name in RunSettings.model_fields)


def test_a_run_is_restored_whole() -> None:
    """Attempts, losses, leases, doubts, errors, outputs, the stop: the restored partition equals the one that was."""
    steps = {
        "a": a_step(retry=RETRIES), "b": a_step(continue_on_error=True), "c": a_step(), "d": a_step("a", "b", "c"),
        "e": a_transform({"deep": [1, None, 1.5]}), "f": a_step(), "g": a_step("f", if_="failed()"),
    }  # fmt: skip
    run = a_run(steps, inputs={"x": [None, {"y": 1}]}, outputs={"o": 1})
    run.takes(failed("a", details={"k": None}), failed("b"), started("c"), renewed("c", progress={"done": 1}))
    run.fire("lease/c/1")
    run.takes(failed("f"))
    topic = Compacted()
    topic.checkpoint(run.partition)
    restored = topic.restored(run)
    restored.run.swept = run.run.swept  # how far the sweep had come is found again
    assert restored.partition == run.partition
    assert restored.armed == run.armed


def test_a_run_that_is_stopping_goes_on_stopping_when_it_is_restored() -> None:
    """The sweep goes on where it was, the grace is armed again."""
    run = a_run([f"s{i}" for i in range(600)], settings=RunSettings(window=3)).takes(cancel_run())
    topic = Compacted()
    topic.checkpoint(run.partition)
    again = topic.restored(run)
    assert again.armed == {"grace": run.at + 10_000}
    again.takes(*run.to_itself).go_on()
    again.takes(cancelled("s0"), cancelled("s1"), cancelled("s2"))
    assert again.end.status == "cancelled"
    assert again.end.seq == 1 + 600 + 1


def test_a_quarantined_run_stays_quarantined() -> None:
    """Nothing touches it any more, restored or not."""
    run = a_run()
    run.partition.quarantine(RUN)
    topic = Compacted()
    topic.checkpoint(run.partition)
    again = topic.restored(run)
    for each in (run, again):
        for message in (succeeded("a"), cancel_run(), a_submission({"a": a_step()}), renewed("a")):
            assert each.ignores(message) is Ignore.QUARANTINED
        assert each.last is not None
        assert each.last.effects == ()


def test_the_checkpoint_says_offset_time_and_rules() -> None:
    """An upgrade that decides differently can tell under which rules the tail was decided."""
    topic, run = Compacted(), a_run()
    topic.checkpoint(run.partition)
    assert restore(topic.records)[1] == changelog.Checkpoint(1, run.at, changelog.RULES_VERSION)
    assert restore({}) == (Partition(), None)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("R", b"{}", "cannot be read"),
        ("R/a", b"nonsense", "cannot be read"),
        ("_checkpoint", b"[]", "cannot be read"),
        ("R/zzz", b'{"attempt":1}', "cannot be restored"),
        ("R/.submission", None, "has no submission"),
    ],
)
def test_a_record_that_cannot_be_read_stops_the_restore_and_says_which(key: str, value: bytes, words: str) -> None:
    """Going on without it would decide differently."""
    topic, run = Compacted(), a_run()
    topic.checkpoint(run.partition)
    topic.write([(key.replace("R", RUN, 1).encode() if key[0] == "R" else key.encode(), value)])
    with pytest.raises(ChangelogCorrupt, match=words):
        restore(topic.records)


def test_a_definition_that_this_version_does_not_understand_stops_the_restore() -> None:
    """The run belongs to a version that does."""
    topic, run = Compacted(), a_run()
    topic.checkpoint(run.partition)
    key = f"{RUN}/.submission".encode()
    topic.records[key] = topic.records[key].replace(b"simulate", b"SIMULATE!")
    with pytest.raises(ChangelogCorrupt, match="not understood"):
        restore(topic.records)
