"""What an attempt answers: its output or its error, as messages to the inbox. Pure."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from pydantic_core import to_json

from anabranch.services.steps.guard import Failure, fault_of_output, not_json, output_too_large
from anabranch.services.steps.ports import CommandRecord, Remembered
from anabranch.shared.contracts.codec import Encoded, encode, trace_id_or
from anabranch.shared.contracts.dead_letters import Origin, dead_letter
from anabranch.shared.contracts.errors import ErrorType, StepError
from anabranch.shared.contracts.ids import attempt_id
from anabranch.shared.contracts.limits import MAX_STEP_OUTPUT_BYTES
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

_LEASES_PER_RECORD: Final = 200  # with 4 KiB of progress each, well below what a record may weigh


def succeeded(command: RunStep, output: Any, duration_ms: int) -> AttemptSucceeded:
    """Return the success of an attempt whose output is these JSON values."""
    return AttemptSucceeded(
        run_id=command.run_id, step=command.step, attempt=command.attempt, output=output, duration_ms=duration_ms
    )


def failed(command: RunStep, failure: Failure, duration_ms: int) -> AttemptFailed:
    """Return the failure of an attempt."""
    return AttemptFailed(
        run_id=command.run_id, step=command.step, attempt=command.attempt,
        error=StepError.of(failure.error_type, failure.message, failure.details),
        terminal=failure.terminal, retry_after_s=failure.retry_after_s, duration_ms=duration_ms,
    )  # fmt: skip


def encode_answer(answer: Answer, command: RunStep, attempt: str, source: str) -> tuple[Answer, Encoded]:
    """Return the answer as a record, or the failure that its output is: not JSON, too deep, or too large.

    A failure is plain text and JSON, so it can always be encoded.
    """
    try:
        encoded = encode_attempt(answer, command, attempt, source)
        failure = _fault_of(answer, encoded.value)
    except Exception as error:  # noqa: BLE001  a value that looked like JSON and is not
        failure = not_json(error)
    if failure is not None:
        answer = failed(command, failure, answer.duration_ms)
        encoded = encode_attempt(answer, command, attempt, source)
    return answer, encoded


def _fault_of(answer: Answer, encoded: bytes) -> Failure | None:
    if not isinstance(answer, AttemptSucceeded):
        return None
    if len(encoded) > MAX_STEP_OUTPUT_BYTES and (size := len(to_json(answer.output))) > MAX_STEP_OUTPUT_BYTES:
        return output_too_large(size)  # the envelope counts to the shorter check, not to the limit
    return fault_of_output(answer.output, encoded, around=1)


def timed_out(command: RunStep, duration_ms: int) -> AttemptFailed:
    """Return the failure of an attempt that ran for longer than its limit; the step's policy may retry it."""
    return AttemptFailed(
        run_id=command.run_id, step=command.step, attempt=command.attempt, timed_out=True, duration_ms=duration_ms,
        error=StepError.of(ErrorType.ATTEMPT_TIMEOUT, f"{command.step} did not finish within {command.timeout_s:g} s"),
    )  # fmt: skip


def worker_lost(command: RunStep, known: Remembered, last_words: str) -> AttemptFailed:
    """Return the failure of an attempt that took its worker down with it, again and again."""
    how = last_words or (
        "nobody said how: by the handler (os._exit, a crash of native code), or killed (memory); its log has its last "
        "words, whoever started it has its exit code"
    )
    message = (
        f"{command.step} was tried alone {known.alone} times, and each time its worker ended before it could answer. "
        f"The last was {known.alone_on}: {how}"
    )
    return failed(command, Failure(ErrorType.WORKER_LOST, message), 0)


def cancelled(command: RunStep, duration_ms: int) -> AttemptCancelled:
    """Return the answer of an attempt that was told to stop."""
    return AttemptCancelled(run_id=command.run_id, step=command.step, attempt=command.attempt, duration_ms=duration_ms)


def encode_attempt(message: AttemptMessage, command: RunStep, attempt: str, source: str) -> Encoded:
    """Return what an attempt says as a record, at the time of the command's cause: a repeat is byte-identical."""
    kind = type(message).__name__
    return encode(
        message,
        message_id=f"{attempt}/{kind}",
        source=source,
        at_ms=command.at_ms,
        trace_id=trace_id_or(command.trace_id, command.run_id),
        is_sampled=command.sampled is not False,
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
            is_sampled=first.sampled is not False,
        )


def encode_dead_letter(
    record: CommandRecord, *, topic: str, service: str, error_type: str, error_message: str
) -> Encoded:
    """Return the dead letter of a command record: where it stood, its bytes, and why it could not be handled."""
    origin = Origin(topic, record.partition, record.offset, record.timestamp_ms, record.key, record.value)
    return dead_letter(origin, service=service, source=service, error_type=error_type, reason=error_message)
