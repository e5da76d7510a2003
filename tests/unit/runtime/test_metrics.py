"""Metrics: names, labels that no client can make, and what Prometheus reads."""

import runpy
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.history.metrics import HistoryMetrics
from anabranch.services.orchestrator.metrics import OrchestratorMetrics
from anabranch.services.steps.metrics import WorkerMetrics
from anabranch.shared.runtime.metrics import AtMost, OneOf, ServiceMetrics, new_registry
from anabranch.shared.runtime.ops import Readiness, add_ops_routes
from anabranch.shared.runtime.process_metrics import ProcessMetrics

DOCS = Path(__file__).parents[3] / "docs"
_OUTCOME = {"outcome": OneOf("ok")}
_OF_CLIENTS = {"tenant", "run_id", "run", "pipeline", "step", "key", "client", "id", "path", "trace_id"}
_EXPECTED = {
    "api_requests_total", "api_request_duration_seconds", "pipeline_duration_seconds", "active_pipelines",
    "cache_hits_total", "cache_misses_total",
}  # fmt: skip


def all_metrics() -> list[ServiceMetrics]:
    return [
        ProcessMetrics("gateway", CollectorRegistry()),
        GatewayMetrics(CollectorRegistry()),
        OrchestratorMetrics(CollectorRegistry()),
        WorkerMetrics("sql", CollectorRegistry()),
        HistoryMetrics(CollectorRegistry()),
    ]


def test_names_begin_with_the_service() -> None:
    registry = CollectorRegistry()
    metrics = ServiceMetrics("steps-http", registry)
    metrics.counter("handled", "Commands handled.", _OUTCOME).labels("ok").inc()
    metrics.gauge("in_hand", "Commands in hand.").set(2)
    metrics.histogram("handling_seconds", "Time to handle.", _OUTCOME).labels(outcome="ok").observe(0.2)

    assert registry.get_sample_value("anabranch_steps_http_handled_total", {"outcome": "ok"}) == 1
    assert registry.get_sample_value("anabranch_steps_http_in_hand") == 2
    assert registry.get_sample_value("anabranch_steps_http_handling_seconds_count", {"outcome": "ok"}) == 1


def test_names_that_dashboards_know_are_there() -> None:
    assert {declared.name for metrics in all_metrics() for declared in metrics.declared} >= _EXPECTED


def test_child_is_the_same_however_it_is_named() -> None:
    counter = ServiceMetrics("x", CollectorRegistry()).counter("handled", "Handled.", _OUTCOME)
    child = counter.labels("ok")
    assert counter.labels("ok") is child
    assert counter.labels(outcome="ok") is child


def test_removed_child_is_made_anew() -> None:
    registry = CollectorRegistry()
    gauge = ServiceMetrics("x", registry).gauge("lag", "Lag.", {"partition": AtMost(2, "partitions")})
    gauge.labels(1).set(5)
    gauge.remove(1)
    assert registry.get_sample_value("anabranch_x_lag", {"partition": "1"}) is None
    gauge.labels(1).set(6)
    assert registry.get_sample_value("anabranch_x_lag", {"partition": "1"}) == 6


def test_what_was_not_declared_is_other() -> None:
    registry = CollectorRegistry()
    counter = ServiceMetrics("x", registry).counter("c", "C.", {"a": OneOf("one"), "b": AtMost(1, "names")})
    for a, b in (("one", "first"), ("one", "second"), ("a client's", "first"), ("another's", "third")):
        counter.labels(a, b).inc()
    found = {(sample.labels["a"], sample.labels["b"]): sample.value for sample in _samples(registry)}
    assert found == {("one", "first"): 1, ("one", "other"): 1, ("other", "first"): 1, ("other", "other"): 1}


@pytest.mark.parametrize("metrics", all_metrics(), ids=lambda metrics: type(metrics).__name__)
def test_no_client_can_make_series(metrics: ServiceMetrics) -> None:
    """However many values come, the number of label sets and what is remembered of them has a limit."""
    for metric in _labelled(metrics.registry):
        names = metric._labelnames
        bound = next(one.bound for one in metrics.declared if one.name.removesuffix("_total") == metric._name)
        for number in range(2_000):
            metric.labels(*(f"made by a client {number}" for _ in names))
        for each, number in product(range(len(names)), range(50)):  # and one label alone
            values = ["other"] * len(names)
            values[each] = f"again {number}"
            metric.labels(*values)
        assert len(metric._metrics) <= min(bound, 2_000), metric._name
        assert len(metric.__dict__["_known_children"]) <= bound, metric._name


@pytest.mark.parametrize("metrics", all_metrics(), ids=lambda metrics: type(metrics).__name__)
def test_no_label_is_named_as_what_clients_make(metrics: ServiceMetrics) -> None:
    assert {label for declared in metrics.declared for label in declared.labels} & _OF_CLIENTS == set()


@pytest.mark.parametrize("metrics", all_metrics(), ids=lambda metrics: type(metrics).__name__)
def test_everything_that_is_told_is_declared(metrics: ServiceMetrics) -> None:
    told = {family.name + ("_total" if family.type == "counter" else "") for family in metrics.registry.collect()}
    assert told == {declared.name for declared in metrics.declared}


def test_metrics_page_is_true() -> None:
    page = runpy.run_path(str(DOCS / "generate_metrics.py"))["page"]
    assert (DOCS / "metrics.md").read_text() == page(), "run: python docs/generate_metrics.py"


def test_registry_of_a_service_tells_about_its_process() -> None:
    assert b"process_cpu_seconds_total" in generate_latest(new_registry())


async def test_openmetrics_has_exemplars_with_the_trace() -> None:
    """Prometheus asks for it; whoever does not is answered in the old format, which has none."""
    registry = new_registry()
    ProcessMetrics("gateway", registry)
    GatewayMetrics(registry).answered("POST", "/v1/runs", 202, 0.02, trace_id="4bf92f3577b34da6a3ce929d0e0e4736")
    app = web.Application()
    add_ops_routes(app, Readiness(), registry)
    async with TestClient(TestServer(app)) as client:
        answer = await client.get(
            "/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0,*/*;q=0.1"}
        )
        families = {family.name: family for family in text_string_to_metric_families(await answer.text())}
        plain = await client.get("/metrics")
        words = await plain.text()
    exemplars = [sample.exemplar for sample in families["api_request_duration_seconds"].samples if sample.exemplar]
    assert [(each.labels, each.value) for each in exemplars] == [
        ({"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}, 0.02)
    ]
    assert (answer.content_type, plain.content_type) == ("application/openmetrics-text", "text/plain")
    assert "trace_id" not in words
    assert "anabranch_process_build_info{" in words


def _labelled(registry: CollectorRegistry) -> Iterator[MetricWrapperBase]:
    for collector in list(registry._collector_to_names):
        if isinstance(collector, MetricWrapperBase) and collector._labelnames:
            yield collector


def _samples(registry: CollectorRegistry) -> list:  # type: ignore[type-arg]
    return [sample for family in registry.collect() for sample in family.samples if sample.name.endswith("_total")]
