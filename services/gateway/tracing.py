"""The span of a request, and the trace that what it submits goes on in; without tracing, its client's trace."""

from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from anabranch.services.gateway import keys
from anabranch.services.gateway.client import tenant_of
from anabranch.services.gateway.requests import trace_of
from anabranch.services.gateway.route_classes import RouteClass, class_of, route_of
from anabranch.shared.contracts.ids import trace_id_of_run
from anabranch.shared.contracts.traces import TraceContext

if TYPE_CHECKING:
    from anabranch.shared.runtime.opentelemetry_spans import OpenSpan, Spans

_METHOD_CHARS: Final = 16
_ERROR: Final = 500  # and above: a span of a server failed by its own fault (OpenTelemetry, HTTP spans)

_BEGAN_NS: Final = web.RequestKey("began_ns", int)
_SPAN: Final[web.RequestKey["OpenSpan"]] = web.RequestKey("span")
_SUBMITTED: Final[web.RequestKey["list[OpenSpan]"]] = web.RequestKey("submitted")


class RequestSpans:
    """Writes a span for each request, and for each run of a batch."""

    def __init__(self, spans: "Spans") -> None:
        self._spans = spans

    def middleware(self) -> Middleware:
        """Write the span of every request but those that tell of the gateway itself."""

        @web.middleware
        async def traced(request: web.Request, handler: Handler) -> web.StreamResponse:
            if class_of(request) is RouteClass.OPEN:
                return await handler(request)
            request[_BEGAN_NS] = self._spans.now_ns()
            status = 0
            try:
                response = await handler(request)
                status = response.status
                return response
            finally:
                with self._spans.failing_alone():
                    self._end(request, status)

        return traced

    def of_request(self, request: web.Request, *, run_id: str = "", span_id: str = "") -> TraceContext:
        """Begin the request's span, in the client's trace or else in the one of the run that it submits."""
        parent = trace_of(request) or (TraceContext(trace_id_of_run(run_id)) if run_id else None)
        method, route = request.method[:_METHOD_CHARS], route_of(request)
        attributes: dict[str, Any] = {
            "http.request.method": method, "http.route": route, "anabranch.request.id": request[keys.REQUEST_ID],
        }  # fmt: skip
        span = request[_SPAN] = self._spans.begin(
            f"{method} {route}", parent, start_ns=request[_BEGAN_NS], span_id=span_id, kind=self._spans.SERVER,
            attributes=attributes,
        )  # fmt: skip
        context = self._spans.context_of(span)
        request[keys.TRACE_ID] = context.trace_id
        return context

    def of_batched(self, request: web.Request, run_id: str) -> TraceContext:
        """Begin the span of one run of a batch: below the request's in a client's trace, else the first of its own."""
        span = request.get(_SPAN)
        batch = self.of_request(request) if span is None else self._spans.context_of(span)
        is_clients = trace_of(request) is not None
        submitted = self._spans.begin(
            "submit", batch if is_clients else TraceContext(trace_id_of_run(run_id)), kind=self._spans.PRODUCER,
            attributes={"anabranch.run.id": run_id, "anabranch.tenant": tenant_of(request)},
            links=() if is_clients else (batch,),
        )  # fmt: skip
        request.setdefault(_SUBMITTED, []).append(submitted)
        return self._spans.context_of(submitted)

    def _end(self, request: web.Request, status: int) -> None:
        if _SPAN not in request:
            self.of_request(request)
        for submitted in request.get(_SUBMITTED, ()):
            submitted.end()
        span = request[_SPAN]
        span.set_attribute("anabranch.tenant", tenant_of(request))
        if run_id := request.get(keys.RUN_ID):
            span.set_attribute("anabranch.run.id", run_id)
        if status:
            span.set_attribute("http.response.status_code", status)
        error = f"answered {status}" if status >= _ERROR else "" if status else "it was not answered"
        self._spans.end(span, error=error)


def trace_for(request: web.Request, run_id: str) -> TraceContext | None:
    """Return where the trace of the one run goes on that a request submits."""
    spans = request.app[keys.SPANS]
    return trace_of(request) if spans is None else spans.of_request(request, run_id=run_id)


def trace_for_batched(request: web.Request, run_id: str) -> TraceContext | None:
    """Return where the trace of one of the runs goes on that a request submits."""
    spans = request.app[keys.SPANS]
    return trace_of(request) if spans is None else spans.of_batched(request, run_id)


def trace_for_message(request: web.Request, span_id: str) -> TraceContext | None:
    """Return where the trace goes on of a message to a run; the message's own `span_id` is the request's."""
    spans = request.app[keys.SPANS]
    return trace_of(request) if spans is None else spans.of_request(request, span_id=span_id)
