"""Apply what happened to a step, then settle: dispatch what is ready, skip what cannot run, end the run, until nothing
changes. A turn settles `STEPS_PER_TURN` steps at most, and none once what it evaluated costs `COST_PER_TURN` or what
it appended weighs `MAX_TURN_BYTES`; the rest goes on by a `ContinueRun` through the inbox, others in between.
"""

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

from pydantic_core import to_json

from anabranch.services.orchestrator.core.effects import Channel, DropTimer, SetTimer
from anabranch.services.orchestrator.core.graph import TRANSFORM, Node
from anabranch.services.orchestrator.core.state import GRACE, RUN_TIMEOUT, Step, Stop, StopReason, size_of
from anabranch.services.orchestrator.core.status import DISPATCHED, TERMINAL, RunStatus, StepStatus
from anabranch.services.orchestrator.core.turn import Turn, finished
from anabranch.services.orchestrator.core.values import Reading, StepValues, encoded
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.cel_cost import cost_of_parts
from anabranch.shared.contracts.codec import Encoded
from anabranch.shared.contracts.errors import ErrorType, StepError
from anabranch.shared.contracts.expressions import (
    Condition,
    ExpressionError,
    RetryCondition,
    RunValues,
    SecretText,
    Template,
    context_for,
    names_run,
)
from anabranch.shared.contracts.ids import attempt_id, idempotency_key
from anabranch.shared.contracts.limits import (
    MAX_ERROR_DETAILS_BYTES,
    MAX_ERROR_TYPE_CHARS,
    MAX_FULL_RUN_ERROR_CHARS,
    MAX_MESSAGE_BYTES,
    MAX_NESTING,
    MAX_RUN_BYTES,
    MAX_STEP_INPUT_BYTES,
    MAX_STEP_OUTPUT_BYTES,
)
from anabranch.shared.contracts.nesting import holds_too_deep, is_text_too_deep, is_too_deep
from anabranch.shared.contracts.retry import GiveUp, RetryAfter, RetryDecision, chance, decide_retry
from anabranch.shared.contracts.times import rfc3339

_ENDED: Final = {
    RunStatus.SUCCEEDED: "RunSucceeded",
    RunStatus.FAILED: "RunFailed",
    RunStatus.CANCELLED: "RunCancelled",
    RunStatus.TIMED_OUT: "RunTimedOut",
}

# A command that its topic did not take is sent again after this, then after twice as long, and so on up to a time that
# costs little for ten thousand held-back steps and is short for whoever mends the topic.
_SEND_AGAIN_AFTER_S: Final = 1.0
_SEND_AGAIN_AT_LEAST_EVERY_S: Final = 30.0
_DOUBLED: Final = 5  # times
_REASON_CHARS: Final = 500


_TOO_DEEP: Final = f"is nested deeper than {MAX_NESTING} levels"


def settle(turn: Turn) -> None:
    """Bring the run to rest, or as far as one turn goes."""
    while not (is_spent := turn.budget.is_spent):
        index = _next_to_settle(turn)
        if index is None:
            break
        turn.budget.steps -= 1
        _settle_step(turn, index)
    if not turn.open and (turn.budget.cost > 0 or turn.run.pipeline.outputs.is_literal):
        end_as(turn, _outcome(turn))
    elif is_spent and _more_to_settle(turn):
        _continue_later(turn)
    turn.flush()


def stop(turn: Turn, why: Stop) -> None:
    """Start nothing new. Settling cancels what waits and asks the workers to stop what runs, in as many turns as it
    takes; they have a grace to answer.
    """
    turn.stop = why
    turn.swept = 0
    if why.reason is not StopReason.FAIL_FAST:
        turn.effects.append(DropTimer(RUN_TIMEOUT))
    if why.reason is StopReason.TIMED_OUT:
        turn.error = StepError.of(ErrorType.RUN_TIMEOUT, why.message)  # status and error of a run agree
    grace_ms = round(1000 * turn.run.submission.settings.cancel_grace_s)
    turn.effects.append(SetTimer(GRACE, why.at_ms + grace_ms))


def wait_no_longer(turn: Turn) -> None:
    """The grace is over: settling cancels what has not answered."""
    turn.stop = None if turn.stop is None else replace(turn.stop, grace_over=True)
    turn.swept = 0
    turn.effects.append(DropTimer(GRACE))


def is_stopping(turn: Turn, index: int) -> bool:
    """Whether the run is stopping and the step with it."""
    return turn.stop is not None and not _spared(turn, index)


def _is_to_stop(turn: Turn, index: int) -> bool:
    step = turn.step(index)
    if step.status in TERMINAL or not is_stopping(turn, index):
        return False
    return not step.cancelling or (turn.stop is not None and turn.stop.grace_over)


def _stop_step(turn: Turn, index: int, step: Step) -> None:
    if step.status in DISPATCHED and not step.cancelling:
        _tell_worker_to_stop(turn, index, step.attempt)
        # One that is held back is not waited for; it is told all the same: a refusal may be wrong.
        if turn.stop is not None and not turn.stop.grace_over and not step.is_held_back:
            turn.move(index, replace(step, cancelling=True))
            return
    turn.change(index, finished(step, StepStatus.CANCELLED, turn.at))


def _tell_worker_to_stop(turn: Turn, index: int, attempt: int) -> None:
    run_id, step_id = turn.run.id, turn.node(index).id
    message = m.CancelStep(run_id=run_id, step=step_id, attempt=attempt)
    turn.append(Channel.CONTROL, run_id, turn.encode(message, f"{attempt_id(run_id, step_id, attempt)}/cancel"))


def _spared(turn: Turn, index: int) -> bool:
    """Steps that ask for `failed` or `always` run under `fail_fast` too."""
    return turn.stop is not None and turn.stop.reason is StopReason.FAIL_FAST and turn.node(index).asks_for_failures


# --- settling --------------------------------------------------------------------------------------------------------


def _next_to_settle(turn: Turn) -> int | None:
    index = None if turn.stop is None else _next_to_stop(turn)
    if index is None and turn.has_window:
        return turn.next_ready()
    return index


def _next_to_stop(turn: Turn) -> int | None:
    """Return the first step that is still to be stopped."""
    if turn.stop is None:
        return None
    steps = len(turn.run.steps)
    while turn.swept < steps and not _is_to_stop(turn, turn.swept):
        turn.swept += 1
    return turn.swept if turn.swept < steps else None


def _more_to_settle(turn: Turn) -> bool:
    if not turn.open:
        return True  # its outputs are rendered in a turn of their own
    return _next_to_stop(turn) is not None or (turn.has_ready and turn.has_window)


def _continue_later(turn: Turn) -> None:
    turn.continued += 1
    run_id = turn.run.id
    message = m.ContinueRun(run_id=run_id, number=turn.continued)
    turn.append(Channel.INBOX, run_id, turn.encode(message, f"{run_id}/continue/{turn.continued}"))


def _settle_step(turn: Turn, index: int) -> None:
    step = turn.step(index)
    if is_stopping(turn, index):
        _stop_step(turn, index, step)
        return
    try:
        holds = _condition_holds(turn, index)
    except ExpressionError as error:
        fail(turn, index, step, StepError.of(ErrorType.EXPRESSION_ERROR, f"`if`: {error}"))
        return
    if holds:
        dispatch(turn, index, step)
    else:
        turn.change(index, finished(step, StepStatus.SKIPPED, turn.at))


def _condition_holds(turn: Turn, index: int) -> bool:
    node = turn.node(index)
    if node.condition is None:
        return not turn.unhappy(index)
    needs = {turn.node(need).id: turn.step(need).status.value for need in node.needs}
    context = _context(turn, node.condition)
    return node.condition.evaluate(context, needs, tolerated=node.tolerated, meter=turn.budget)


def _context(turn: Turn, expression: Template | Condition) -> dict[str, Any]:
    if not expression.paths:
        return {}

    reading = Reading(turn.budget)

    def step_values(step_id: str) -> Mapping[str, Any]:
        return StepValues(turn.step(turn.run.pipeline.index[step_id]), reading)

    run = _run_values(turn)._asdict() if names_run(expression.paths) else {}
    return context_for(expression.paths, turn.run.submission.inputs, step_values, run)


def _run_values(turn: Turn) -> RunValues:
    run = turn.run
    started_at = rfc3339(run.started_at)  # what submits a run also starts it
    return RunValues(
        id=run.id, pipeline=run.pipeline.name, revision=run.submission.revision, tenant=run.submission.tenant,
        labels=run.submission.labels, status=_status(turn).value, created_at=started_at, started_at=started_at,
    )  # fmt: skip


def _status(turn: Turn) -> RunStatus:
    """Return what the run is for its expressions: for its outputs, which come last, what it ends as."""
    return RunStatus.RUNNING if turn.open else _outcome(turn)


# --- dispatching -----------------------------------------------------------------------------------------------------


def dispatch(turn: Turn, index: int, step: Step) -> None:
    """Send out the step's next attempt; answer it at once when the core serves its type."""
    node = turn.node(index)
    try:
        given = _given(turn, node)
    except ExpressionError as error:
        fail(turn, index, step.queued(turn.at), StepError.of(ErrorType.EXPRESSION_ERROR, f"`with`: {error}"))
        return
    if node.uses == TRANSFORM:
        _finish_with(turn, index, step.queued(turn.at), turn.at, given.value.get("value"))
        return
    record = _command(turn, node, step.attempt + 1, given)
    if words := _excess_of(record.value, MAX_STEP_INPUT_BYTES, around=1):
        fail(turn, index, step.queued(turn.at), _too_large("its input", words))
        return
    turn.append(Channel.COMMANDS, idempotency_key(turn.run.id, node.id), record, node.uses)
    turn.move(index, step.queued(turn.at, len(record.value)))
    turn.note_queued(index, step.attempt + 1)


def hold_back(turn: Turn, index: int, step: Step, refused: m.CommandRefused) -> None:
    """The attempt's command is not in its topic: send it again later, the same attempt, or fail the step.

    The step stays queued, so that a result counts should the command be in its topic after all.
    """
    if step.cancelling:
        turn.change(index, finished(step, StepStatus.CANCELLED, turn.at))
        return
    uses = turn.node(index).uses
    if refused.too_large:
        fail(turn, index, step, StepError.of(ErrorType.PAYLOAD_TOO_LARGE, _shortened(refused.reason)))
        return
    pause_s = min(_SEND_AGAIN_AFTER_S * 2 ** min(step.refusals, _DOUBLED), _SEND_AGAIN_AT_LEAST_EVERY_S)
    pause_s *= (1 + chance(turn.run.id, turn.node(index).id, step.refusals)) / 2  # many are held back at once
    held = replace(step, due_at=turn.at + round(1000 * pause_s), refusals=step.refusals + 1)
    if step.refusals:
        turn.move(index, held)
    else:
        words = f"the command topic of {uses} cannot be written: {_shortened(refused.reason)}; it is tried again"
        turn.change(index, held, event_type="StepHeldBack", waiting_on=words)


def send_again(turn: Turn, index: int, step: Step) -> None:
    """Send the command that was held back once more.

    Workers know it by its attempt, should it be a repeat; and by the time of its cause that it may be an old one.
    """
    if is_stopping(turn, index):
        _stop_step(turn, index, step)
        return
    node = turn.node(index)
    try:
        given = _given(turn, node)
    except ExpressionError as error:
        fail(turn, index, step, StepError.of(ErrorType.EXPRESSION_ERROR, f"`with`: {error}"))
        return
    record = _command(turn, node, step.attempt, given, at=step.queued_at, sending=step.refusals)
    turn.append(Channel.COMMANDS, idempotency_key(turn.run.id, node.id), record, node.uses)
    turn.move(index, replace(step, due_at=None))


def _shortened(reason: str) -> str:
    return reason[:_REASON_CHARS]


class _Given(NamedTuple):
    """What a step is given: its input, and where in it there are secrets."""

    value: Any
    secrets: list[SecretText]


def _given(turn: Turn, node: Node) -> _Given:
    """Render a step's `with`. Raises `ExpressionError`."""
    secrets: list[SecretText] = []
    return _Given(node.input.render(_context(turn, node.input), turn.budget, secrets), secrets)


def _command(
    turn: Turn, node: Node, attempt: int, given: _Given, *, at: int | None = None, sending: int | None = None
) -> Encoded:
    submission = turn.run.submission
    command = m.RunStep(
        run_id=turn.run.id, step=node.id, attempt=attempt, uses=node.uses, tenant=submission.tenant, input=given.value,
        secrets=tuple(given.secrets) or None, trace_id=turn.trace_id, sending=sending,
        timeout_s=node.timeout_s or submission.settings.step_timeout_s, at_ms=at or turn.at,
    )  # fmt: skip
    if not turn.is_sampled:
        command = command.model_copy(update={"sampled": False})
    return turn.encode(command, attempt_id(turn.run.id, node.id, attempt))


def dead_letter_command(turn: Turn, index: int, step: Step, error: StepError) -> None:
    """Keep the command that takes its workers down where an operator finds it."""
    node = turn.node(index)
    try:
        record = _command(turn, node, step.attempt, _given(turn, node))
    except ExpressionError:  # it was rendered once, so it is rendered again; without it there is nothing to keep
        return
    key = idempotency_key(turn.run.id, node.id)
    letter = m.DeadLetter(
        topic=f"steps.{node.uses}", partition=-1, offset=-1, at_ms=turn.at, service="orchestrator",
        key_base64=b64encode(key.encode()).decode(), value_base64=b64encode(record.value).decode(),
        headers={name: value.decode() for name, value in record.headers},
        error_type=error.type, error_message=error.message,
    )  # fmt: skip
    turn.append(
        Channel.DEAD_LETTERS, key, turn.encode(letter, f"{attempt_id(turn.run.id, node.id, step.attempt)}/lost")
    )


# --- results ---------------------------------------------------------------------------------------------------------


def succeed(turn: Turn, index: int, message: m.AttemptSucceeded) -> None:
    """The current attempt returned an output."""
    step = turn.step(index)
    _finish_with(turn, index, step, _started_at(turn, step, message.duration_ms), message.output)


def _finish_with(turn: Turn, index: int, step: Step, started_at: int, output: Any) -> None:
    error, held = _fitting(turn, output)
    if error is not None:
        fail(turn, index, replace(step, started_at=started_at), error)
        return
    turn.budget.charge(cost_of_parts(held))
    turn.change(index, step.succeeded(turn.at, started_at, None if output is None else held), output=output)


def _fitting(turn: Turn, output: Any) -> tuple[StepError | None, bytes]:
    """Return what is wrong with an output, if anything is, and the output as it is held."""
    try:
        held = encoded(output)
    except ValueError:  # the writer stops at 254 levels
        if not is_too_deep(output):
            raise
        return _too_large("its output", _TOO_DEEP), b""
    words = _excess_of(held, MAX_STEP_OUTPUT_BYTES)
    if words:
        return _too_large("its output", words), held
    return _overfull(turn, len(held)) if turn.held + len(held) > MAX_RUN_BYTES else None, held


def _overfull(turn: Turn, size: int) -> StepError:
    words = f"its output takes {size} bytes and the run holds {turn.held} already; a run may hold {MAX_RUN_BYTES}"
    return StepError.of(ErrorType.PAYLOAD_TOO_LARGE, f"{words}: store values elsewhere and output where")


def fail_attempt(turn: Turn, index: int, message: m.AttemptFailed) -> None:
    """The current attempt failed: wait for the next, or fail the step."""
    error = _that_fits(turn, _kept(message.error))
    step = replace(with_start(turn, turn.step(index), message.duration_ms), error=error)
    verdict = _retry_verdict(turn, index, step, message)
    match verdict:
        case RetryAfter(delay_s):
            due_at = turn.at + round(1000 * delay_s)
            words = f"attempt {step.attempt + 1}, due {rfc3339(due_at)}, after {error.type}"
            waiting = replace(step, status=StepStatus.WAITING, due_at=due_at, suspected=False)
            turn.change(index, waiting, waiting_on=words)
        case GiveUp():
            fail(turn, index, step, error, timed_out=message.timed_out)


def _retry_verdict(turn: Turn, index: int, step: Step, message: m.AttemptFailed) -> RetryDecision:
    node = turn.node(index)
    if step.cancelling or is_stopping(turn, index):
        return GiveUp("the run is stopping")
    verdict = decide_retry(
        node.retry,
        tries=step.tries,
        error_type=message.error.type,
        terminal=message.terminal,
        after_s=message.retry_after_s,
        draw=chance(turn.run.id, node.id, step.attempt),
    )
    if isinstance(verdict, RetryAfter) and node.retry_when is not None:
        wanted = _wants_retry(turn, node.retry_when, message.error, step.attempt)
        return verdict if wanted else GiveUp("`retry.if` is false")
    return verdict


def _wants_retry(turn: Turn, condition: RetryCondition, error: StepError, attempt: int) -> bool:
    try:
        return condition.evaluate(error.model_dump(), attempt, turn.budget)
    except ExpressionError:  # a condition that cannot be answered is not met; the step fails with its own error
        return False


def fail(turn: Turn, index: int, step: Step, error: StepError, *, timed_out: bool = False) -> None:
    """The step has failed for good; unless it may, so has the run, and `fail_fast` stops it."""
    node = turn.node(index)
    status = StepStatus.TIMED_OUT if timed_out else StepStatus.FAILED
    turn.change(index, finished(step, status, turn.at, error=_that_fits(turn, error), output=None))
    if node.continue_on_error or turn.is_stopped_for_good:  # what breaks while it is stopped is not why the run ends
        return
    turn.fail_run(StepError.of(error.type, f"step {node.id}: {error.message}", {"step": node.id}))
    if turn.run.pipeline.fail_fast and turn.stop is None:
        stop(turn, Stop(StopReason.FAIL_FAST, turn.at, f"step {node.id} failed"))


def with_start(turn: Turn, step: Step, duration_ms: int) -> Step:
    """Return the step with the start that the duration its worker measured tells."""
    return replace(step, started_at=_started_at(turn, step, duration_ms))


def _started_at(turn: Turn, step: Step, duration_ms: int) -> int:
    """Return when the worker started, never before the step was queued."""
    return max(turn.at - max(duration_ms, 0), step.queued_at or 0)


def _kept(error: StepError) -> StepError:
    """Return the error as the run keeps it: not every worker cuts it to the limits."""
    words = None if error.details is None else excess(error.details, MAX_ERROR_DETAILS_BYTES)
    details = {"omitted": words} if words else error.details
    return StepError.of(error.type[:MAX_ERROR_TYPE_CHARS], error.message, details)


def _that_fits(turn: Turn, error: StepError) -> StepError:
    """Return the error, or as much of it as a run keeps that is full."""
    if turn.held + size_of(error) <= MAX_RUN_BYTES:
        return error
    details = {"omitted": f"the run holds {turn.held} bytes already"}
    return StepError.of(error.type, error.message[:MAX_FULL_RUN_ERROR_CHARS], details)


def excess(value: Any, limit: int) -> str | None:
    """Return what is too much about a value that is to be kept: more than `limit` bytes as JSON, or its depth."""
    try:
        written = to_json(value)
    except ValueError:  # the writer stops at 254 levels
        if not is_too_deep(value):
            raise
        return _TOO_DEEP
    return _excess_of(written, limit)


def _excess_of(written: bytes, limit: int, *, around: int = 0) -> str | None:
    """Return what is too much about JSON, with what is `around` levels deep around it."""
    if len(written) > limit:
        return _larger_than(written, limit)
    return _TOO_DEEP if is_text_too_deep(written, MAX_NESTING + around) else None


def _larger_than(written: bytes, limit: int) -> str | None:
    return f"takes {len(written)} bytes; at most {limit} are allowed" if len(written) > limit else None


def _too_large(what: str, words: str) -> StepError:
    return StepError.of(ErrorType.PAYLOAD_TOO_LARGE, f"{what} {words}")


# --- the end ---------------------------------------------------------------------------------------------------------


def _outcome(turn: Turn) -> RunStatus:
    if turn.stop is not None and turn.stop.reason is StopReason.TIMED_OUT:
        return RunStatus.TIMED_OUT
    if turn.stop is not None and turn.stop.reason is StopReason.CANCELLED:
        return RunStatus.CANCELLED
    return RunStatus.SUCCEEDED if turn.error is None else RunStatus.FAILED


def end_as(turn: Turn, status: RunStatus) -> None:
    """The run's last event: what it ended as, its outputs or its error."""
    outputs: Any = None
    if status is RunStatus.SUCCEEDED:
        try:
            template = turn.run.pipeline.outputs
            outputs = template.render(_context(turn, template), turn.budget)
        except ExpressionError as error:
            turn.fail_run(StepError.of(ErrorType.EXPRESSION_ERROR, f"`outputs`: {error}"))
            status = RunStatus.FAILED
    turn.flush()
    turn.seq += 1
    record = turn.encode_event(_ended(turn, status, outputs))
    words = _larger_than(record.value, MAX_MESSAGE_BYTES)
    if words or holds_too_deep(outputs, record.value):  # the event may have a deep error instead
        turn.fail_run(_too_large("`outputs`", words or _TOO_DEEP))
        record = turn.encode_event(_ended(turn, RunStatus.FAILED, None))
    turn.ended = True
    turn.append(Channel.RUN_EVENTS, turn.run.id, record)


def _ended(turn: Turn, status: RunStatus, outputs: Any) -> m.RunEnded:
    return m.RunEnded(
        type=_ENDED[status],
        run_id=turn.run.id, seq=turn.seq, at=rfc3339(turn.at), status=status.value,
        started_at=rfc3339(turn.run.started_at), outputs=outputs, error=turn.error,
    )  # fmt: skip
