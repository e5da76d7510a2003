"""One line and a count per request. No query, no header's value, no body and no secret is in it."""

import re
import time
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from structlog.typing import FilteringBoundLogger

from anabranch.services.gateway import keys
from anabranch.services.gateway.addresses import Addresses
from anabranch.services.gateway.client import client_of, tenant_of
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.requests import trace_id_of
from anabranch.services.gateway.route_classes import RouteClass, class_of, classify, route_of
from anabranch.shared.contracts.ids import new_run_id, trace_id_of_run

REQUEST_ID: Final = "X-Request-ID"
_SANE: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_METHOD_CHARS: Final = 16


class _Sample:
    """Says of which requests a line is written: evenly, without chance."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._due = 0.0

    def takes(self, status: int) -> bool:
        """Return whether this one is written; of what went wrong on our side all are, unless nothing is."""
        if status >= 500:
            return self._share > 0
        self._due += self._share
        if self._due < 1:
            return False
        self._due -= 1
        return True


def request_log(
    addresses: Addresses, log: FilteringBoundLogger, metrics: GatewayMetrics, *, share: float
) -> Middleware:
    """Name every request and its client, count and time it, and write its line."""
    sample = _Sample(share)

    @web.middleware
    async def logged(request: web.Request, handler: Handler) -> web.StreamResponse:
        began_s = time.perf_counter()
        classify(request)
        request_id = request[keys.REQUEST_ID] = request_id_of(request.headers.get(REQUEST_ID))
        request[keys.CLIENT] = addresses.client(request)
        request[keys.HEADERS] = {REQUEST_ID: request_id}
        response = await handler(request)
        seconds = time.perf_counter() - began_s
        route = route_of(request)
        trace_id = trace_id_said_of(request)
        waits = "wait=" in request.query_string
        metrics.answered(request.method, route, response.status, seconds, waits=waits, trace_id=trace_id)
        if class_of(request) is not RouteClass.OPEN and sample.takes(response.status):
            _write(log, request, response, route, seconds)
        return response

    return logged


def trace_id_said_of(request: web.Request) -> str:
    """Return the trace that a request is in: its client's, else that of its span or of its run, if there is one."""
    return trace_id_of(request) or request.get(keys.TRACE_ID) or trace_id_of_run(request.get(keys.RUN_ID, ""))


def request_id_of(given: str | None) -> str:
    """Return the client's own id when it is sane, else a new one."""
    return given if given is not None and _SANE.fullmatch(given) else new_run_id()


def _write(
    log: FilteringBoundLogger, request: web.Request, response: web.StreamResponse, route: str, seconds: float
) -> None:
    log.info(
        "answered",
        method=request.method[:_METHOD_CHARS],
        route=route,
        status=response.status,
        duration_ms=round(1000 * seconds, 3),
        bytes=response.content_length or 0,
        client=client_of(request),
        tenant=tenant_of(request),
        request_id=request[keys.REQUEST_ID],
        run_id=request.get(keys.RUN_ID, ""),
        trace_id=trace_id_said_of(request),
    )
