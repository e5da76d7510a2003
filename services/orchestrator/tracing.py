"""The spans of decisions, and of the attempts and runs that they end; nothing of it is called where tracing is off.

Attempts and runs have the times that the log says, and ids that follow from what they are: decided again after a crash,
they are the same spans again.
"""

from typing import TYPE_CHECKING, Any, Final

from anabranch.services.orchestrator.core.decide import Decision
from anabranch.services.orchestrator.core.effects import Append, Channel
from anabranch.services.orchestrator.core.state import Run, Step
from anabranch.services.orchestrator.core.status import DISPATCHED, StepStatus
from anabranch.services.orchestrator.core.turn import Turn
from anabranch.services.orchestrator.ports import InboxRecord
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import header, type_said_in
from anabranch.shared.contracts.ids import span_id
from anabranch.shared.contracts.traces import TraceContext, trace_context_in, trace_of_attempt, trace_of_run

if TYPE_CHECKING:
    from anabranch.shared.runtime.opentelemetry_spans import Spans

_NS_PER_MS: Final = 1_000_000
_SUCCEEDED: Final = "RunSucceeded"


class DecisionSpans:
    """Writes the spans that one partition's decisions come to."""

    def __init__(self, spans: "Spans", partition: int) -> None:
        self._spans = spans
        self._partition = partition

    def now_ns(self) -> int:
        """Return the time, nanoseconds since 1970."""
        return self._spans.now_ns()

    def decided(self, record: InboxRecord, message: m.RunMessage, decision: Decision, began_ns: int) -> None:
        """Write the spans of a decision that is not committed yet: the run is still what it was before."""
        with self._spans.failing_alone():
            self._decided(record, message, decision, began_ns)

    def _decided(self, record: InboxRecord, message: m.RunMessage, decision: Decision, began_ns: int) -> None:
        run = decision.run
        trace = None if run is None else trace_of_run(run.id, run.trace_id, sampled=run.submission.sampled)
        if run is None or trace is None or not trace.is_sampled:
            return
        self._decision(record, message, decision, trace, began_ns)
        turn = decision.turn
        if turn is not None:
            for index, after in turn.changed.items():
                self._attempt(turn, index, run.steps[index], after, trace)
            if turn.ended:
                self._run(run, turn, decision, trace)

    def _decision(
        self, record: InboxRecord, message: m.RunMessage, decision: Decision, trace: TraceContext, began_ns: int
    ) -> None:
        attributes: dict[str, Any] = {
            "anabranch.run.id": message.run_id, "anabranch.message": message.type,
            "messaging.destination.partition.id": str(self._partition), "messaging.kafka.offset": record.offset,
        }  # fmt: skip
        if decision.ignored is not None:
            attributes["anabranch.ignored"] = decision.ignored.value
        step, attempt = getattr(message, "step", ""), getattr(message, "attempt", 0)
        if step:
            attributes |= {"anabranch.step": step, "anabranch.attempt": attempt}
        cause = trace_context_in(header(record.headers, "traceparent"))
        self._spans.write(
            f"decide {message.type}",
            trace_of_attempt(trace, message.run_id, step, attempt) if step else trace,
            span_id=span_id(f"{self._partition}/{record.offset}/{message.run_id}/{step}"),
            start_ns=began_ns,
            end_ns=self._spans.now_ns(),
            attributes=attributes,
            links=() if cause is None or cause.trace_id == trace.trace_id else (cause,),
        )

    def _attempt(self, turn: Turn, index: int, before: Step, after: Step, trace: TraceContext) -> None:
        """Write the span of the attempt that this decision ends, if any; a retry's has a link to the one before."""
        if before.status not in DISPATCHED or before.queued_at is None or _goes_on(before, after):
            return
        node, run, number = turn.node(index), turn.run, before.attempt
        outcome = _outcome(before, after)
        attributes = {
            "anabranch.run.id": run.id, "anabranch.tenant": run.submission.tenant, "anabranch.step": node.id,
            "anabranch.attempt": number, "anabranch.step_type": node.uses, "anabranch.outcome": outcome,
        }  # fmt: skip
        failure = "" if after.status is StepStatus.SUCCEEDED else outcome
        if failure and after.error is not None:
            attributes["error.type"] = after.error.type
            failure = f"{after.error.type}: {after.error.message}"
        self._spans.write(
            f"attempt {node.id}",
            trace,
            span_id=trace_of_attempt(trace, run.id, node.id, number).span_id,
            start_ns=before.queued_at * _NS_PER_MS,
            end_ns=turn.at * _NS_PER_MS,
            attributes=attributes,
            links=(trace_of_attempt(trace, run.id, node.id, number - 1),) if number > 1 else (),
            error=failure,
        )

    def _run(self, run: Run, turn: Turn, decision: Decision, trace: TraceContext) -> None:
        submission, ended = run.submission, _last_event(decision)
        attributes: dict[str, Any] = {
            "anabranch.run.id": run.id, "anabranch.tenant": submission.tenant, "anabranch.pipeline": run.pipeline.name,
            "anabranch.outcome": ended, "anabranch.steps": len(run.steps),
        }  # fmt: skip
        if submission.revision is not None:
            attributes["anabranch.revision"] = submission.revision
        failure = "" if ended == _SUCCEEDED else ended
        if failure and turn.error is not None:
            attributes["error.type"] = turn.error.type
            failure = f"{turn.error.type}: {turn.error.message}"
        self._spans.write(
            f"run {run.pipeline.name}",
            trace._replace(span_id=submission.parent_span or ""),
            span_id=trace.span_id,
            start_ns=run.started_at * _NS_PER_MS,
            end_ns=turn.at * _NS_PER_MS,
            attributes=attributes,
            error=failure,
        )


def _goes_on(before: Step, after: Step) -> bool:
    return after.attempt == before.attempt and after.status in DISPATCHED


def _outcome(before: Step, after: Step) -> str:
    """Return what became of an attempt: its step's status, or why its step has another attempt at once."""
    if after.attempt == before.attempt:
        return "failed" if after.status is StepStatus.WAITING else after.status.value
    return "lost" if after.losses > before.losses else "given_back"


def _last_event(decision: Decision) -> str:
    for effect in reversed(decision.effects):
        if isinstance(effect, Append) and effect.channel is Channel.RUN_EVENTS:
            return type_said_in(effect.headers)
    return ""
