"""The changelog: what stands in it is what the partition is, and nothing else."""

import json
from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch.services.orchestrator.core import changelog
from anabranch.services.orchestrator.core.changelog import (
    Change,
    ChangelogCorrupt,
    Restored,
    restore,
    restoring,
    take_changes,
)
from anabranch.services.orchestrator.core.partition import Partition
from anabranch.services.orchestrator.core.transitions import Ignore
from anabranch.shared.contracts.errors import ErrorType
from anabranch.shared.contracts.messages import RunMessage, RunSettings
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
    fired,
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
    assert taken_over(topic, run.at)[0].partition.stored[RUN].timers() == {}


def test_the_checkpoint_says_offset_time_and_rules() -> None:
    """An upgrade that decides differently can tell under which rules the tail was decided."""
    topic, run = Compacted(), a_run()
    topic.checkpoint(run.partition)
    assert restore(topic.records)[1] == changelog.Checkpoint(1, run.at, changelog.RULES_VERSION)
    assert restore({}) == (Partition(), None)


OTHER = "another-run"


def two_runs() -> tuple[Compacted, ARun]:
    """Return a changelog with the run under test, whose step `b` is queued, and another one."""
    topic, run = Compacted(), a_run({"a": a_step(), "b": a_step("a"), "c": a_step("b")}, keep_s=60)
    run.takes(succeeded("a"), a_submission({"x": a_step()}, run_id=OTHER))
    topic.checkpoint(run.partition)
    return topic, run


def taken_over(topic: Compacted, at: int) -> tuple[ARun, Restored]:
    """Return the partition as another process takes it over: nothing is compiled yet."""
    slices = restoring(topic.records)
    while True:
        try:
            next(slices)
        except StopIteration as done:
            restored: Restored = done.value
            return ARun(partition=restored.partition, at=at), restored


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("/a", b"nonsense"),
        ("/a", b'{"status":"singing"}'),
        ("/b", b"[" * 2000),
        ("/zzz", b'{"attempt":1}'),
        ("/", b"{}"),
        ("/.submission", None),
        ("/.submission", b"{}"),
        ("/.submission", b"\xff"),
        ("/.submission", b'{"run_id":"another-run","tenant":"t","definition":"{}"}'),
        ("/.submission", b'{"run_id":"0192f0c3-0000-7000-8000-000000000001","tenant":"t","definition":"{}"}'),
        ("/.submission", b'{"run_id":"0192f0c3-0000-7000-8000-000000000001","tenant":"t","definition":"\\"}'),
    ],
)
@pytest.mark.parametrize("message", [succeeded("b"), cancel_run(), fired("whatever"), renewed("b"), renewed("q", 7)])
def test_a_run_that_is_not_understood_fails_alone(name: str, value: bytes | None, message: RunMessage) -> None:
    """With the next message to it, as if that were its last event; nothing of it stays, and the others go on."""
    topic, before = two_runs()
    topic.write([(f"{RUN}{name}".encode(), value)])
    run, restored = taken_over(topic, before.at)
    assert restored.buried == []
    run.take(message, after_ms=1)
    assert run.end.type == "RunFailed"
    assert run.end.seq == before.run.seq + 1
    assert run.end.error is not None
    assert run.end.error.type == ErrorType.ENGINE_ERROR
    assert run.ignores(succeeded("b")) is Ignore.UNKNOWN_RUN
    again, _ = taken_over(topic, before.at)  # a crash before the next checkpoint
    again.take(message, after_ms=1)
    assert again.outputs == run.outputs
    topic.checkpoint(run.partition)
    assert topic.keys() - {"R"} == {OTHER, f"{OTHER}/.submission", f"{OTHER}/x"}
    assert run.take(succeeded("x", run_id=OTHER)).ended
    topic.checkpoint(run.partition)
    assert topic.keys() - {"R"} == set()


def test_a_definition_that_this_version_does_not_accept_fails_its_runs_alone() -> None:
    """The gateway of another version took it, or another CEL library."""
    topic, before = two_runs()
    key = f"{RUN}/.submission".encode()
    topic.records[key] = topic.records[key].replace(b"simulate", b"SIMULATE!")
    run, _ = taken_over(topic, before.at)
    assert set(run.partition.stored) == {RUN, OTHER}
    run.take(succeeded("b"))
    assert run.end.error is not None
    assert run.end.error.message == (
        "the run cannot be taken over: its definition is not understood (DefinitionRefused)"
    )
    assert run.ignores(a_submission({"a": a_step()}, keep_s=60)) is Ignore.FINISHED_RUN


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (RUN.encode(), b"{}"),
        (RUN.encode(), b'{"seq":-1,"at":0,"started_at":0}'),
        (RUN.encode(), b'{"seq":1,"at":1e300,"started_at":0}'),
        (RUN.encode(), None),
        (b"\xff", b"x"),
        (b"\xff", b'{"seq":1,"at":1,"started_at":0}'),
        (b"\xff/\xff", b"{}"),
        (b"", b""),
        (b"/", b""),
        (b"no id!", b'{"seq":1,"at":1,"started_at":0}'),
        (b"orphan/a", b'{"attempt":1}'),
    ],
)
def test_what_stands_for_nothing_is_buried(key: bytes, value: bytes | None) -> None:
    """With every record of its run, since without a head nobody knows the number of the run's next event."""
    topic, before = two_runs()
    topic.write([(key, value)])
    run, restored = taken_over(topic, before.at)
    assert {each.key for each in restored.buried} == {
        each for each in topic.records if each.split(b"/")[0] == key.split(b"/")[0] and each != b"_checkpoint"
    }
    assert all(topic.records[each.key] == each.value for each in restored.buried)
    topic.checkpoint(run.partition)
    assert not {each.key for each in restored.buried} & topic.records.keys()
    assert taken_over(topic, before.at)[1].buried == []
    assert run.take(succeeded("x", run_id=OTHER)).ended


def test_an_ended_run_of_an_odd_key_is_forgotten_in_its_time() -> None:
    """A promise is a promise, whatever it was made to."""
    topic, before = two_runs()
    topic.write([(b"\xff", b'{"finished_at":1,"keep_s":1}')])
    run, restored = taken_over(topic, before.at)
    assert restored.buried == []
    topic.checkpoint(run.partition)
    assert b"\xff" not in topic.records


def test_a_run_that_begins_under_the_id_of_a_buried_one_is_kept() -> None:
    """What is left of the buried one is deleted first."""
    topic, before = two_runs()
    topic.write([(RUN.encode(), b"{}")])
    run, _ = taken_over(topic, before.at)
    run.takes(a_submission({"y": a_step()}))
    topic.checkpoint(run.partition)
    assert topic.keys() - {OTHER, f"{OTHER}/.submission", f"{OTHER}/x"} == {"R", "R/.submission", "R/y"}


def test_a_checkpoint_that_cannot_be_read_stops_the_restore() -> None:
    """Nobody knows then which record is to be decided next."""
    topic, _ = two_runs()
    for value in (b"[]", b"", b"{", b'{"offset":"x"}'):
        topic.records[b"_checkpoint"] = value
        with pytest.raises(ChangelogCorrupt, match="_checkpoint"):
            restore(topic.records)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
VALUES = st.binary(max_size=20) | JSON.map(lambda value: json.dumps(value).encode())


def _with_a_field_changed(record: bytes, name: str, value: object) -> bytes:
    return json.dumps({**json.loads(record), name: value}).encode()


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_stands_in_the_changelog_the_other_runs_go_on(data: st.DataObject) -> None:
    """Garbage in any record but the checkpoint: restored, decided, checkpointed and restored again without a raise."""
    topic, before = two_runs()
    key = data.draw(st.sampled_from(sorted(each for each in topic.records if each.startswith(RUN.encode()))))
    if data.draw(st.booleans()):
        topic.records[key] = data.draw(VALUES)
    else:
        names = st.sampled_from(sorted(json.loads(topic.records[key])))
        topic.records[key] = _with_a_field_changed(topic.records[key], data.draw(names), data.draw(JSON))
    topic.records[data.draw(st.binary(max_size=4))] = data.draw(VALUES)
    for _ in range(2):
        run, restored = taken_over(topic, before.at)
        for stored in restored.partition.stored.values():
            assert all(isinstance(due, int) for due in stored.timers().values())
        for message in (fired("whatever"), succeeded("b"), cancel_run()):
            try:
                run.take(message, after_ms=1)
            except Exception as error:  # noqa: BLE001  # what the partition task does
                try:
                    decision = run.partition.abandon(message, error, run.at)
                    run.partition.commit(decision, run.at)
                except Exception:  # noqa: BLE001  # the same
                    run.partition.quarantine(RUN)
        topic.checkpoint(run.partition)
    assert run.take(succeeded("x", run_id=OTHER)).ended


def test_a_restore_yields_after_every_record_and_compiles_nothing() -> None:
    """So it never holds up whoever does it, and what is due is known without the definition."""
    topic, run = Compacted(), a_run(timeout="7s")
    for number in range(300):
        run.takes(a_submission({f"s{number}": a_step(), "b": a_step()}, run_id=f"r{number}", timeout=number + 1))
    run.takes(started("a"), cancel_run())
    topic.checkpoint(run.partition)
    assert sum(1 for _ in restoring(topic.records)) >= 900
    again, restored = taken_over(topic, run.at)
    assert again.partition.runs == {}
    assert {run_id: stored.timers() for run_id, stored in restored.partition.stored.items()} == {
        run_id: each.timers() for run_id, each in run.partition.runs.items()
    }
    again.partition.awaken_all()
    assert again.partition.runs.keys() == run.partition.runs.keys()
