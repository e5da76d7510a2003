"""Metrics of one service: one registry, every metric declared with the values that its labels may have.

Names are `anabranch_<service>_…`, but for the few that dashboards of other systems know as well (`as_known=True`). A
value that a label was not declared with is counted as `other`: whatever a client sends, no metric has more series than
its declaration says. Label children are looked up once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, Final, NamedTuple, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

MetricT = TypeVar("MetricT", bound=MetricWrapperBase)

# From a decision (some 100 µs) to the longest step that anyone waits for.
SECONDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0,
)  # fmt: skip

_FEW: Final = 16

OTHER: Final = "other"
"""The label of every value that was not declared."""


class OneOf:
    """A label whose values are known beforehand."""

    def __init__(self, *values: object) -> None:
        self.names = tuple(map(str, values))
        self.bound = len(self.names) + 1  # and `other`
        self._known = frozenset(self.names)

    def __str__(self) -> str:
        return ", ".join(f"`{name}`" for name in self.names)

    def label(self, value: object) -> str:
        """Return the value, or `other`."""
        name = str(value)
        return name if name in self._known else OTHER


class AtMost:
    """A label of registered names, whose number has a limit: those that come after it are `other`."""

    def __init__(self, count: int, what: str) -> None:
        self.bound = count + 1  # and `other`
        self._count = count
        self._what = what
        self._known: set[str] = set()

    def __str__(self) -> str:
        return f"{self._what}, {self._count} at most"

    def label(self, value: object) -> str:
        """Return the value, or `other` when there are as many others already."""
        name = str(value)
        if name not in self._known:
            if len(self._known) >= self._count:
                return OTHER
            self._known.add(name)
        return name


Labels = Mapping[str, OneOf | AtMost]


class Declared(NamedTuple):
    """A metric as Prometheus reads it: its name without suffixes of samples, except a counter's `_total`."""

    name: str
    kind: str
    doc: str
    labels: Labels

    @property
    def bound(self) -> int:
        """How many label sets it can have in one process; a histogram has a series per bucket of each."""
        return prod(label.bound for label in self.labels.values())


def new_registry() -> CollectorRegistry:
    """Return a registry that already knows the process: CPU, memory, file descriptors, garbage collections."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each counter and histogram, which nobody asks for
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
        self.declared: list[Declared] = []
        """What it has, in the order of the declarations."""
        self._prefix = f"anabranch_{service.replace('-', '_')}_"

    def counter(self, name: str, doc: str, labels: Labels = {}, *, as_known: bool = False) -> Counter:  # noqa: B006  read alone
        """Declare `anabranch_<service>_<name>_total`."""
        declared = self._declare(name + "_total", "counter", doc, labels, as_known)
        counter = _Counter(declared.name, doc, labels=labels, registry=self.registry)
        match tuple(labels.values()):
            case (OneOf(names=names),) if len(names) <= _FEW:
                for value in names:  # from 0 on: of a series that begins with 1 nobody sees that it has grown
                    counter.labels(value)
        return counter

    def gauge(self, name: str, doc: str, labels: Labels = {}, *, as_known: bool = False) -> Gauge:  # noqa: B006  read alone
        """Declare `anabranch_<service>_<name>`."""
        declared = self._declare(name, "gauge", doc, labels, as_known)
        return _Gauge(declared.name, doc, labels=labels, registry=self.registry)

    def histogram(
        self,
        name: str,
        doc: str,
        labels: Labels = {},  # noqa: B006  read alone
        *,
        buckets: Sequence[float] = SECONDS,
        as_known: bool = False,
    ) -> Histogram:
        """Declare `anabranch_<service>_<name>`; buckets are seconds unless the name has another unit."""
        declared = self._declare(name, "histogram", doc, labels, as_known)
        return _Histogram(declared.name, doc, labels=labels, registry=self.registry, buckets=buckets)

    def tally(self, name: str, doc: str, label: str, values: OneOf) -> "Tally":
        """Declare `anabranch_<service>_<name>_total` for what is counted thousands of times a second."""
        declared = self._declare(name + "_total", "counter", doc, {label: values}, False)
        tally = Tally(declared, label, values.names)
        self.registry.register(tally)
        return tally

    def collector(self, collector: Collector, *declared: Declared) -> None:
        """Declare what a collector of its own tells."""
        self.declared += declared
        self.registry.register(collector)

    def _declare(self, name: str, kind: str, doc: str, labels: Labels, as_known: bool) -> Declared:
        declared = Declared(name if as_known else self._prefix + name, kind, doc, labels)
        self.declared.append(declared)
        return declared


class Tally(Collector):
    """A counter with one label, as plain numbers until somebody reads them: counting takes no lock.

    All that is counted in it comes from the event loop's thread.
    """

    def __init__(self, declared: Declared, label: str, values: Iterable[str]) -> None:
        self._declared = declared
        self._label = label
        self._counts = dict.fromkeys(values, 0)

    def count(self, value: str) -> None:
        """Count one; what was not declared is not counted, which no caller does."""
        if value in self._counts:
            self._counts[value] += 1

    def collect(self) -> Iterator[Metric]:
        """Return what was counted, as Prometheus reads it."""
        family = CounterMetricFamily(self._declared.name, self._declared.doc, labels=[self._label])
        for value, count in self._counts.items():
            family.add_metric([value], count)
        yield family


class _KnownChildren(MetricWrapperBase):
    """`labels` of prometheus-client takes a lock and makes a tuple of strings at every call."""

    def __init__(self, name: str, documentation: str, *args: Any, labels: Labels = {}, **named: Any) -> None:  # noqa: B006
        if labels:
            named["labelnames"] = tuple(labels)
        super().__init__(name, documentation, *args, **named)
        self._allowed = tuple(labels.values())  # children have none: only their parent is asked

    def labels(self: MetricT, *values: Any, **named: Any) -> MetricT:
        known: dict[tuple[Any, ...], MetricT] = self.__dict__.setdefault("_known_children", {})
        child = known.get(values) if not named else None
        if child is None:
            given = values if not named else tuple(named[name] for name in self._labelnames)
            allowed: tuple[OneOf | AtMost, ...] = self.__dict__["_allowed"]
            shown = tuple(label.label(value) for label, value in zip(allowed, given, strict=True))
            child = super().labels(*shown)
            if not named and shown == tuple(map(str, values)):  # what became `other` is not remembered by its name
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
