"""The trace that a submission goes on in, with tracing and without, and the spans of requests."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from multidict import CIMultiDict

from anabranch.services.gateway.tracing import RequestSpans
from anabranch.shared.contracts.codec import header
from anabranch.shared.contracts.ids import span_id
from anabranch.shared.contracts.traces import TraceContext, trace_context_in
from anabranch.shared.runtime.opentelemetry_spans import open_spans
from anabranch.shared.runtime.tracing import Sent
from tests.support.collector import Collector

from .fakes import DIAMOND, Bench, a_gateway

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@asynccontextmanager
async def traced(monkeypatch: pytest.MonkeyPatch, **more: str) -> AsyncIterator[tuple[Bench, Collector]]:
    """Provide a gateway that writes spans, and who is sent them; all are there when the context ends."""
    async with Collector() as collector:
        for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **more}.items():
            monkeypatch.setenv(name, value)
        spans = open_spans("gateway", "here-1", os.environ, structlog.get_logger(), Sent())
        async with a_gateway(spans=RequestSpans(spans), request_log=1) as bench:
            yield bench, collector
        await spans.close()


def record_of(bench: Bench, number: int = -1) -> TraceContext | None:
    """Return what the `traceparent` of an appended record says."""
    return trace_context_in(header(bench.log.headers[number], "traceparent"))


async def test_without_tracing_a_run_goes_on_below_its_clients_span() -> None:
    """Whoever writes spans behind the gateway knows the parent, and whether the client samples."""
    async with a_gateway() as bench:
        await bench.submit(headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
        await bench.submit(headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
        await bench.submit()
    sampled, unsampled, alone = bench.log.submitted
    assert (sampled.trace_id, sampled.parent_span, sampled.sampled) == (TRACE, SPAN, None)
    assert (unsampled.trace_id, unsampled.parent_span, unsampled.sampled) == (TRACE, SPAN, False)
    assert (alone.trace_id, alone.parent_span, alone.sampled) == (alone.run_id.replace("-", ""), None, None)
    assert record_of(bench, 0) == TraceContext(TRACE, span_id(sampled.run_id))
    assert record_of(bench, 1) == TraceContext(TRACE, span_id(unsampled.run_id), False)


async def test_of_two_traces_of_a_client_neither_is_heeded() -> None:
    """Who sent which of them, nobody can tell."""
    two = CIMultiDict((("traceparent", f"00-{TRACE}-{SPAN}-01"), ("traceparent", f"00-{TRACE[::-1]}-{SPAN}-01")))
    async with a_gateway() as bench:
        await bench.client.post("/v1/runs", json={"definition": DIAMOND}, headers=two)
    (submitted,) = bench.log.submitted
    assert (submitted.trace_id, submitted.parent_span) == (submitted.run_id.replace("-", ""), None)


async def test_a_submission_goes_on_below_the_span_of_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async with traced(monkeypatch) as (bench, collector):
        await bench.submit(headers={"traceparent": f"00-{TRACE}-{SPAN}-01", "X-Request-ID": "mine"})
        await bench.submit()
        await bench.submit({"name": "nothing in it"})
    first, second = bench.log.submitted
    of_first, of_second, refused = sorted(collector.spans, key=lambda span: span.start_ns)
    assert (of_first.trace_id, of_first.parent_id, of_first.span_id) == (TRACE, SPAN, first.parent_span)
    assert (of_second.trace_id, of_second.parent_id, of_second.span_id) == (second.trace_id, "", second.parent_span)
    assert of_first.attributes == {
        "http.request.method": "POST", "http.route": "/v1/runs", "http.response.status_code": 202,
        "anabranch.request.id": "mine", "anabranch.run.id": first.run_id, "anabranch.tenant": "default",
    }  # fmt: skip
    assert refused.attributes["http.response.status_code"] == 422
    assert (refused.error, of_first.error) == ("", "")  # it is the client's fault


async def test_a_request_that_fails_on_our_side_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async with traced(monkeypatch) as (bench, collector):
        bench.log.error = RuntimeError("broken")
        assert (await bench.submit()).status == 500
    (span,) = collector.spans
    assert span.error == "answered 500"


async def test_what_is_asked_of_the_gateway_itself_has_no_span(monkeypatch: pytest.MonkeyPatch) -> None:
    async with traced(monkeypatch) as (bench, collector):
        for path in ("/healthz", "/metrics", "/openapi.json", "/v1/step-types"):
            assert (await bench.client.get(path)).status == 200
    assert [span.name for span in collector.spans] == ["GET /v1/step-types"]


@pytest.mark.parametrize(
    ("sampler", "client", "sampled"),
    [
        ("parentbased_always_on", "00", False),
        ("parentbased_always_off", "", False),
        ("parentbased_always_off", "01", None),
        ("always_off", "01", False),
        ("always_on", "00", None),
    ],
)
async def test_the_sampler_decides_for_the_run(
    sampler: str, client: str, sampled: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And every record says what it decided."""
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-{client}"} if client else {}
    async with traced(monkeypatch, OTEL_TRACES_SAMPLER=sampler) as (bench, collector):
        await bench.submit(headers=headers)
    (submitted,) = bench.log.submitted
    record: Any = record_of(bench)
    assert submitted.sampled is sampled
    assert record.is_sampled is (sampled is None)
    assert len(collector.spans) == (sampled is None)


async def test_the_line_of_a_request_has_the_trace_of_its_span(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is about no run."""
    async with traced(monkeypatch) as (bench, collector):
        with structlog.testing.capture_logs() as lines:
            await bench.client.get("/v1/step-types")
    (span,) = collector.spans
    assert [line["trace_id"] for line in lines if line["event"] == "answered"] == [span.trace_id]
