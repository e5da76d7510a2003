"""What a command that was not taken comes to: a record in the inbox. What follows from it, the core decides."""

from collections.abc import Iterator

from anabranch.services.orchestrator.core.effects import Append, Channel
from anabranch.services.orchestrator.core.partition import Partition
from anabranch.services.orchestrator.core.state import Run
from anabranch.services.orchestrator.core.status import StepStatus
from anabranch.services.orchestrator.core.turn import SOURCE
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import Undecodable, decode, encode, trace_id_or
from anabranch.shared.contracts.ids import attempt_id


def refusal_of(command: Append, reason: str, *, too_large: bool = False) -> Append:
    """Return the record that says of a command that its topic did not take it."""
    sent = decode(m.COMMANDS, command.value)
    assert not isinstance(sent, Undecodable), f"our own command cannot be read: {sent.reason}"
    message = m.CommandRefused(
        run_id=sent.run_id, step=sent.step, attempt=sent.attempt, sending=sent.sending or 0, reason=reason,
        too_large=too_large,
    )  # fmt: skip
    return _record(message, sent.at_ms, trace_id_or(sent.trace_id, sent.run_id), sent.sampled)


def refusals_of_lost(partition: Partition, step_type: str, reason: str) -> Iterator[Append]:
    """Yield the records that say of every command of a type which is not known to be held that it is gone."""
    for run in list(partition.runs.values()):
        if run.in_flight and not run.quarantined and step_type in run.pipeline.uses.values():
            yield from _of_run(run, step_type, reason)


def _of_run(run: Run, step_type: str, reason: str) -> Iterator[Append]:
    for node, step in zip(run.pipeline.steps, run.steps, strict=True):
        if node.uses == step_type and step.status is StepStatus.QUEUED and not step.is_held_back:
            message = m.CommandRefused(
                run_id=run.id, step=node.id, attempt=step.attempt, sending=step.refusals, reason=reason
            )
            yield _record(message, run.at, run.trace_id, run.submission.sampled)


def _record(message: m.CommandRefused, at_ms: int, trace_id: str, sampled: bool | None) -> Append:
    record = encode(
        message,
        message_id=f"{attempt_id(message.run_id, message.step, message.attempt)}/refused/{message.sending}",
        source=SOURCE,
        at_ms=at_ms,
        trace_id=trace_id,
        is_sampled=sampled is not False,
    )
    return Append(Channel.INBOX, message.run_id, record.value, record.headers)
