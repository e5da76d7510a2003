"""Spans by OpenTelemetry's SDK: imported only where tracing is on, see `tracing.py`.

Spans are sent by a thread of their own, in batches, from a queue that has a limit. What does not fit, or what the
collector does not take, is dropped and counted; one line says when that begins, and one when it is over.
"""

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from structlog.typing import FilteringBoundLogger

from anabranch import __version__
from anabranch.shared.contracts.text import writable
from anabranch.shared.contracts.traces import TraceContext
from anabranch.shared.runtime.errors import UnusableSettings
from anabranch.shared.runtime.tracing import BATCH, QUEUE, SAMPLER, SAMPLER_ARGUMENT, Sent, shown_endpoint

QUIET_S: Final = 15.0  # without a span dropped: then it is over
_CLOSE_S: Final = 2.0  # for what is still to be sent when a service stops
_QUEUE_SPANS: Final = 2048  # as the specification has it
_BATCH_SPANS: Final = 512
_WHY_CHARS: Final = 500
_QUERY: Final = re.compile(r"\?\S+")
_EXPORTERS_LOGGERS: Final = ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal")

Attributes = Mapping[str, str | int | float | bool]
OpenSpan = Span  # services, which do not import OpenTelemetry, name it so


class Spans:
    """Writes spans whose trace, parent and times are told, in whatever process the parent was written.

    Services reach OpenTelemetry through this alone, so that none imports it where tracing is off.
    """

    SERVER: Final = SpanKind.SERVER
    CONSUMER: Final = SpanKind.CONSUMER
    PRODUCER: Final = SpanKind.PRODUCER

    def __init__(self, provider: TracerProvider, drops: "_Drops", *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._provider = provider
        self._drops = drops
        self._tracer = provider.get_tracer("anabranch", __version__)
        self.now_ns = now_ns
        self._is_closing = threading.Event()
        # Started now: at the end of the interpreter, when `atexit` closes, Python 3.12.0 and 3.12.1 start none.
        self._closer = threading.Thread(target=self._close_when_told, name="close tracing", daemon=True)
        self._closer.start()

    def begin(
        self,
        name: str,
        parent: TraceContext | None,
        *,
        start_ns: int | None = None,
        span_id: str = "",
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes | None = None,
        links: Sequence[TraceContext] = (),
    ) -> Span:
        """Return a span that has begun; without a parent its trace has an id of chance. It records nothing when its
        trace is not sampled."""
        _given.trace_id = int(parent.trace_id, 16) if parent else 0
        _given.span_id = int(span_id, 16) if span_id else 0
        try:
            return self._tracer.start_span(
                name,
                context=_context_of(parent),
                kind=kind,
                attributes=attributes,
                links=[Link(_span_context_of(each)) for each in links],
                start_time=start_ns,
            )
        finally:
            _given.trace_id = _given.span_id = 0

    def write(self, name: str, parent: TraceContext | None, *, end_ns: int, error: str = "", **begun: Any) -> None:
        """Write a span that is over; `error` says why it failed."""
        self.end(self.begin(name, parent, **begun), end_ns=end_ns, error=error)

    def end(self, span: Span, *, end_ns: int | None = None, error: str = "") -> None:
        """End a span; `error` says why it failed."""
        if error:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(end_ns)

    def context_of(self, span: Span) -> TraceContext:
        """Return where the trace goes on below a span."""
        context = span.get_span_context()
        return TraceContext(f"{context.trace_id:032x}", f"{context.span_id:016x}", bool(context.trace_flags.sampled))

    @contextmanager
    def current(self, span: Span) -> Iterator[None]:
        """Have the span be what code in here finds as the current one."""
        token = attach(trace.set_span_in_context(span))
        try:
            yield
        finally:
            detach(token)

    @contextmanager
    def failing_alone(self) -> Iterator[None]:
        """Have what is raised in here cost the spans alone: it is counted and said as their loss, and goes no further.

        Whoever decides, projects or runs a handler would stop of it, and again at the same record.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001  whatever writing spans raises, a processor of a handler's own too
            self._drops.dropped(1, f"they cannot be written: {writable(repr(error))}")

    def outgoing_headers(self) -> dict[str, str]:
        """Return the `traceparent` of the current span, if there is one."""
        span = trace.get_current_span()
        return {"traceparent": self.context_of(span).traceparent} if span.get_span_context().is_valid else {}

    def close_now(self) -> None:
        """Send what is left, if the collector takes it soon: a thread that waits for one does not hold up the end."""
        self._is_closing.set()
        self._closer.join(0.0 if self._drops.is_dropping else _CLOSE_S)

    async def close(self) -> None:
        """Do so without holding up the event loop."""
        await asyncio.to_thread(self.close_now)

    def _close_when_told(self) -> None:
        self._is_closing.wait()
        self._provider.shutdown()


def open_spans(
    service: str, instance: str, environment: Mapping[str, str], log: FilteringBoundLogger, sent: Sent
) -> Spans:
    """Return what this process writes spans with, and make it OpenTelemetry's own. Raises `UnusableSettings`."""
    why = _WhyNotSent()
    for name in _EXPORTERS_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [why], False
    drops = _Drops(shown_endpoint(environment), why, log, sent)
    waiting = _Waiting(int(environment.get(QUEUE) or _QUEUE_SPANS), drops)
    batch = int(environment.get(BATCH) or min(_BATCH_SPANS, waiting.limit))
    try:
        provider = TracerProvider(
            sampler=_sampler_of(environment, decides=service == "gateway"),
            resource=_resource(service, instance),
            id_generator=_Ids(),
            shutdown_on_exit=False,  # it would wait for the collector; `close` does, and not for long
        )
        processor = BatchSpanProcessor(
            _Exporter(OTLPSpanExporter(), waiting), max_queue_size=waiting.limit, max_export_batch_size=batch
        )
    except (ValueError, OSError) as error:  # a batch larger than the queue, a limit that is no number
        raise UnusableSettings(f"traces cannot be sent: {error}") from error
    provider.add_span_processor(_Bounded(processor, waiting))
    trace.set_tracer_provider(provider)
    log.info("tracing is on", endpoint=drops.endpoint, sampler=provider.sampler.get_description())
    return Spans(provider, drops)


def _resource(service: str, instance: str) -> Resource:
    """Return who writes the spans; what the environment says of it, counts."""
    ours = {
        "service.namespace": "anabranch", "service.name": f"anabranch.{service}", "service.instance.id": instance,
        "service.version": __version__,
    }  # fmt: skip
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


def _context_of(parent: TraceContext | None) -> Context:
    if parent is None or not parent.span_id:
        return Context()
    return trace.set_span_in_context(NonRecordingSpan(_span_context_of(parent)), Context())


def _span_context_of(context: TraceContext) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if context.is_sampled else TraceFlags.DEFAULT)
    return SpanContext(int(context.trace_id, 16), int(context.span_id, 16), is_remote=True, trace_flags=flags)


# --- ids and sampling -------------------------------------------------------------------------------------------------


class _Given(threading.local):
    """The ids of the span that this thread is about to begin; 0 is any."""

    trace_id = 0
    span_id = 0


_given: Final = _Given()


class _Ids(RandomIdGenerator):
    """Makes ids of chance, unless the span that begins has been given its own."""

    def generate_trace_id(self) -> int:
        return _given.trace_id or super().generate_trace_id()

    def generate_span_id(self) -> int:
        return _given.span_id or super().generate_span_id()

    def is_trace_id_random(self) -> bool:
        return False  # that of a run is its id


class _EvenShare(TraceIdRatioBased):
    """Takes a share of the traces by a hash of their ids: 64 bits of a run's id, a UUID, are not evenly spread."""

    def should_sample(self, parent_context: Context | None, trace_id: int, *rest: Any, **named: Any) -> SamplingResult:
        spread = int.from_bytes(blake2b(trace_id.to_bytes(16, "big"), digest_size=16).digest(), "big")
        return super().should_sample(parent_context, spread, *rest, **named)


def _sampler_of(environment: Mapping[str, str], *, decides: bool) -> Sampler:
    """Return what says which traces are sampled. Who does not decide for a run takes none that the gateway did not."""
    kind = environment.get(SAMPLER, "").strip().lower() or "parentbased_always_on"
    share = float(environment.get(SAMPLER_ARGUMENT, "").strip() or 1) if kind.endswith("traceidratio") else 1.0
    roots = {"always_on": ALWAYS_ON, "always_off": ALWAYS_OFF, "traceidratio": _EvenShare(share)}
    root = roots[kind.removeprefix("parentbased_")]
    if kind.startswith("parentbased_"):
        return ParentBased(root)
    return root if decides else ParentBased(root, remote_parent_sampled=root, local_parent_sampled=root)


# --- sending ----------------------------------------------------------------------------------------------------------


class _WhyNotSent(logging.Handler):
    """Keeps what the exporter said first since it last sent some: later it says only that it has given up.

    It would be a line for every try. The query of the collector's URL, which may be a credential, is left out.
    """

    said = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.said = self.said or _QUERY.sub("?…", writable(record.getMessage()))[:_WHY_CHARS]


class _Drops:
    """Counts what is sent and what is dropped; says when dropping begins, and when it is over."""

    def __init__(self, endpoint: str, why: _WhyNotSent, log: FilteringBoundLogger, sent: Sent) -> None:
        self.endpoint = endpoint
        self._why = why
        self._log = log
        self._sent = sent
        self._lock = threading.Lock()
        self._count = 0
        self._first_s = self._last_s = 0.0

    @property
    def is_dropping(self) -> bool:
        """Whether spans were dropped lately."""
        return self._count > 0 and time.monotonic() - self._last_s < QUIET_S

    def dropped(self, count: int, why: str) -> None:
        """So many are lost."""
        self._sent.spans_dropped(count)
        now_s = time.monotonic()
        with self._lock:
            begins = not self._count
            self._count += count
            self._last_s = now_s
            if begins:
                self._first_s = now_s
        if begins:
            self._log.warning("spans are dropped", endpoint=self.endpoint, why=self._why.said or why)

    def sent(self, count: int) -> None:
        """The collector took so many."""
        self._sent.spans_sent(count)
        self._why.said = ""
        with self._lock:
            if not self._count or time.monotonic() - self._last_s < QUIET_S:
                return
            dropped, seconds = self._count, self._last_s - self._first_s
            self._count = 0
        self._log.info("spans are sent again", endpoint=self.endpoint, dropped=dropped, for_s=round(seconds, 1))


class _Waiting:
    """How many spans wait to be sent, of as many as may."""

    def __init__(self, limit: int, drops: _Drops) -> None:
        self.limit = limit
        self._drops = drops
        self._lock = threading.Lock()
        self._count = 0

    def has_room(self) -> bool:
        """Count one more, or drop it. Any thread may ask."""
        with self._lock:
            has_room = self._count < self.limit
            self._count += has_room
        if not has_room:
            self._drops.dropped(1, f"more come than are sent: {self.limit} wait")
        return has_room

    def over(self, count: int, why_not: str) -> None:
        """So many wait no more: they are sent, or it is said why not."""
        with self._lock:
            self._count -= count
        if why_not:
            self._drops.dropped(count, why_not)
        else:
            self._drops.sent(count)


class _Bounded(SpanProcessor):
    """Hands spans to the thread that sends them, as long as it keeps up."""

    def __init__(self, processor: BatchSpanProcessor, waiting: _Waiting) -> None:
        self._processor: Any = processor  # whose methods have no types
        self._waiting = waiting

    def on_end(self, span: ReadableSpan) -> None:
        if span.context.trace_flags.sampled and self._waiting.has_room():
            self._processor.on_end(span)

    def shutdown(self) -> None:
        self._processor.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return bool(self._processor.force_flush(timeout_millis))


class _Exporter(SpanExporter):
    """Sends batches, in the thread of the processor, and says what became of them."""

    def __init__(self, exporter: SpanExporter, waiting: _Waiting) -> None:
        self._exporter = exporter
        self._waiting = waiting

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        why = "the collector did not take them"
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001  a certificate that is not there, for instance: the thread goes on
            result, why = SpanExportResult.FAILURE, repr(error)
        self._waiting.over(len(spans), "" if result is SpanExportResult.SUCCESS else why)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
