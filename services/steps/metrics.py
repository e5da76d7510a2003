"""The facts a worker counts: one method each, declared in one place."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from anabranch.shared.runtime.metrics import Declared, OneOf, ServiceMetrics

_KINDS: Final = ("AttemptSucceeded", "AttemptFailed", "AttemptCancelled")
_WHYS: Final = ("in_hand", "lately", "result", "lease")
_SECONDS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0)


class Facts:
    """What a worker tells of its work. This one listens to nothing; `WorkerMetrics` counts."""

    def answered(self, kind: str, duration_s: float) -> None:
        """Take note of an answer that was appended."""

    def begun(self, waited_s: float) -> None:
        """Take note of an attempt whose handler is called, so long after its cause."""

    def repeat_dropped(self, why: str) -> None:
        """Take note of a repeated command that was not run."""

    def stale_dropped(self) -> None:
        """Take note of a record of an older assignment."""

    def leased(self) -> None:
        """Take note of an attempt that outlasted the grace."""

    def lapsed(self) -> None:
        """Take note of a lease that could not be renewed in time."""

    def dead_lettered(self) -> None:
        """Take note of a command that could not be handled."""

    def watch_busy(self, count: Callable[[], int]) -> None:
        """Ask `count` how many handlers are busy, whenever somebody wants to know."""


class _Seconds:
    """A histogram as plain numbers."""

    def __init__(self) -> None:
        self._by_bucket = [0] * (len(_SECONDS) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self._by_bucket[bisect_left(_SECONDS, seconds)] += 1
        self._sum_s += seconds

    def family(self, declared: Declared, uses: str) -> Metric:
        """Return what was counted, as Prometheus reads it."""
        family = HistogramMetricFamily(declared.name, declared.doc, labels=["uses"])
        bounds = (*map(floatToGoString, _SECONDS), "+Inf")
        family.add_metric([uses], list(zip(bounds, accumulate(self._by_bucket), strict=True)), self._sum_s)
        return family


class _Attempts(Collector):
    """Attempts by answer, by how long they waited and how long their handlers ran: plain numbers until they are read.

    A counter and a histogram of prometheus-client take three locks for each answer, of which there are thousands a
    second, and all come from the event loop's thread.
    """

    def __init__(self, uses: str) -> None:
        self._uses = uses
        label = OneOf(uses)
        self.answers = Declared(
            "anabranch_steps_answers_total",
            "counter",
            "Answers appended, by what they say.",
            {"uses": label, "kind": OneOf(*_KINDS)},
        )
        self.waited = Declared(
            "anabranch_steps_queue_wait_seconds",
            "histogram",
            "From the record that caused a command until its handler was called; retries count from their timer.",
            {"uses": label},
        )
        self.handlers = Declared(
            "anabranch_steps_handler_seconds", "histogram", "How long handlers ran.", {"uses": label}
        )
        self._by_kind = dict.fromkeys(_KINDS, 0)
        self._waited = _Seconds()
        self._ran = _Seconds()

    def wait(self, seconds: float) -> None:
        """Count a handler that is called."""
        self._waited.observe(seconds)

    def count(self, kind: str, duration_s: float) -> None:
        """Count an answer."""
        self._by_kind[kind] += 1
        self._ran.observe(duration_s)

    def collect(self) -> Iterator[Metric]:
        """Return what was counted, as Prometheus reads it."""
        answers = CounterMetricFamily(self.answers.name, self.answers.doc, labels=["uses", "kind"])
        for kind, count in self._by_kind.items():
            answers.add_metric([self._uses, kind], count)
        yield answers
        yield self._waited.family(self.waited, self._uses)
        yield self._ran.family(self.handlers, self._uses)


class WorkerMetrics(ServiceMetrics, Facts):
    """The worker's metrics, `anabranch_steps_…`, of one step type."""

    def __init__(self, uses: str, registry: CollectorRegistry) -> None:
        super().__init__("steps", registry)
        label = OneOf(uses)
        self._attempts = _Attempts(uses)
        self.collector(self._attempts, self._attempts.answers, self._attempts.waited, self._attempts.handlers)
        repeats = self.counter("repeats", "Repeated commands that were not run.", {"uses": label, "why": OneOf(*_WHYS)})
        own = {"uses": label}
        self._stale = self.counter("stale_records", "Records of an older assignment.", own).labels(uses)
        self._leased = self.counter("leases", "Attempts that outlasted the grace.", own).labels(uses)
        self._lapsed = self.counter("leases_lapsed", "Leases that could not be renewed.", own).labels(uses)
        self._letters = self.counter("dead_letters", "Commands that could not be handled.", own).labels(uses)
        self._busy = self.gauge("busy", "Handlers that are running.", own).labels(uses)
        self._by_why = {why: repeats.labels(uses, why) for why in _WHYS}

    def answered(self, kind: str, duration_s: float) -> None:
        self._attempts.count(kind, duration_s)

    def begun(self, waited_s: float) -> None:
        self._attempts.wait(waited_s)

    def repeat_dropped(self, why: str) -> None:
        self._by_why[why].inc()

    def stale_dropped(self) -> None:
        self._stale.inc()

    def leased(self) -> None:
        self._leased.inc()

    def lapsed(self) -> None:
        self._lapsed.inc()

    def dead_lettered(self) -> None:
        self._letters.inc()

    def watch_busy(self, count: Callable[[], int]) -> None:
        self._busy.set_function(count)
