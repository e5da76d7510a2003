"""A partition: what a record says to each run it concerns, and how long finished runs are remembered."""

import orjson
import pytest

from anabranch.services.orchestrator.core.effects import Append, Channel
from anabranch.services.orchestrator.core.partition import Partition, to_runs
from anabranch.services.orchestrator.core.stored import Head, Stored
from anabranch.services.orchestrator.core.transitions import Ignore
from anabranch.shared.contracts import messages as m
from tests.support.builders import ARun, a_run, a_step, a_submission, cancel_run, renewed, succeeded


def test_renewal_of_many_leases_is_one_message_to_each_run() -> None:
    """A worker renews all its leases of a partition with one record."""
    leases = (m.Lease(run_id="r1", step="a", attempt=1), m.Lease(run_id="r2", step="b", attempt=2, progress=3))
    record = m.LeasesRenewed(worker="w", lease_s=10, leases=leases)
    assert list(to_runs(record)) == [renewed("a", run_id="r1"), renewed("b", 2, progress=3, run_id="r2")]


def test_any_other_record_is_a_message_to_its_run() -> None:
    """As it is."""
    assert list(to_runs(succeeded("a"))) == [succeeded("a")]


def test_finished_runs_are_forgotten_by_broker_time_each_after_its_promise() -> None:
    """Memory follows what is promised: nothing stays behind it."""
    run = ARun()
    for number, keep_s in enumerate((10, 20, 10, 0)):
        run.at += 1_000
        submission = a_submission({"a": a_step()}, run_id=f"r{number}", keep_s=keep_s)
        run.takes(submission, succeeded("a", run_id=f"r{number}"))
    assert run.partition.finished == {10: {"r0": run.at - 3_000, "r2": run.at - 1_000}, 20: {"r1": run.at - 2_000}}
    run.take(cancel_run("nobody"), after_ms=7_000)
    assert run.partition.forget_expired() == ["r0"]
    run.take(cancel_run("nobody"), after_ms=11_000)
    assert run.partition.forget_expired() == ["r2", "r1"]
    assert run.partition.finished == {}


def test_repeat_of_a_start_is_recognised_although_broker_time_steps_back() -> None:
    """The partition's time is the latest it has seen."""
    run = a_run(keep_s=10).takes(succeeded("a"))
    assert run.ignores(a_submission({"a": a_step()}, keep_s=10), -60_000) is Ignore.FINISHED_RUN


def test_quarantine_of_a_run_that_nobody_knows_changes_nothing() -> None:
    """Its start could not even be refused: the record is dead-lettered, that is all."""
    partition = Partition()
    partition.quarantine("nobody")
    assert partition == Partition()


def test_definitions_to_compile_are_named_before_a_message_is_decided() -> None:
    """Of a start, and of restored runs that a message concerns; what is compiled is not named again."""
    unseen = a_submission({"a": a_step(), "only-here": a_step("a")}, run_id="new")
    partition = Partition()
    assert list(partition.definitions_of(unseen)) == [unseen.definition]
    partition.commit(partition.decide(unseen, 1_000), 1_000)
    assert list(partition.definitions_of(unseen)) == []
    assert list(partition.definitions_of(cancel_run("new"))) == []


def test_definitions_of_restored_runs_are_named_when_a_message_concerns_them() -> None:
    """Nothing is compiled for those that nobody speaks of."""
    unseen = a_submission({"b": a_step(), "never-compiled": a_step("b")}, run_id="stored")
    partition = Partition(stored={"stored": Stored(unseen, Head(1, 1_000, 1_000), {})})
    assert list(partition.definitions_of(cancel_run("stored"))) == [unseen.definition]
    assert list(partition.definitions_of(cancel_run("another"))) == []


def test_restored_quarantined_run_is_touched_by_nothing() -> None:
    """Not even compiled."""
    stored = Stored(a_submission({"a": a_step()}), Head(1, 1_000, 1_000, quarantined=True), {})
    partition = Partition(stored={stored.submission.run_id: stored})
    assert partition.decide(succeeded("a"), 2_000).ignored is Ignore.QUARANTINED
    assert partition.runs == {}


def test_how_a_run_was_submitted_is_known_of_active_and_restored_runs() -> None:
    """And of nobody else's."""
    active, restored = a_submission({"a": a_step()}, run_id="active"), a_submission({"a": a_step()}, run_id="restored")
    partition = Partition(stored={"restored": Stored(restored, Head(1, 1_000, 1_000), {})})
    partition.commit(partition.decide(active, 1_000), 1_000)
    assert [partition.submission_of(run_id) for run_id in ("active", "restored", "nobody")] == [active, restored, None]


@pytest.mark.parametrize("sampled", [None, False])
def test_a_command_says_of_its_run_that_nobody_writes_spans_of_it(sampled: bool | None) -> None:
    decision = Partition().decide(a_submission({"a": a_step()}).model_copy(update={"sampled": sampled}), 1_000)
    appends = [effect for effect in decision.effects if isinstance(effect, Append)]
    (command,) = (append.value for append in appends if append.channel is Channel.COMMANDS)
    assert orjson.loads(command).get("sampled") is sampled
