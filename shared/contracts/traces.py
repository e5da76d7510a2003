"""Where a trace goes on: W3C Trace Context, and the spans that stand for runs and attempts.

The ids of these spans are derived, as every id is: whoever reads a record knows which span it goes on from, and a
decision that is made again after a crash writes the same span again.
"""

import re
from typing import Final, NamedTuple

from anabranch.shared.contracts.codec import trace_id_or
from anabranch.shared.contracts.ids import attempt_id, span_id

_TRACE_ID: Final = re.compile(r"(?!0{32})[0-9a-f]{32}")
_TRACEPARENT: Final = re.compile(  # of version 00, which has 55 characters, and of later ones, which may have more
    r"(?!ff|00.{54})[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_SAMPLED: Final = 1  # of the flags


class TraceContext(NamedTuple):
    """A trace, the span to go on from, and whether spans of the trace are written; without a span the trace begins."""

    trace_id: str
    span_id: str = ""
    is_sampled: bool = True

    @property
    def traceparent(self) -> str:
        """The header that hands it on (W3C Trace Context §3.2)."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.is_sampled else '00'}"


def trace_context_in(traceparent: str | None) -> TraceContext | None:
    """Return what a `traceparent` says (W3C Trace Context §3.2), or None when it is none."""
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    return TraceContext(match[1], match[2], bool(int(match[3], 16) & _SAMPLED)) if match else None


def trace_of_run(run_id: str, trace_id: str = "", *, sampled: bool | None = None) -> TraceContext | None:
    """Return the context of the run's own span; None for a trace id that nothing can be written under."""
    trace_id = trace_id_or(trace_id, run_id)
    return TraceContext(trace_id, span_id(run_id), sampled is not False) if _TRACE_ID.fullmatch(trace_id) else None


def trace_of_attempt(run: TraceContext, run_id: str, step: str, attempt: int) -> TraceContext:
    """Return the context of an attempt's span, which the `traceparent` of its command names."""
    return run._replace(span_id=span_id(attempt_id(run_id, step, attempt)))
