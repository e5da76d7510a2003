"""`decide(run, message, at)`: what a record means for a run. Pure: no I/O, no clock, no chance, no setting.

A message is told apart, looked up in the transition table if it speaks of a step, applied, and then the run *settles*:
ready steps are dispatched, unreachable ones skipped, the run finished, until nothing changes (`settle.py`).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

from anabranch.services.orchestrator.core import settle
from anabranch.services.orchestrator.core.effects import Append, Channel, Effect, SetTimer
from anabranch.services.orchestrator.core.graph import NO_PIPELINE, compile_pipeline
from anabranch.services.orchestrator.core.state import (
    GRACE,
    LEASE,
    RETRY,
    RUN_TIMEOUT,
    SEND,
    Run,
    Step,
    Stop,
    StopReason,
)
from anabranch.services.orchestrator.core.status import RunStatus, StepStatus
from anabranch.services.orchestrator.core.transitions import TABLE, Fact, Ignore
from anabranch.services.orchestrator.core.turn import SOURCE, Turn, Unsaid, finished
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import encode
from anabranch.shared.contracts.errors import ErrorType, StepError
from anabranch.shared.contracts.ids import attempt_id, timer_id, trace_id_of_run
from anabranch.shared.contracts.limits import MAX_PROGRESS_BYTES, MAX_REPEATED_BYTES, MAX_RUN_BYTES
from anabranch.shared.contracts.times import rfc3339

RULES_VERSION: Final = 2
"""Raised whenever the same log would be decided otherwise; the golden logs in tests/golden hold it."""


class Decision(NamedTuple):
    """What a record means: the turn to commit, or why it is ignored; and what is to be appended and armed."""

    run: Run | None
    effects: tuple[Effect, ...] = ()
    ignored: Ignore | None = None
    turn: Turn | None = None

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self.turn is not None and self.turn.ended

    def commit(self) -> None:
        """Make the run what was decided."""
        if self.turn is not None:
            self.turn.commit()


_FACTS: Final[dict[type[m.Message], Fact]] = {
    m.AttemptStarted: Fact.STARTED,
    m.AttemptSucceeded: Fact.SUCCEEDED,
    m.AttemptFailed: Fact.FAILED,
    m.AttemptCancelled: Fact.CANCELLED,
    m.LeaseRenewed: Fact.RENEWED,
    m.CommandRefused: Fact.REFUSED,
}

_TIMER_FACTS: Final = {RETRY: Fact.RETRY_DUE, LEASE: Fact.LEASE_DUE, SEND: Fact.SEND_DUE}

AttemptMessage = (
    m.AttemptStarted | m.AttemptSucceeded | m.AttemptFailed | m.AttemptCancelled | m.LeaseRenewed | m.CommandRefused
)


def decide(run: Run | None, message: m.RunMessage, at: int) -> Decision:
    """Return what `message`, appended at broker time `at` (milliseconds), means for `run`. The run is not touched."""
    if type(message) is m.SubmitRun:
        return _begin(run, message, at)
    if run is None:
        return _unknown_run(message, at)
    return _DECIDED_BY[type(message)](run, message, at)


def abandon(run: Run, error: StepError, at: int) -> Decision:
    """Return the decision that ends a run as failed, whatever its steps do: for errors of the engine itself."""
    turn = Turn(run, at)
    turn.error = error  # whatever the run was about to end as
    settle.end_as(turn, RunStatus.FAILED)
    return Decision(run, tuple(turn.effects), turn=turn)


def refuse(message: m.SubmitRun, error: StepError, at: int) -> Decision:
    """Return the decision that starts and fails a run which cannot even begin; what is too large is not repeated."""
    run = Run.begin(message.model_copy(update={"inputs": {}, "labels": {}}), NO_PIPELINE, at)
    turn = Turn(run, at)
    turn.emit(_started(run))
    turn.fail_run(error)
    settle.end_as(turn, RunStatus.FAILED)
    return Decision(run, tuple(turn.effects), turn=turn)


# --- the run ---------------------------------------------------------------------------------------------------------


def _begin(run: Run | None, message: m.SubmitRun, at: int) -> Decision:
    if run is not None:
        same = run.submission.body_hash == message.body_hash
        return Decision(run, ignored=Ignore.DUPLICATE_SUBMISSION if same else Ignore.CONFLICTING_SUBMISSION)
    pipeline = compile_pipeline(message.definition)
    run = Run.begin(message, pipeline, at)
    turn = Turn(run, at)
    if run.held > MAX_REPEATED_BYTES:
        words = f"inputs and labels take {run.held} bytes; at most {MAX_REPEATED_BYTES} are allowed"
        return refuse(message, StepError.of(ErrorType.PAYLOAD_TOO_LARGE, words), at)
    turn.emit(_started(run))
    turn.effects.append(SetTimer(RUN_TIMEOUT, run.timeout_at))
    return _settled(turn)


def _started(run: Run) -> Unsaid:
    submission = run.submission
    return partial(
        m.RunStarted, run_id=run.id, at=rfc3339(run.at), pipeline=run.pipeline.name,
        revision=submission.revision, tenant=submission.tenant, inputs=submission.inputs, labels=submission.labels,
        body_hash=submission.body_hash, rules=RULES_VERSION, steps=dict(run.pipeline.uses),
    )  # fmt: skip


def _unknown_run(message: m.RunMessage, at: int) -> Decision:
    return Decision(None, _tell_if_held(None, message, at), ignored=Ignore.UNKNOWN_RUN)


def _continue(run: Run, message: m.ContinueRun, at: int) -> Decision:
    if message.number != run.continued:
        return Decision(run, ignored=Ignore.STALE_CONTINUE)
    return _settled(Turn(run, at))


def _cancel(run: Run, message: m.CancelRun, at: int) -> Decision:
    return _stop(run, StopReason.CANCELLED, message.reason, at)


def _stop(run: Run, reason: StopReason, words: str, at: int) -> Decision:
    if run.is_stopped_for_good:
        return Decision(run, ignored=Ignore.ALREADY_STOPPING)
    turn = Turn(run, at)
    settle.stop(turn, Stop(reason, turn.at, words))
    return _settled(turn)


def _settled(turn: Turn) -> Decision:
    settle.settle(turn)
    return Decision(turn.run, tuple(turn.effects), turn=turn)


# --- timers ----------------------------------------------------------------------------------------------------------


def _timer(run: Run, message: m.TimerFired, at: int) -> Decision:
    kind, _, rest = message.timer_id.partition("/")
    if kind in _TIMER_FACTS:
        return _step_timer(run, message, kind, rest.rpartition("/")[0], at)
    due = _due_at(run, message.timer_id)
    if due is None:
        return Decision(run, ignored=Ignore.STALE_TIMER)
    if max(at, run.at) < due:
        return Decision(run, (SetTimer(message.timer_id, due),), ignored=Ignore.EARLY_TIMER)
    if kind == GRACE:
        return _grace_ends(run, at)
    return _stop(run, StopReason.TIMED_OUT, f"the run took longer than {(due - run.started_at) / 1000:g} s", at)


def _due_at(run: Run, timer: str) -> int | None:
    if timer == GRACE:
        return run.grace_ends_at
    return run.timeout_at if timer == RUN_TIMEOUT and not run.is_stopped_for_good else None


def _step_timer(run: Run, message: m.TimerFired, kind: str, step_id: str, at: int) -> Decision:
    index = run.pipeline.index.get(step_id)
    if index is None or message.timer_id != timer_id(kind, step_id, run.steps[index].attempt):
        return Decision(run, ignored=Ignore.STALE_TIMER)
    due = run.steps[index].due_at
    if kind == SEND and due is None and run.steps[index].status is StepStatus.QUEUED:  # it was sent meanwhile
        return Decision(run, ignored=Ignore.STALE_TIMER)
    if due is not None and message.timer_id == run.steps[index].timer_id(step_id) and max(at, run.at) < due:
        return Decision(run, (SetTimer(message.timer_id, due),), ignored=Ignore.EARLY_TIMER)
    return _apply(run, index, _TIMER_FACTS[kind], None, at)


def _grace_ends(run: Run, at: int) -> Decision:
    turn = Turn(run, at)
    settle.wait_no_longer(turn)
    return _settled(turn)


# --- steps -----------------------------------------------------------------------------------------------------------


def _attempt(run: Run, message: AttemptMessage, at: int) -> Decision:
    index = run.pipeline.index.get(message.step)
    if index is None:
        return Decision(run, ignored=Ignore.UNKNOWN_STEP)
    step = run.steps[index]
    if message.attempt != step.attempt:
        return Decision(run, _tell_if_held(run, message, at), ignored=Ignore.STALE_ATTEMPT)
    return _apply(run, index, _FACTS[type(message)], message, at)


def _apply(run: Run, index: int, fact: Fact, message: AttemptMessage | None, at: int) -> Decision:
    step = run.steps[index]
    row = TABLE[step.status][fact]
    if isinstance(row, Ignore):
        return Decision(run, _tell_if_held(run, message, at) if row is Ignore.FINISHED else (), ignored=row)
    if isinstance(message, m.CommandRefused) and message.sending != step.refusals:
        return Decision(run, ignored=Ignore.ALREADY_HELD_BACK)
    turn = Turn(run, at)
    _follow(turn, index, step, fact, message)
    after = turn.step(index)
    assert after.status in row, f"{step.status} -{fact}-> {after.status} is not in the table"
    return _settled(turn)


def _follow(turn: Turn, index: int, step: Step, fact: Fact, message: AttemptMessage | None) -> None:
    match message:
        case m.AttemptSucceeded():
            settle.succeed(turn, index, message)
        case m.AttemptFailed():
            settle.fail_attempt(turn, index, message)
        case m.AttemptStarted():
            _lease(turn, index, step, message.lease_s, step.progress)
        case m.LeaseRenewed() if message.lease_s > 0:
            _lease(turn, index, step, message.lease_s, message.progress)
        case m.LeaseRenewed():
            _next_attempt(turn, index, replace(step, given_back=step.given_back + 1))
        case m.AttemptCancelled():
            _lost(turn, index, settle.with_start(turn, step, message.duration_ms) if message.duration_ms else step)
        case _:
            _of_the_log(turn, index, step, fact, message)


def _of_the_log(turn: Turn, index: int, step: Step, fact: Fact, message: m.CommandRefused | None) -> None:
    if message is None:
        _timer_due(turn, index, step, fact)
    else:
        settle.hold_back(turn, index, step, message)


def _lease(turn: Turn, index: int, step: Step, lease_s: float, progress: object) -> None:
    held = replace(
        step,
        status=StepStatus.RUNNING,
        started_at=turn.at if step.started_at is None else step.started_at,
        due_at=turn.at + round(1000 * lease_s),
        suspected=False,
        refusals=0,
        progress=step.progress if progress is None or _is_too_heavy(turn, progress) else progress,
    )
    if step.status is not StepStatus.RUNNING:
        turn.change(index, held)
    elif held.progress != step.progress:
        turn.change(index, held, event_type="StepProgressed")
    else:
        turn.move(index, held)


def _is_too_heavy(turn: Turn, progress: object) -> bool:
    return turn.held + MAX_PROGRESS_BYTES > MAX_RUN_BYTES or settle.excess(progress, MAX_PROGRESS_BYTES) is not None


def _timer_due(turn: Turn, index: int, step: Step, fact: Fact) -> None:
    if fact is Fact.RETRY_DUE:
        _next_attempt(turn, index, step)
    elif fact is Fact.SEND_DUE:
        settle.send_again(turn, index, step)
    else:
        _lapse(turn, index, step)


def _lapse(turn: Turn, index: int, step: Step) -> None:
    wait_ms = round(1000 * turn.run.submission.settings.suspect_s)
    if step.suspected or not wait_ms:
        _lost(turn, index, step)
        return
    turn.move(index, replace(step, suspected=True, due_at=turn.at + wait_ms))


def _lost(turn: Turn, index: int, step: Step) -> None:
    if step.cancelling:
        turn.change(index, finished(step, StepStatus.CANCELLED, turn.at))
        return
    lost = replace(step, losses=step.losses + 1)
    if lost.losses < turn.run.submission.settings.max_losses:
        _next_attempt(turn, index, lost)
        return
    error = StepError.of(ErrorType.WORKER_LOST, f"{lost.losses} workers were lost while they ran this step")
    settle.dead_letter_command(turn, index, lost, error)
    settle.fail(turn, index, lost, error)


def _next_attempt(turn: Turn, index: int, step: Step) -> None:
    if step.cancelling or settle.is_stopping(turn, index):
        turn.change(index, finished(step, StepStatus.CANCELLED, turn.at))
    else:
        settle.dispatch(turn, index, step)


_DECIDED_BY: Final[dict[type[m.Message], Callable[[Run, Any, int], Decision]]] = {
    m.TimerFired: _timer,
    m.ContinueRun: _continue,
    m.CancelRun: _cancel,
    **dict.fromkeys(_FACTS, _attempt),
}


def _tell_if_held(run: Run | None, message: m.RunMessage | None, at: int) -> tuple[Append, ...]:
    """Whoever still renews an attempt that nobody waits for is told to stop it; who gives one back holds nothing."""
    if not isinstance(message, m.LeaseRenewed) or message.lease_s <= 0:
        return ()
    record = encode(
        m.CancelStep(run_id=message.run_id, step=message.step, attempt=message.attempt),
        message_id=f"{attempt_id(message.run_id, message.step, message.attempt)}/cancel",
        source=SOURCE,
        at_ms=at,
        trace_id=trace_id_of_run(message.run_id) if run is None else run.trace_id,
        is_sampled=run is None or run.is_sampled,
    )
    return (Append(Channel.CONTROL, message.run_id, record.value, record.headers),)
