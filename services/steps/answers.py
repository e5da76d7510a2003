"""What an attempt answers: its output or its error, as messages to the inbox. Pure."""

import traceback
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from anabranch.services.steps.ports import CommandRecord
from anabranch.shared.contracts.codec import Encoded, encode, trace_id_or
from anabranch.shared.contracts.dead_letters import Origin, dead_letter
from anabranch.shared.contracts.errors import ErrorType, RetryableError, StepError, TerminalError
from anabranch.shared.contracts.ids import attempt_id
from anabranch.shared.contracts.limits import MAX_ERROR_DETAILS_BYTES, MAX_STEP_OUTPUT_BYTES
from anabranch.shared.contracts.messages import (
    AttemptCancelled,
    AttemptFailed,
    AttemptStarted,
    AttemptSucceeded,
    Lease,
    LeasesRenewed,
    RunStep,
)

Answer = AttemptSucceeded | AttemptFailed | AttemptCancelled
AttemptMessage = Answer | AttemptStarted

_TRACEBACK_CHARS: Final = 4_000  # the tail: where it was raised
_LEASES_PER_RECORD: Final = 200  # with 4 KiB of progress each, well below what a record may weigh


def succeeded(command: RunStep, output: BaseModel, duration_ms: int) -> Answer:
    """Return the success of an attempt, or the failure that its output is: not JSON, or too large."""
    try:
        value = output.model_dump(mode="json", by_alias=True)
    except PydanticSerializationError as error:
        return failed(command, ErrorType.OUTPUT_INVALID, f"the output cannot be written as JSON: {error}", duration_ms)
    return AttemptSucceeded(
        run_id=command.run_id, step=command.step, attempt=command.attempt, output=value, duration_ms=duration_ms
    )


def too_large(command: RunStep, answer: Answer, value: bytes) -> Answer | None:
    """Return the failure that an answer of these encoded bytes is, if its output is over the limit."""
    if len(value) <= MAX_STEP_OUTPUT_BYTES or not isinstance(answer, AttemptSucceeded):
        return None  # the envelope counts to the shorter check, not to the limit
    size = len(to_json(answer.output))
    if size <= MAX_STEP_OUTPUT_BYTES:
        return None
    message = f"the output is {size} bytes as JSON, a step may have {MAX_STEP_OUTPUT_BYTES}: store it and output where"
    return failed(command, ErrorType.PAYLOAD_TOO_LARGE, message, answer.duration_ms)


def raised(command: RunStep, error: BaseException, duration_ms: int) -> AttemptFailed:
    """Return the failure of an attempt whose handler raised `error`."""
    match error:
        case TerminalError():
            return failed(command, error.error_type, str(error), duration_ms, details=error.details)
        case RetryableError():
            return failed(
                command, error.error_type, str(error), duration_ms,
                details=error.details, terminal=False, retry_after_s=error.after_s,
            )  # fmt: skip
        case _:
            details = {"traceback": "".join(traceback.format_exception(error))[-_TRACEBACK_CHARS:]}
            return failed(command, type(error).__name__, str(error), duration_ms, details=details, terminal=False)


def input_invalid(command: RunStep, error: ValidationError) -> AttemptFailed:
    """Return the failure of an attempt whose input the step type does not take."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    words = "; ".join(f"{'/'.join(map(str, fault['loc'])) or 'input'}: {fault['msg']}" for fault in faults[:10])
    return failed(command, ErrorType.INPUT_INVALID, f"{command.uses} does not take this input: {words}", 0)


def timed_out(command: RunStep, duration_ms: int) -> AttemptFailed:
    """Return the failure of an attempt that ran for longer than its limit; the step's policy may retry it."""
    return AttemptFailed(
        run_id=command.run_id, step=command.step, attempt=command.attempt, timed_out=True, duration_ms=duration_ms,
        error=StepError.of(ErrorType.ATTEMPT_TIMEOUT, f"{command.step} did not finish within {command.timeout_s:g} s"),
    )  # fmt: skip


def worker_lost(command: RunStep, takes: int) -> AttemptFailed:
    """Return the failure of an attempt that took its worker down with it, again and again."""
    message = f"{command.step} was taken up {takes} times and its worker ended each time before it could answer"
    return failed(command, ErrorType.WORKER_LOST, message, 0)


def cancelled(command: RunStep, duration_ms: int) -> AttemptCancelled:
    """Return the answer of an attempt that was told to stop."""
    return AttemptCancelled(run_id=command.run_id, step=command.step, attempt=command.attempt, duration_ms=duration_ms)


def failed(
    command: RunStep,
    error_type: str,
    message: str,
    duration_ms: int,
    *,
    details: Any = None,
    terminal: bool = True,
    retry_after_s: float | None = None,
) -> AttemptFailed:
    """Return a failure of an attempt, its details bounded."""
    return AttemptFailed(
        run_id=command.run_id, step=command.step, attempt=command.attempt,
        error=StepError.of(error_type, message, _bounded(details)),
        terminal=terminal, retry_after_s=retry_after_s, duration_ms=duration_ms,
    )  # fmt: skip


def encode_attempt(message: AttemptMessage, command: RunStep, attempt: str, source: str) -> Encoded:
    """Return what an attempt says as a record, at the time of the command's cause: a repeat is byte-identical."""
    kind = type(message).__name__
    return encode(
        message,
        message_id=f"{attempt}/{kind}",
        source=source,
        at_ms=command.at_ms,
        trace_id=trace_id_or(command.trace_id, command.run_id),
    )


def encode_renewals(
    held: Iterable[tuple[RunStep, Any]], *, worker: str, lease_s: float, number: int, source: str
) -> Iterator[Encoded]:
    """Return the records that renew leases of one inbox partition: one, or a few when there are very many."""
    leases = iter(held)
    while chunk := list(islice(leases, _LEASES_PER_RECORD)):
        message = LeasesRenewed(
            worker=worker, lease_s=lease_s,
            leases=tuple(
                Lease(run_id=command.run_id, step=command.step, attempt=command.attempt, progress=progress)
                for command, progress in chunk
            ),
        )  # fmt: skip
        first = chunk[0][0]
        yield encode(
            message,
            message_id=f"{worker}/{number}/{attempt_id(first.run_id, first.step, first.attempt)}",
            source=source,
            at_ms=max(command.at_ms for command, _ in chunk),
            trace_id=trace_id_or(first.trace_id, first.run_id),
        )


def encode_dead_letter(
    record: CommandRecord, *, topic: str, service: str, error_type: str, error_message: str
) -> Encoded:
    """Return the dead letter of a command record: where it stood, its bytes, and why it could not be handled."""
    origin = Origin(topic, record.partition, record.offset, record.timestamp_ms, record.key, record.value)
    return dead_letter(origin, service=service, source=service, error_type=error_type, reason=error_message)


def _bounded(details: Any) -> Any:
    if details is None:
        return None
    try:
        size = len(to_json(details))
    except (PydanticSerializationError, ValueError):
        return {"omitted": "the details are not JSON"}
    return details if size <= MAX_ERROR_DETAILS_BYTES else {"omitted": f"the details are {size} bytes as JSON"}
