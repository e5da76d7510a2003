"""The facts a worker counts: one method each, declared in one place."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from anabranch.shared.runtime.metrics import ServiceMetrics

_SECONDS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0)


class Facts:
    """What a worker tells of its work. This one listens to nothing; `WorkerMetrics` counts."""

    def answered(self, kind: str, duration_s: float) -> None:
        """Take note of an answer that was appended."""

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


class _Answers(Collector):
    """Answers by kind and by how long their handlers ran, as plain numbers until somebody reads them.

    A counter and a histogram of prometheus-client take three locks for each answer, of which there are thousands a
    second, and all come from the event loop's thread.
    """

    def __init__(self, uses: str, kinds: tuple[str, ...]) -> None:
        self._uses = uses
        self._by_kind = dict.fromkeys(kinds, 0)
        self._by_bucket = [0] * (len(_SECONDS) + 1)
        self._sum_s = 0.0

    def count(self, kind: str, duration_s: float) -> None:
        """Count an answer."""
        self._by_kind[kind] += 1
        self._by_bucket[bisect_left(_SECONDS, duration_s)] += 1
        self._sum_s += duration_s

    def collect(self) -> Iterator[Metric]:
        """Return what was counted, as Prometheus reads it."""
        answers = CounterMetricFamily(
            "anabranch_steps_answers", "Answers appended, by what they say.", labels=["uses", "kind"]
        )
        for kind, count in self._by_kind.items():
            answers.add_metric([self._uses, kind], count)
        yield answers
        seconds = HistogramMetricFamily("anabranch_steps_handler_seconds", "How long handlers ran.", labels=["uses"])
        bounds = (*map(floatToGoString, _SECONDS), "+Inf")
        buckets = list(zip(bounds, accumulate(self._by_bucket), strict=True))
        seconds.add_metric([self._uses], buckets, self._sum_s)
        yield seconds


class WorkerMetrics(Facts):
    """The worker's metrics, `anabranch_steps_…`, of one step type."""

    def __init__(self, uses: str, registry: CollectorRegistry) -> None:
        metrics = ServiceMetrics("steps", registry)
        self._answers = _Answers(uses, ("AttemptSucceeded", "AttemptFailed", "AttemptCancelled"))
        registry.register(self._answers)
        self._repeats = metrics.counter("repeats", "Repeated commands that were not run.", ["uses", "why"])
        self._stale = metrics.counter("stale_records", "Records of an older assignment.", ["uses"]).labels(uses)
        self._leased = metrics.counter("leases", "Attempts that outlasted the grace.", ["uses"]).labels(uses)
        self._lapsed = metrics.counter("leases_lapsed", "Leases that could not be renewed.", ["uses"]).labels(uses)
        self._letters = metrics.counter("dead_letters", "Commands that could not be handled.", ["uses"]).labels(uses)
        self._busy = metrics.gauge("busy", "Handlers that are running.", ["uses"]).labels(uses)
        self._by_why = {why: self._repeats.labels(uses, why) for why in ("in_hand", "lately", "result", "lease")}

    def answered(self, kind: str, duration_s: float) -> None:
        self._answers.count(kind, duration_s)

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
