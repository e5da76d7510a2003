"""Metrics: names, and children that are looked up once."""

from prometheus_client import CollectorRegistry, generate_latest

from anabranch.shared.runtime.metrics import ServiceMetrics, new_registry


def test_names_begin_with_the_service() -> None:
    registry = CollectorRegistry()
    metrics = ServiceMetrics("steps-http", registry)
    metrics.counter("handled", "Commands handled.", ("outcome",)).labels("ok").inc()
    metrics.gauge("in_hand", "Commands in hand.").set(2)
    metrics.histogram("handling_seconds", "Time to handle.", ("outcome",)).labels(outcome="ok").observe(0.2)

    assert registry.get_sample_value("anabranch_steps_http_handled_total", {"outcome": "ok"}) == 1
    assert registry.get_sample_value("anabranch_steps_http_in_hand") == 2
    assert registry.get_sample_value("anabranch_steps_http_handling_seconds_count", {"outcome": "ok"}) == 1


def test_child_is_the_same_however_it_is_named() -> None:
    counter = ServiceMetrics("x", CollectorRegistry()).counter("handled", "Handled.", ("outcome",))
    child = counter.labels("ok")
    assert counter.labels("ok") is child
    assert counter.labels(outcome="ok") is child


def test_removed_child_is_made_anew() -> None:
    registry = CollectorRegistry()
    gauge = ServiceMetrics("x", registry).gauge("lag", "Lag.", ("partition",))
    gauge.labels(1).set(5)
    gauge.remove(1)
    assert registry.get_sample_value("anabranch_x_lag", {"partition": "1"}) is None
    gauge.labels(1).set(6)
    assert registry.get_sample_value("anabranch_x_lag", {"partition": "1"}) == 6


def test_registry_of_a_service_tells_about_its_process() -> None:
    assert b"process_cpu_seconds_total" in generate_latest(new_registry())
