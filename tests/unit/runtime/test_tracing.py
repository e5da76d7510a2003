"""Tracing is off unless it is switched on; what is wrong is said at once; a collector that is away costs spans only."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from anabranch.shared.contracts.ids import new_run_id, trace_id_of_run
from anabranch.shared.contracts.traces import TraceContext, trace_context_in, trace_of_run
from anabranch.shared.runtime import opentelemetry_spans as module
from anabranch.shared.runtime.errors import UnusableSettings
from anabranch.shared.runtime.opentelemetry_spans import Spans, open_spans
from anabranch.shared.runtime.tracing import Sent, is_on, outgoing_headers, start_tracing
from tests.support.collector import Collector

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = TraceContext(TRACE, "00f067aa0ba902b7")


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str, dict[str, Any]]] = []

    def info(self, event: str, **values: Any) -> None:
        self.said.append(("info", event, values))

    def warning(self, event: str, **values: Any) -> None:
        self.said.append(("warning", event, values))

    def events(self) -> list[str]:
        return [event for _, event, _ in self.said]


class Counts(Sent):
    """Counts what becomes of spans."""

    def __init__(self) -> None:
        self.sent = self.dropped = 0

    def spans_sent(self, count: int) -> None:
        self.sent += count

    def spans_dropped(self, count: int) -> None:
        self.dropped += count


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with Collector() as collector:
        yield collector


@contextmanager
def opened(url: str, log: Lines, counts: Counts, monkeypatch: pytest.MonkeyPatch, **more: str) -> Iterator[Spans]:
    """Spans that go to this address."""
    for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "20", **more}.items():
        monkeypatch.setenv(name, value)
    spans = open_spans("test", "here-1", os.environ, log, counts)  # type: ignore[arg-type]
    try:
        yield spans
    finally:
        spans.close_now()


@pytest.mark.parametrize(
    ("environment", "on"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, False),
        ({"OTEL_SDK_DISABLED": "false", "OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
    ],
)
def test_the_switch(environment: Mapping[str, str], on: bool) -> None:
    """An endpoint or an exporter is one; other variables alone are none."""
    assert is_on(environment) is on


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("OTEL_TRACES_EXPORTER", "jaeger", "otlp"),
        ("OTEL_SDK_DISABLED", "yes", "true or false"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "http://127.0.0.1:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://[", "http://127.0.0.1:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5", "from 0 to 1"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many", "whole number"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0", "whole number"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "seconds"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip", "gzip"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_by_its_name(name: str, value: str, words: str) -> None:
    environment = {"OTEL_TRACES_EXPORTER": "otlp", name: value}
    with pytest.raises(UnusableSettings, match=name) as refused:
        start_tracing("test", "here-1", environment, Lines())  # type: ignore[arg-type]
    assert words in str(refused.value)


def test_a_batch_larger_than_the_queue_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"OTEL_BSP_MAX_QUEUE_SIZE": "10", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "20"}
    with (
        pytest.raises(UnusableSettings, match="cannot be sent"),
        opened("http://127.0.0.1:1", Lines(), Counts(), monkeypatch, **more),
    ):
        pass


def test_a_limit_that_is_no_number_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry itself finds out."""
    more = {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "few"}
    with (
        pytest.raises(UnusableSettings, match="OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"),
        opened("http://127.0.0.1:1", Lines(), Counts(), monkeypatch, **more),
    ):
        pass


@pytest.mark.parametrize(("service", "takes"), [("gateway", True), ("orchestrator", False), ("steps.http", False)])
def test_only_the_gateway_samples_what_was_not(service: str, takes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `always_on` is about clients; behind it that would take runs that the gateway has not taken."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    spans = open_spans(service, "here-1", os.environ, Lines(), Counts())  # type: ignore[arg-type]
    span = spans.begin("below", PARENT._replace(is_sampled=False))
    assert spans.context_of(span).is_sampled is takes
    assert spans.context_of(spans.begin("below", PARENT)).is_sampled
    spans.close_now()


def test_without_the_extra_the_error_says_what_to_install() -> None:
    """In an interpreter that cannot find OpenTelemetry."""
    script = (
        "import sys, structlog; sys.modules['opentelemetry'] = None\n"
        "from anabranch.shared.runtime.tracing import start_tracing\n"
        "start_tracing('test', 'x', {'OTEL_TRACES_EXPORTER': 'otlp'}, structlog.get_logger())"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)
    assert "UnusableSettings: tracing is on, and OpenTelemetry is not installed" in ended.stderr
    assert "anabranch[tracing]" in ended.stderr


def test_where_tracing_is_off_nothing_is_imported_and_no_header_goes_out() -> None:
    script = (
        "import sys, structlog\n"
        "from anabranch.shared.runtime.tracing import outgoing_headers, start_tracing\n"
        "assert start_tracing('test', 'x', {}, structlog.get_logger()) is None\n"
        "assert outgoing_headers() == {}\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert outgoing_headers() == {}


async def test_a_span_has_the_ids_times_and_parent_it_is_told(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without a parent's span begins the trace that it is told; one without a trace begins another."""
    log, counts = Lines(), Counts()
    with opened(collector.url, log, counts, monkeypatch, OTEL_SERVICE_NAME="mine") as spans:
        spans.write(
            "told", PARENT, span_id="00000000000000aa", start_ns=1_000, end_ns=2_000, attributes={"a": 1},
            links=(TraceContext("a" * 32, "b" * 16),), error="why",
        )  # fmt: skip
        spans.write("first", TraceContext("c" * 32), end_ns=time.time_ns())
        spans.write("alone", None, end_ns=time.time_ns())
        spans.write("unsampled", PARENT._replace(is_sampled=False), end_ns=time.time_ns())
        received = await collector.until(lambda spans: len(spans) >= 3, 10)
    by_name = {span.name: span for span in received}
    assert by_name.keys() == {"told", "first", "alone"}
    told = by_name["told"]
    assert (told.trace_id, told.span_id, told.parent_id) == (TRACE, "00000000000000aa", PARENT.span_id)
    assert (told.start_ns, told.end_ns, told.attributes, told.error) == (1_000, 2_000, {"a": 1}, "why")
    assert [(link.trace_id, link.span_id) for link in told.links] == [("a" * 32, "b" * 16)]
    assert (by_name["first"].trace_id, by_name["first"].parent_id) == ("c" * 32, "")
    assert by_name["alone"].trace_id not in (TRACE, "c" * 32)
    assert told.service == "mine"
    assert collector.resources[-1]["service.instance.id"] == "here-1"
    assert counts.sent == 3
    assert counts.dropped == 0


async def test_the_current_span_is_what_goes_out(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(collector.url, Lines(), Counts(), monkeypatch) as spans:
        assert spans.outgoing_headers() == {}
        span = spans.begin("outer", PARENT)
        with spans.current(span):
            sent = trace_context_in(spans.outgoing_headers()["traceparent"])
        assert sent == spans.context_of(span)
        assert sent is not None
        assert sent.trace_id == TRACE
        assert spans.outgoing_headers() == {}
        span.end()


def test_a_share_of_runs_is_that_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a UUID the upper two of the lower 64 bits are fixed: by these alone a quarter would be none."""
    more = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}
    with opened("http://127.0.0.1:1", Lines(), Counts(), monkeypatch, **more) as spans:
        ids = [new_run_id() for _ in range(2_000)]
        taken = [spans.context_of(spans.begin("run", TraceContext(trace_id_of_run(run)))).is_sampled for run in ids]
        assert 400 < sum(taken) < 600
        below = spans.begin("below", trace_of_run(ids[0], sampled=False))
        assert not spans.context_of(below).is_sampled


async def test_what_the_collector_does_not_take_is_dropped_and_counted_in_two_lines(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits: writing far more spans than may wait takes no longer than writing them."""
    monkeypatch.setattr(module, "QUIET_S", 0.0)
    log, counts = Lines(), Counts()
    await collector.stop()
    more = {"OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_EXPORTER_OTLP_TIMEOUT": "0.2"}
    with opened(collector.url, log, counts, monkeypatch, **more) as spans:
        began = time.monotonic()
        for _ in range(1_000):
            spans.write("lost", PARENT, end_ns=time.time_ns())
        took = time.monotonic() - began
        async with asyncio.timeout(10):
            while counts.dropped < 1_000:
                await asyncio.sleep(0.01)
        assert took < 2
        assert log.events() == ["tracing is on", "spans are dropped"]
        assert log.said[1][2]["endpoint"] == collector.url
        await collector.start()
        spans.write("found", PARENT, end_ns=time.time_ns())
        await collector.until(lambda spans: spans, 10)
        async with asyncio.timeout(10):
            while len(log.said) < 3:
                await asyncio.sleep(0.01)
    assert log.events() == ["tracing is on", "spans are dropped", "spans are sent again"]
    assert log.said[2][2]["dropped"] == 1_000
    assert (counts.sent, counts.dropped) == (1, 1_000)


async def test_closing_waits_for_no_collector_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes connections and says nothing."""
    connections: list[asyncio.StreamWriter] = []

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await reader.read()

    monkeypatch.setattr(module, "_CLOSE_S", 0.3)
    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with opened(f"http://127.0.0.1:{port}", Lines(), Counts(), monkeypatch, OTEL_EXPORTER_OTLP_TIMEOUT="3") as spans:
        spans.write("stuck", PARENT, end_ns=time.time_ns())
        began = time.monotonic()
        await spans.close()
        assert time.monotonic() - began < 2
    server.close()
    for connection in connections:
        connection.close()
        await connection.wait_closed()


async def test_closing_starts_no_thread(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12.0 and 3.12.1 start none at the end of the interpreter, when a handler's process sends the rest."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if not thread.name.startswith("asyncio"):  # this test's own
            raise RuntimeError("can't create new thread at interpreter shutdown")
        start(thread)

    monkeypatch.setattr(module, "_CLOSE_S", 60.0)
    with opened(collector.url, Lines(), Counts(), monkeypatch, OTEL_BSP_SCHEDULE_DELAY="600000") as spans:
        spans.write("last", PARENT, end_ns=time.time_ns())
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            await spans.close()
        assert [span.name for span in collector.spans] == ["last"]


async def test_the_last_spans_are_given_time_although_some_were_dropped_long_ago(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No span has been sent since that would have said that the collector is back."""
    counts = Counts()
    await collector.stop()
    more = {"OTEL_EXPORTER_OTLP_TIMEOUT": "0.2", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1"}
    with opened(collector.url, Lines(), counts, monkeypatch, **more, OTEL_BSP_SCHEDULE_DELAY="600000") as spans:
        spans.write("lost", PARENT, end_ns=time.time_ns())
        async with asyncio.timeout(30):
            while not counts.dropped:
                await asyncio.sleep(0.01)
        monkeypatch.setattr(module, "QUIET_S", 0.0)  # it is long ago
        monkeypatch.setattr(module, "_CLOSE_S", 60.0)
        await collector.start()
        spans.write("last", PARENT, end_ns=time.time_ns())
        await spans.close()
        assert counts.sent == 1


def test_what_cannot_be_written_is_counted_and_said_and_goes_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    log, counts = Lines(), Counts()
    with opened("http://127.0.0.1:1", log, counts, monkeypatch) as spans:
        for _ in range(2):
            with spans.failing_alone():
                raise ValueError("no \udcff")
    assert counts.dropped == 2
    assert log.events() == ["tracing is on", "spans are dropped"]
    assert log.said[1][2]["why"] == "they cannot be written: ValueError('no \\udcff')"


async def test_the_reason_is_said_without_the_query_of_the_collectors_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only that the exporter has given up."""
    log, counts = Lines(), Counts()
    more = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces?token=hush"}
    with opened("", log, counts, monkeypatch, **more, OTEL_EXPORTER_OTLP_TIMEOUT="2") as spans:
        spans.write("lost", PARENT, end_ns=time.time_ns())
        async with asyncio.timeout(30):
            while not counts.dropped or len(log.said) < 2:
                await asyncio.sleep(0.01)
    assert "Connection refused" in log.said[1][2]["why"]
    assert "hush" not in str(log.said)
