"""What history counts."""

from prometheus_client import CollectorRegistry

from anabranch.shared.runtime.metrics import ServiceMetrics


class HistoryMetrics(ServiceMetrics):
    """One method per fact."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__("history", registry)
        events = self.counter("events", "Run events, by what became of them.", ["outcome"])
        self._projected = events.labels("projected")
        self._repeated = events.labels("repeated")
        self._dead = events.labels("dead_lettered")
        self._missing = self.counter("missing_events", "Events absent from a run's sequence; its snapshot went on.")
        self._flushes = self.counter("flushes", "Batches of run events that Redis took.")
        self._refused = self.counter("flushes_refused", "Batches that Redis did not take; each is tried again.")
        self._commits_failed = self.counter("commits_failed", "Commits of offsets that Kafka refused.")
        self._paused = self.gauge("paused", "1 while Redis does not answer and the run events wait in Kafka.")
        self._age = self.histogram(
            "event_age_seconds",
            "From a run event's broker time until readers saw it; the oldest of each batch.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
        )

    def flushed(self, *, projected: int, repeated: int, age_s: float) -> None:
        """Redis took a batch."""
        self._flushes.inc()
        self._projected.inc(projected)
        self._repeated.inc(repeated)
        self._age.observe(max(0.0, age_s))
        self._paused.set(0)

    def refused(self) -> None:
        """Redis did not take a batch."""
        self._refused.inc()
        self._paused.set(1)

    def events_missing(self, count: int) -> None:
        """A run's sequence has a gap."""
        self._missing.inc(count)

    def dead_lettered(self) -> None:
        """A record could not be projected."""
        self._dead.inc()

    def commit_failed(self) -> None:
        """Kafka refused a commit: what was projected may be read again."""
        self._commits_failed.inc()
