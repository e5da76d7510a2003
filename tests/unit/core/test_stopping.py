"""What a run ends as and why, when it is stopped: by a failure, a cancel, its own limit, one after the other."""

from anabranch.services.orchestrator.core.partition import Partition
from anabranch.services.orchestrator.core.transitions import Ignore
from anabranch.shared.contracts.errors import ErrorType
from anabranch.shared.contracts.messages import RunSettings
from tests.support.builders import (
    RETRIES,
    a_run,
    a_step,
    a_transform,
    cancel_run,
    cancelled,
    failed,
    grace_ends,
    renewed,
    run_timeout,
    started,
    succeeded,
)

GRACE_MS = 10_000
RUN_MS = 900_000


def test_a_failed_step_stops_what_has_not_started_and_cancels_what_runs() -> None:
    """`fail_fast` is the default; the run ends when its workers have answered."""
    run = a_run({"a": a_step(), "b": a_step(), "c": a_step("b")}).takes(failed("a"))
    assert run.cancels == [("b", 1)]
    run.takes(cancelled("b"))
    assert run.statuses == {"a": "failed", "b": "cancelled", "c": "cancelled"}
    assert run.end.status == "failed"
    assert run.end.error is not None
    assert (run.end.error.type, run.end.error.message) == ("Boom", "step a: no luck")


def test_without_fail_fast_what_does_not_need_the_failed_step_goes_on() -> None:
    """Dependents of the failed step are skipped, the rest runs to its end."""
    run = a_run({"a": a_step(), "b": a_step(), "c": a_step("b"), "d": a_step("a")}, fail_fast=False)
    run.takes(failed("a"), succeeded("b"), succeeded("c"))
    assert run.statuses == {"a": "failed", "b": "succeeded", "c": "succeeded", "d": "skipped"}
    assert run.end.status == "failed"


def test_cancel_ends_a_waiting_step_at_once_and_drops_its_timer() -> None:
    """Nobody holds a step that waits for its next attempt: there is no answer to wait for."""
    run = a_run({"a": a_step(retry=RETRIES)}).takes(failed("a"))
    assert run.armed.keys() == {"run-timeout", "retry/a/1"}
    run.takes(cancel_run())
    assert run.statuses == {"a": "cancelled"}
    assert run.end.status == "cancelled"


def test_failure_of_a_step_that_was_told_to_stop_is_not_the_error_of_a_cancelled_run() -> None:
    """A handler that breaks because it is stopped says nothing about why the run ended."""
    run = a_run(("a", "b")).takes(cancel_run(), failed("a"), cancelled("b"))
    assert run.statuses == {"a": "failed", "b": "cancelled"}
    assert (run.end.status, run.end.error) == ("cancelled", None)


def test_failure_before_a_cancel_stays_the_error_of_the_run() -> None:
    """The user who cancels a run that is failing still sees what failed."""
    run = a_run(("a", "b"), fail_fast=False).takes(failed("a"), cancel_run(), cancelled("b"))
    assert run.end.status == "cancelled"
    assert run.end.error is not None
    assert run.end.error.message == "step a: no luck"


def test_cancel_of_a_run_that_stops_by_fail_fast_wins() -> None:
    """The later, wider stop decides the status; steps that were spared are stopped, too."""
    steps = {"a": a_step(), "b": a_step(), "c": a_step("a", if_="failed()")}
    run = a_run(steps).takes(failed("a"))
    assert run.statuses["c"] == "queued"
    run.takes(cancel_run())
    assert run.cancels == [("b", 1), ("c", 1)]
    run.takes(cancelled("b"), cancelled("c"))
    assert run.end.status == "cancelled"


def test_a_run_that_times_out_says_so_even_if_a_step_had_failed_before() -> None:
    """Status and error agree: `timed_out` comes with `RunTimeout`."""
    run = a_run({"a": a_step(), "b": a_step(), "c": a_step("a", if_="failed()")}).takes(failed("a"))
    run.fire("run-timeout")
    run.takes(cancelled("b"), cancelled("c"))
    assert run.end.status == "timed_out"
    assert run.end.error is not None
    assert run.end.error.type == ErrorType.RUN_TIMEOUT
    assert run.end.error.message == "the run took longer than 900 s"


def test_timeout_and_cancel_after_a_cancel_are_ignored() -> None:
    """The first of the two decides; nothing prolongs the grace."""
    run = a_run().takes(cancel_run())
    assert run.armed == {"grace": run.at + GRACE_MS}
    assert run.ignores(run_timeout(), RUN_MS) is Ignore.STALE_TIMER
    assert run.ignores(cancel_run()) is Ignore.ALREADY_STOPPING


def test_grace_ends_the_wait_for_workers_that_do_not_answer() -> None:
    """A run that is stopped ends in bounded time."""
    run = a_run(("a", "b")).takes(started("a"), cancel_run(), cancelled("b"))
    run.fire("grace")
    assert run.statuses == {"a": "cancelled", "b": "cancelled"}
    assert run.end.status == "cancelled"


def test_grace_that_is_over_is_no_timer_of_a_restored_run() -> None:
    """Under `fail_fast` a run may go on behind its grace: the timer does not come back with each restore."""
    steps = {"a": a_step(), "b": a_step(), "c": a_step("a", if_="failed()")}
    run = a_run(steps).takes(failed("a"))
    run.fire("grace")
    assert run.statuses["b"] == "cancelled"
    assert run.run.timers() == run.armed == {"run-timeout": run.run.timeout_at}
    assert run.ignores(grace_ends()) is Ignore.STALE_TIMER


def test_steps_that_ask_for_failures_run_under_fail_fast_with_retries_and_all() -> None:
    """`failed(...)` and `always()` are for cleaning up: a retry of theirs is no less meant."""
    steps = {"a": a_step(), "undo": a_step("a", if_="failed('a')", retry=RETRIES), "after": a_step("undo")}
    run = a_run(steps).takes(failed("a"), failed("undo"))
    assert run.statuses == {"a": "failed", "undo": "waiting", "after": "cancelled"}
    run.fire("retry/undo/1")
    run.takes(succeeded("undo", attempt=2))
    assert run.statuses["undo"] == "succeeded"
    assert run.end.status == "failed"


def test_step_that_always_runs_starts_behind_steps_that_fail_fast_stopped() -> None:
    """`always()` holds whatever became of the needs."""
    steps = {"a": a_step(), "b": a_step("a"), "tidy": a_step("b", if_="always()")}
    run = a_run(steps).takes(failed("a"))
    assert run.statuses == {"a": "failed", "b": "cancelled", "tidy": "queued"}
    run.takes(succeeded("tidy"))
    assert run.end.status == "failed"


def test_success_of_a_step_that_was_told_to_stop_counts() -> None:
    """What succeeded has happened, and is to be compensated one day."""
    run = a_run(("a", "b")).takes(cancel_run(), succeeded("a", 1), cancelled("b"))
    assert run.statuses == {"a": "succeeded", "b": "cancelled"}


def test_a_stopping_step_that_is_renewed_is_still_bounded_by_the_grace() -> None:
    """A worker that does not obey keeps its lease, not the run."""
    run = a_run().takes(started("a"), cancel_run(), renewed("a"))
    run.fire("grace")
    assert run.end.status == "cancelled"


def test_a_step_that_a_worker_stopped_shows_when_it_had_started() -> None:
    """`started_at` is the end less the duration the worker measured, never before `queued_at`."""
    run = a_run().takes(cancel_run())
    run.at += 5_000
    run.takes(cancelled("a", duration_ms=3_000))
    assert run.events[-2].started_at == "2026-02-02T02:40:02.000000Z"
    assert run.events[-2].finished_at == "2026-02-02T02:40:05.000000Z"


def test_a_failure_that_may_be_does_not_stop_the_run() -> None:
    """`continue_on_error`: the step stays failed, its dependents run, the run succeeds."""
    run = a_run({"a": a_step(continue_on_error=True), "b": a_step("a")}).takes(failed("a"), succeeded("b"))
    assert run.statuses == {"a": "failed", "b": "succeeded"}
    assert (run.end.status, run.end.error) == ("succeeded", None)


def test_a_tolerated_failure_meets_succeeded_and_still_is_a_failure() -> None:
    """With `continue_on_error`, `succeeded()` holds behind the failed step, and `failed('a')` does, too."""
    steps = {
        "a": a_step(continue_on_error=True),
        "plain": a_transform(1, "a", if_="1 == 1"),
        "asks": a_transform(1, "a", if_="succeeded()"),
        "sees": a_transform(1, "a", if_="failed('a')"),
        "denies": a_transform(1, "a", if_="!failed()"),
    }
    run = a_run(steps).takes(failed("a"))
    assert run.statuses == {
        "a": "failed", "plain": "succeeded", "asks": "succeeded", "sees": "succeeded", "denies": "skipped",
    }  # fmt: skip


def test_steps_cancelled_while_they_wait_for_the_window_cost_no_later_turn() -> None:
    """Once all are cancelled there is nothing to continue: a restored run, which does not know them, says the same."""
    run = a_run([f"s{i}" for i in range(1000)], settings=RunSettings(window=2)).takes(failed("s0")).go_on()
    assert set(run.statuses.values()) == {"failed", "cancelled", "queued"}
    continues = run.run.continued
    run.takes(renewed("s1"))
    assert run.run.continued == continues
    run.takes(cancelled("s1"))
    assert run.end.status == "failed"


def test_engine_error_ends_even_a_stopping_run_as_failed() -> None:
    """A run on which deciding raises fails with `EngineError`, whatever it was about to end as."""
    run = a_run().takes(cancel_run())
    decision = run.partition.abandon(cancelled("a"), KeyError("x"), run.at)
    run.partition.commit(decision, run.at)
    run.act(decision)
    assert run.end.status == "failed"
    assert run.end.error is not None
    assert run.end.error.type == ErrorType.ENGINE_ERROR
    assert isinstance(run.partition, Partition)
    assert run.is_over
