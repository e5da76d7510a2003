"""The spans of history: for each run in a batch, that its snapshot or its record was written. None where it is off."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from anabranch.services.history.events import EventRecord
from anabranch.shared.contracts.codec import header
from anabranch.shared.contracts.traces import trace_context_in, trace_of_run

if TYPE_CHECKING:
    from anabranch.shared.runtime.opentelemetry_spans import Spans

_NS_PER_MS: Final = 1_000_000


class BatchSpans:
    """Writes the spans of one loop, which `name` says what it does."""

    def __init__(self, spans: "Spans", name: str) -> None:
        self._spans = spans
        self._name = name

    def now_ns(self) -> int:
        """Return the time, nanoseconds since 1970."""
        return self._spans.now_ns()

    def written(self, records: Iterable[EventRecord], began_ns: int) -> None:
        """Write a span below each run's of which events were in a batch that is written now."""
        end_ns = self._spans.now_ns()
        of_runs: dict[bytes, list[EventRecord]] = {}
        for record in records:
            of_runs.setdefault(record.key or b"", []).append(record)
        for key, of_run in of_runs.items():
            with self._spans.failing_alone():
                self._write(key.decode(errors="replace"), of_run, began_ns, end_ns)

    def _write(self, run_id: str, records: list[EventRecord], began_ns: int, end_ns: int) -> None:
        said = trace_context_in(header(records[0].headers, "traceparent"))
        run = None if said is None else trace_of_run(run_id, said.trace_id, sampled=said.is_sampled)
        if run is None or not run.is_sampled:
            return
        self._spans.write(
            self._name,
            run,
            start_ns=began_ns,
            end_ns=end_ns,
            attributes={
                "anabranch.run.id": run_id,
                "anabranch.events": len(records),
                "anabranch.delay_ms": max(0, end_ns // _NS_PER_MS - records[0].timestamp),
            },
        )
