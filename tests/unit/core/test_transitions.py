"""Every (step status, fact) pair of the table, and every message to a run in every state."""

from collections.abc import Callable
from pathlib import Path

import pytest

from anabranch.services.orchestrator.core.changelog import restore, take_changes
from anabranch.services.orchestrator.core.effects import Append, Channel
from anabranch.services.orchestrator.core.status import TERMINAL, StepStatus
from anabranch.services.orchestrator.core.transitions import TABLE, Fact, Ignore
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.messages import RunSettings
from tests.support.builders import (
    RETRIES,
    RUN,
    ARun,
    a_run,
    a_step,
    a_submission,
    cancel_run,
    cancelled,
    continued,
    failed,
    fired,
    gave_back,
    lease_due,
    refused,
    renewed,
    retry_due,
    run_timeout,
    send_due,
    started,
    succeeded,
    timed_out,
)

S = StepStatus

# `a` is the step that a test speaks of; `z` keeps the run open.
_STEPS = {"a": a_step("b", retry={**RETRIES, "max_attempts": 2}), "b": a_step(), "z": a_step()}


def _begun(**settings: object) -> ARun:
    return a_run(_STEPS, fail_fast=False, settings=RunSettings(max_losses=2, **settings))  # type: ignore[arg-type]


def a_run_whose_step_is(status: StepStatus) -> ARun:
    """Return a run whose step `a` got to this status."""
    run = _begun()
    match status:
        case S.PENDING:
            return run
        case S.SKIPPED:
            return run.takes(failed("b"))
        case S.CANCELLED:
            return run.takes(succeeded("b"), cancel_run(), cancelled("a"))
    run.takes(succeeded("b"))
    return run.takes(
        *{
            S.QUEUED: (),
            S.RUNNING: (started("a"),),
            S.WAITING: (failed("a"),),
            S.SUCCEEDED: (succeeded("a"),),
            S.FAILED: (failed("a", terminal=True),),
            S.TIMED_OUT: (m.AttemptFailed(**timed_out("a").model_dump() | {"terminal": True}),),
        }[status]
    )


MESSAGES: dict[Fact, Callable[[int], m.RunMessage]] = {
    Fact.STARTED: lambda attempt: started("a", attempt),
    Fact.RENEWED: lambda attempt: renewed("a", attempt, progress=1),
    Fact.SUCCEEDED: lambda attempt: succeeded("a", attempt=attempt),
    Fact.FAILED: lambda attempt: failed("a", attempt=attempt),
    Fact.CANCELLED: lambda attempt: cancelled("a", attempt),
    Fact.REFUSED: lambda attempt: refused("a", attempt),
    Fact.RETRY_DUE: lambda attempt: retry_due("a", attempt),
    Fact.SEND_DUE: lambda attempt: send_due("a", attempt),
    Fact.LEASE_DUE: lambda attempt: lease_due("a", attempt),
}

PAIRS = [(status, fact) for status in StepStatus for fact in Fact]


def test_the_table_has_every_pair() -> None:
    """No step status is without a row, no row without a fact."""
    assert [(status, fact) for status, row in TABLE.items() for fact in row] == PAIRS


@pytest.mark.parametrize(("status", "fact"), PAIRS)
def test_pair_ends_where_the_table_says_or_changes_nothing(status: StepStatus, fact: Fact) -> None:
    """An applied pair ends in an allowed status; an ignored one leaves the run as it was and says why."""
    run = a_run_whose_step_is(status)
    assert run.step("a").status is status
    if (status, fact) == (S.QUEUED, Fact.SEND_DUE):
        run.takes(refused("a"))
    before, counters = repr(run.run), run.run.seq
    run.at += 3_600_000 if fact in (Fact.RETRY_DUE, Fact.SEND_DUE, Fact.LEASE_DUE) else 0
    decision = run.take(MESSAGES[fact](run.step("a").attempt))
    row = TABLE[status][fact]
    if isinstance(row, Ignore):
        assert decision.ignored is row
        assert repr(run.run) == before
        assert run.run.seq == counters
        assert _told_to_stop(decision.effects) == (fact is Fact.RENEWED and status in TERMINAL)
    else:
        assert decision.ignored is None
        assert run.step("a").status in row


def _told_to_stop(effects: tuple[object, ...]) -> bool:
    assert all(isinstance(effect, Append) and effect.channel is Channel.CONTROL for effect in effects)
    return bool(effects)


OUTCOMES: list[tuple[StepStatus, list[m.RunMessage], StepStatus]] = [
    (S.QUEUED, [started("a")], S.RUNNING),
    (S.QUEUED, [renewed("a")], S.RUNNING),  # its start was in another record, or lost with the producer
    (S.QUEUED, [gave_back("a")], S.QUEUED),
    (S.QUEUED, [cancel_run(), gave_back("a")], S.CANCELLED),
    (S.QUEUED, [succeeded("a")], S.SUCCEEDED),
    (S.QUEUED, [failed("a")], S.WAITING),
    (S.QUEUED, [failed("a", terminal=True)], S.FAILED),
    (S.QUEUED, [timed_out("a")], S.WAITING),
    (S.QUEUED, [cancelled("a")], S.QUEUED),  # nobody had asked for it: the attempt is lost
    (S.QUEUED, [cancel_run(), cancelled("a")], S.CANCELLED),
    (S.QUEUED, [cancelled("a"), cancelled("a", 2)], S.FAILED),  # two losses are allowed here
    (S.QUEUED, [refused("a")], S.QUEUED),
    (S.QUEUED, [refused("a"), succeeded("a")], S.SUCCEEDED),  # the refusal was wrong
    (S.QUEUED, [refused("a"), started("a"), failed("a")], S.WAITING),
    (S.QUEUED, [refused("a", too_large=True)], S.FAILED),
    (S.QUEUED, [refused("a"), cancel_run()], S.CANCELLED),  # nobody is waited for
    (S.QUEUED, [cancel_run(), refused("a")], S.CANCELLED),
    (S.RUNNING, [renewed("a")], S.RUNNING),
    (S.RUNNING, [gave_back("a")], S.QUEUED),
    (S.RUNNING, [gave_back("a"), gave_back("a", 2), gave_back("a", 3)], S.QUEUED),  # no loss, no try
    (S.RUNNING, [cancel_run(), gave_back("a")], S.CANCELLED),
    (S.RUNNING, [succeeded("a")], S.SUCCEEDED),
    (S.RUNNING, [failed("a")], S.WAITING),
    (S.RUNNING, [cancelled("a")], S.QUEUED),
    (S.RUNNING, [cancel_run(), cancelled("a")], S.CANCELLED),
    (S.RUNNING, [cancel_run(), failed("a")], S.FAILED),  # not retried: the run is stopping
    (S.WAITING, [cancel_run()], S.CANCELLED),
]


@pytest.mark.parametrize(("status", "messages", "after"), OUTCOMES)
def test_step_goes_on_as_its_policy_says(status: StepStatus, messages: list[m.RunMessage], after: StepStatus) -> None:
    """Each way out of a status that the table allows is taken for its reason."""
    run = a_run_whose_step_is(status).takes(*messages)
    assert run.statuses["a"] == after


def test_lapsed_lease_is_doubted_first_and_lost_then() -> None:
    """A worker that renews late keeps its attempt; silence twice costs it."""
    run = a_run_whose_step_is(S.RUNNING)
    run.fire("lease/a/1")
    assert (run.step("a").status, run.step("a").suspected, run.armed["lease/a/1"]) == (S.RUNNING, True, run.at + 5_000)
    run.takes(renewed("a"))
    assert (run.step("a").suspected, run.armed["lease/a/1"]) == (False, run.at + 10_000)
    run.fire("lease/a/1")
    run.fire("lease/a/1")
    assert (run.step("a").status, run.step("a").attempt, run.step("a").losses) == (S.QUEUED, 2, 1)
    assert "lease/a/1" not in run.armed
    run.takes(started("a", 2)).fire("lease/a/2")
    run.fire("lease/a/2")
    assert (run.statuses["a"], run.events[-1].error.type) == ("failed", "WorkerLost")


def test_command_that_its_topic_does_not_take_is_sent_again_with_growing_pauses() -> None:
    """It stays the same attempt; the run says once what it waits for, and a result counts at any time."""
    run = a_run_whose_step_is(S.QUEUED)
    before, pauses = len(run.events), []
    for sending in range(9):
        run.takes(refused("a", sending=sending))
        assert run.ignores(refused("a", sending=sending)) is Ignore.ALREADY_HELD_BACK
        pauses.append(run.armed["send/a/1"] - run.at)
        assert run.step("a").is_held_back
        assert run.fire("send/a/1").ignored is None
    assert (run.step("a").attempt, run.step("a").is_held_back) == (1, False)
    (event,) = run.events[before:]
    assert (event.type, event.status, event.waiting_on) == (
        "StepHeldBack", "queued", "the command topic of simulate cannot be written: no such topic; it is tried again",
    )  # fmt: skip
    assert [500 * 2**n <= pause <= 1000 * 2**n for n, pause in enumerate(pauses[:5])] == [True] * 5
    assert all(15_000 <= pause <= 30_000 for pause in pauses[5:])
    sent = [command for command in run.commands if command.step == "a"]
    assert len(sent) == 10
    assert {command.attempt for command in sent} == {1}
    assert [command.sending for command in sent] == [None, *range(1, 10)]
    assert run.ignores(refused("a", sending=8)) is Ignore.ALREADY_HELD_BACK
    assert run.ignores(send_due("a")) is Ignore.STALE_TIMER
    run.takes(succeeded("a"))
    assert "send/a/1" not in run.armed


def test_refused_command_is_held_back_across_a_restore() -> None:
    """The changelog holds when it is sent again, and how often it was refused."""
    run = a_run_whose_step_is(S.QUEUED).takes(refused("a"))
    records = dict(change for change in take_changes(run.partition, 1) if change[1] is not None)
    restored = restore(records)[0].runs[RUN]
    assert restored.steps == run.run.steps
    assert restored.timers() == run.run.timers()


def test_lease_that_lapses_without_a_time_for_doubt_is_lost_at_once() -> None:
    """With `suspect_s` 0 there is no second timer to wait for."""
    run = _begun(suspect_s=0).takes(succeeded("b"), started("a"))
    run.fire("lease/a/1")
    assert (run.step("a").status, run.step("a").attempt) == (S.QUEUED, 2)


def test_losses_and_hand_backs_do_not_count_as_tries() -> None:
    """The retry policy counts what the handler did, not what became of its workers."""
    run = a_run_whose_step_is(S.RUNNING).takes(gave_back("a"), cancelled("a", 2), failed("a", attempt=3))
    assert run.step("a").status is S.WAITING
    run.fire("retry/a/3")
    run.takes(failed("a", attempt=4))
    assert run.statuses["a"] == "failed"


def test_early_timer_is_armed_for_what_remains() -> None:
    """Clocks differ: only broker time says that a timer is due."""
    run = a_run_whose_step_is(S.RUNNING)
    decision = run.take(lease_due("a"), 9_999)
    assert decision.ignored is Ignore.EARLY_TIMER
    assert run.armed["lease/a/1"] == run.at + 1
    assert run.take(lease_due("a"), 1).ignored is None


def test_early_run_timeout_is_armed_for_what_remains() -> None:
    """The run goes on until its time is over."""
    run = _begun()
    assert run.ignores(run_timeout(), 899_999) is Ignore.EARLY_TIMER
    assert run.armed["run-timeout"] == run.at + 1
    assert run.take(run_timeout(), 1).ignored is None


def test_broker_time_that_steps_back_does_not_take_the_run_back() -> None:
    """A decision is never before the run's last."""
    run = a_run_whose_step_is(S.QUEUED)
    at = run.at
    run.take(started("a"), -60_000)
    assert run.run.at == at
    assert run.step("a").due_at == at + 10_000


# --- every message to a run in every state -----------------------------------------------------------------------

EVERY_MESSAGE: dict[str, m.RunMessage] = {
    "SubmitRun": a_submission(_STEPS, fail_fast=False),
    "CancelRun": cancel_run(),
    "AttemptStarted": started("b"),
    "AttemptSucceeded": succeeded("b"),
    "AttemptFailed": failed("b"),
    "AttemptCancelled": cancelled("b"),
    "LeaseRenewed": renewed("b"),
    "TimerFired": run_timeout(),
    "ContinueRun": continued(0),
    "CommandRefused": refused("b"),
}
RESULTS = (
    "AttemptStarted", "AttemptSucceeded", "AttemptFailed", "AttemptCancelled", "LeaseRenewed", "CommandRefused",
)  # fmt: skip


def test_every_message_is_here() -> None:
    """A new message to a run must say what it means in each of these states."""
    assert set(EVERY_MESSAGE) == {cls.__name__ for cls in m.RunMessage.__args__}


@pytest.mark.parametrize("name", EVERY_MESSAGE)
def test_message_to_a_run_that_nobody_knows_starts_nothing(name: str) -> None:
    """Except the one that starts it; a renewal is told to stop."""
    run = ARun()
    decision = run.take(EVERY_MESSAGE[name])
    if name == "SubmitRun":
        assert decision.ignored is None
        return
    assert decision.ignored is Ignore.UNKNOWN_RUN
    assert run.partition.runs == {}
    assert run.cancels == ([("b", 1)] if name == "LeaseRenewed" else [])


@pytest.mark.parametrize("name", EVERY_MESSAGE)
def test_message_to_a_run_that_is_over_changes_nothing(name: str) -> None:
    """Restored or not; a start is recognised as long as the key is promised."""
    run = a_run(("b",), keep_s=60).takes(succeeded("b"))
    records = dict(change for change in take_changes(run.partition, 1) if change[1] is not None)
    for partition in (run.partition, restore(records)[0]):
        again = ARun(partition=partition, at=run.at)
        expected = Ignore.FINISHED_RUN if name == "SubmitRun" else Ignore.UNKNOWN_RUN
        assert again.ignores(EVERY_MESSAGE[name]) is expected
        assert again.cancels == ([("b", 1)] if name == "LeaseRenewed" else [])


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("attempt", [0, 1, 3])
def test_message_of_another_attempt_is_ignored(name: str, attempt: int) -> None:
    """Only the current attempt counts; who renews another one is told to stop it, who gives it back is not."""
    run = a_run({"b": a_step(retry=RETRIES)}).takes(failed("b"))
    run.fire("retry/b/1")
    before = repr(run.run)
    message = EVERY_MESSAGE[name].model_copy(update={"attempt": attempt})
    assert run.ignores(message) is Ignore.STALE_ATTEMPT
    assert repr(run.run) == before
    assert run.cancels == ([("b", attempt)] if name == "LeaseRenewed" else [])
    assert run.ignores(gave_back("b", attempt)) is Ignore.STALE_ATTEMPT
    assert len(run.cancels) == (name == "LeaseRenewed")


@pytest.mark.parametrize("name", RESULTS)
def test_message_of_a_step_that_the_run_has_not_is_ignored(name: str) -> None:
    """A poisoned record hurts nobody."""
    run = _begun()
    before = repr(run.run)
    assert run.ignores(EVERY_MESSAGE[name].model_copy(update={"step": "nobody"})) is Ignore.UNKNOWN_STEP
    assert repr(run.run) == before


@pytest.mark.parametrize("name", ["x", "run-timeout/x", "grace", "grace/x", "retry", "lease/nobody/1", "lease/b/9", ""])
def test_timer_that_the_run_has_not_is_ignored(name: str) -> None:
    """An id that is no longer current means nothing."""
    run = _begun()
    assert run.ignores(fired(name), 3_600_000) is Ignore.STALE_TIMER


def test_repeated_start_is_ignored_and_another_body_is_told_apart() -> None:
    """A client's key with another body is a conflict, which the gateway answers."""
    run = _begun()
    assert run.ignores(EVERY_MESSAGE["SubmitRun"]) is Ignore.DUPLICATE_SUBMISSION
    assert run.ignores(a_submission(_STEPS, body_hash="other")) is Ignore.CONFLICTING_SUBMISSION


def test_continue_of_another_turn_is_ignored() -> None:
    """Only the last one sent is awaited."""
    assert _begun().ignores(continued(1)) is Ignore.STALE_CONTINUE


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("SubmitRun", "queued"),
        ("CancelRun", "queued"),
        ("AttemptStarted", "running"),
        ("AttemptSucceeded", "succeeded"),
        ("AttemptFailed", "failed"),
        ("AttemptCancelled", "cancelled"),
        ("LeaseRenewed", "running"),
        ("TimerFired", "queued"),
        ("ContinueRun", "queued"),
        ("CommandRefused", "cancelled"),
    ],
)
def test_message_to_a_run_that_is_stopping_starts_nothing(name: str, status: str) -> None:
    """Answers are taken, nothing else; nothing is dispatched."""
    run = _begun().takes(cancel_run())
    commands = len(run.commands)
    run.take(EVERY_MESSAGE[name], 3_600_000)
    assert run.statuses["b"] == status
    assert len(run.commands) == commands


def test_ids_of_another_run_do_not_matter() -> None:
    """A partition holds many runs; a message concerns its own."""
    run = _begun()
    other = a_submission({"b": a_step()}, run_id="other")
    run.take(other)
    run.take(succeeded("b", run_id="other"))
    assert list(run.partition.runs) == [RUN]
    assert run.step("b").status is S.QUEUED


# --- docs/transitions.md -------------------------------------------------------------------------------------------

DOC = Path(__file__).parents[3] / "docs" / "transitions.md"


def table_as_markdown() -> str:
    """Return the table as docs/transitions.md shows it."""
    lines = ["| status | " + " | ".join(fact.value for fact in Fact) + " |", "|---" * (len(Fact) + 1) + "|"]
    for status, row in TABLE.items():
        lines.append(f"| {status.value} | " + " | ".join(_cell(row[fact]) for fact in Fact) + " |")
    return "\n".join(lines)


def _cell(row: frozenset[StepStatus] | Ignore) -> str:
    if isinstance(row, Ignore):
        return f"*{row.value}*"
    return " / ".join(f"**{status.value}**" for status in StepStatus if status in row)


def test_the_documented_table_is_the_table() -> None:
    """docs/transitions.md shows what the core does; print `table_as_markdown()` to renew it."""
    assert table_as_markdown() in DOC.read_text()


def test_every_reason_is_documented() -> None:
    """An operator who sees a counted reason finds what it means."""
    text = DOC.read_text()
    assert [reason.value for reason in Ignore if f"`{reason.value}`" not in text] == []
