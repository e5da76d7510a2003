"""What Prometheus reads of a worker."""

from prometheus_client import CollectorRegistry

from anabranch.services.steps.metrics import WorkerMetrics


def test_answers_are_counted_by_kind_and_by_how_long_their_handlers_ran() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics("sql", registry)
    for kind, duration_s in (("AttemptSucceeded", 0.0), ("AttemptSucceeded", 0.005), ("AttemptFailed", 1000.0)):
        metrics.answered(kind, duration_s)

    def answers(kind: str) -> float | None:
        return registry.get_sample_value("anabranch_steps_answers_total", {"uses": "sql", "kind": kind})

    def seconds(suffix: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"anabranch_steps_handler_seconds_{suffix}", {"uses": "sql", **labels})

    assert [answers(kind) for kind in ("AttemptSucceeded", "AttemptFailed", "AttemptCancelled")] == [2, 1, 0]
    assert [seconds("bucket", le=bound) for bound in ("0.001", "0.005", "600.0", "+Inf")] == [1, 2, 2, 3]
    assert (seconds("count"), seconds("sum")) == (3, 1000.005)
