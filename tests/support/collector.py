"""An OpenTelemetry collector in the test's own process: it keeps the spans that it is sent by OTLP over HTTP."""

import asyncio
import gzip
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

PATH = "/v1/traces"


@dataclass(frozen=True)
class Link:
    """Another span that one names."""

    trace_id: str
    span_id: str


@dataclass(frozen=True)
class Received:
    """A span as it was sent; ids are hexadecimal, a parent is nothing where the trace begins."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    links: tuple[Link, ...]
    error: str
    flags: int


class Collector:
    """Listens while the context is entered. It answers `status`, and keeps what it answers 200 to."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.resources: list[dict[str, Any]] = []
        self.requests = 0
        self.status = 200
        self.headers_asked: list[dict[str, str]] = []  # of requests to /asked
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """What `OTEL_EXPORTER_OTLP_ENDPOINT` is set to."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, port: int = 0) -> None:
        """Listen, on the port of before if it is started again."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post(PATH, self._take)
        app.router.add_get("/asked", self._asked)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port or self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Listen no more."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def until(self, holds: Callable[[list[Received]], Any], within_s: float = 60.0) -> list[Received]:
        """Return the spans as soon as what is asked of them holds."""
        try:
            async with asyncio.timeout(within_s), self._changed:
                await self._changed.wait_for(lambda: holds(self.spans))
        except TimeoutError:
            lines = "\n".join(sorted(f"{s.trace_id} {s.service} {s.name}" for s in self.spans))
            raise AssertionError(f"these spans alone came within {within_s} s:\n{lines}") from None
        return list(self.spans)

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests += 1
        if self.status == 200:
            if request.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            sent = ExportTraceServiceRequest.FromString(body)
            async with self._changed:
                self._keep(sent)
                self._changed.notify_all()
        return web.Response(
            status=self.status, body=ExportTraceServiceResponse().SerializeToString(),
            content_type="application/x-protobuf",
        )  # fmt: skip

    async def _asked(self, request: web.Request) -> web.Response:
        self.headers_asked.append({name.lower(): value for name, value in request.headers.items()})
        return web.json_response({"value": 1})

    def _keep(self, sent: ExportTraceServiceRequest) -> None:
        for group in sent.resource_spans:
            resource = _values(group.resource.attributes)
            self.resources.append(resource)
            for scope in group.scope_spans:
                for span in scope.spans:
                    self.spans.append(_received(span, str(resource["service.name"])))


def _received(span: Any, service: str) -> Received:
    return Received(
        service, span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), span.kind,
        span.start_time_unix_nano, span.end_time_unix_nano, _values(span.attributes),
        tuple(Link(link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        span.status.message if span.status.code == 2 else "", span.flags,
    )  # fmt: skip


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
