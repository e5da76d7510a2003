"""The spans of an attempt at its worker: how long its command waited, and its handler, whose span is the current one.

Both stand below the attempt's span, which the orchestrator writes when it decides on the answer. Nothing of this is
called where tracing is off.
"""

import asyncio
from typing import TYPE_CHECKING, Any, Final

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.guard import Failure, Outcome, hidden_failure
from anabranch.shared.contracts.traces import trace_of_attempt, trace_of_run

if TYPE_CHECKING:
    from anabranch.services.steps.worker import Invoke
    from anabranch.shared.runtime.opentelemetry_spans import OpenSpan, Spans

_NS_PER_MS: Final = 1_000_000
_ENDED: Final = "ended by its worker: cancelled, timed out, or its lease could not be renewed"


class TracedInvoke:
    """Runs an attempt within its handler's span."""

    def __init__(self, invoke: "Invoke", spans: "Spans", uses: str) -> None:
        self._invoke = invoke
        self._spans = spans
        self._uses = uses

    async def __call__(self, given: object, context: StepContext) -> Outcome:
        span = None
        with self._spans.failing_alone():
            span = self._begin(context)
        if span is None:
            return await self._invoke(given, context)
        error = _ENDED
        try:
            with self._spans.current(span):
                outcome = await self._invoke(given, context)
            error = ""
            with self._spans.failing_alone():
                error = _error_of(outcome, context, span)
        except asyncio.CancelledError:
            raise
        except Exception as raised:
            error = type(raised).__name__
            raise
        finally:
            with self._spans.failing_alone():
                self._spans.end(span, error=error)
        return outcome

    def _begin(self, context: StepContext) -> "OpenSpan | None":
        """Write the span of the wait, and begin the handler's; None for a trace whose id is none."""
        run = trace_of_run(context.run_id, context.trace_id, sampled=context.is_sampled)
        if run is None:
            return None
        attempt = trace_of_attempt(run, context.run_id, context.step, context.attempt)
        attributes: dict[str, Any] = {
            "anabranch.run.id": context.run_id, "anabranch.tenant": context.tenant, "anabranch.step": context.step,
            "anabranch.attempt": context.attempt, "anabranch.step_type": self._uses,
        }  # fmt: skip
        now_ns = self._spans.now_ns()
        queued_ns = min(context.caused_at_ms * _NS_PER_MS, now_ns)  # the brokers' clock may be ahead of this host's
        self._spans.write("queue wait", attempt, start_ns=queued_ns, end_ns=now_ns, attributes=attributes)
        return self._spans.begin(
            f"handler {self._uses}", attempt, start_ns=now_ns, kind=self._spans.CONSUMER, attributes=attributes
        )


def _error_of(outcome: Outcome, context: StepContext, span: "OpenSpan") -> str:
    """Return how an attempt failed, without the secrets it was given; nothing when it did not."""
    if not isinstance(outcome, Failure):
        return ""
    failure = hidden_failure(outcome, context.hiding)
    span.set_attribute("error.type", failure.error_type)
    return f"{failure.error_type}: {failure.message}"
