"""Metrics of one service: one registry, names `anabranch_<service>_…`, label children looked up once."""

from collections.abc import Sequence
from typing import Any, Final, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.metrics import MetricWrapperBase

MetricT = TypeVar("MetricT", bound=MetricWrapperBase)

# From a decision (some 100 µs) to the longest step that anyone waits for.
SECONDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0,
)  # fmt: skip


def new_registry() -> CollectorRegistry:
    """Return a registry that already knows the process: CPU, memory, file descriptors, garbage collections."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class ServiceMetrics:
    """Base of a service's metrics container: declare metrics in `__init__`, give each fact a method.

    Labels come from enums and registered names, never from ids. `labels(…)` by position is a dictionary look-up, so
    that it may stand on a hot path.
    """

    def __init__(self, service: str, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._prefix = f"anabranch_{service.replace('-', '_')}_"

    def counter(self, name: str, doc: str, labels: Sequence[str] = ()) -> Counter:
        """Declare `anabranch_<service>_<name>_total`."""
        return _Counter(self._prefix + name, doc, labels, registry=self.registry)

    def gauge(self, name: str, doc: str, labels: Sequence[str] = ()) -> Gauge:
        """Declare `anabranch_<service>_<name>`."""
        return _Gauge(self._prefix + name, doc, labels, registry=self.registry)

    def histogram(
        self, name: str, doc: str, labels: Sequence[str] = (), *, buckets: Sequence[float] = SECONDS
    ) -> Histogram:
        """Declare `anabranch_<service>_<name>`; buckets are seconds unless the name has another unit."""
        return _Histogram(self._prefix + name, doc, labels, registry=self.registry, buckets=buckets)


class _KnownChildren(MetricWrapperBase):
    """`labels` of prometheus-client takes a lock and makes a tuple of strings at every call."""

    def labels(self: MetricT, *values: Any, **named: Any) -> MetricT:
        known: dict[tuple[Any, ...], MetricT] = self.__dict__.setdefault("_known_children", {})
        child = known.get(values) if not named else None
        if child is None:
            child = super().labels(*values, **named)
            if not named:
                known[values] = child
        return child

    def remove(self, *values: Any) -> None:
        self.__dict__.pop("_known_children", None)
        super().remove(*values)

    def clear(self) -> None:
        self.__dict__.pop("_known_children", None)
        super().clear()


class _Counter(_KnownChildren, Counter):
    pass


class _Gauge(_KnownChildren, Gauge):
    pass


class _Histogram(_KnownChildren, Histogram):
    pass
