"""What history counts."""

from prometheus_client import CollectorRegistry

from anabranch.shared.runtime.metrics import OneOf, ServiceMetrics

_OUTCOMES = ("projected", "repeated", "dead_lettered", "not_joined")


class HistoryMetrics(ServiceMetrics):
    """One method per fact."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__("history", registry)
        events = self.counter("events", "Run events, by what became of them.", {"outcome": OneOf(*_OUTCOMES)})
        self._projected = events.labels("projected")
        self._repeated = events.labels("repeated")
        self._dead = events.labels("dead_lettered")
        self._not_joined = events.labels("not_joined")
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

        self._runs_deleted = self.counter("record_runs_deleted", "Runs deleted from the record: too old, or too many.")
        recorded = self.counter(
            "record_events",
            "Run events for the record, by what became of them.",
            {"outcome": OneOf("recorded", "repeated")},
        )
        self._recorded = recorded.labels("recorded")
        self._recorded_again = recorded.labels("repeated")
        self._record_missing = self.counter("record_missing_events", "Events absent from a run's sequence.")
        self._record_refused = self.counter("record_refused", "Batches that SQL did not take; each is tried again.")
        self._record_paused = self.gauge("record_paused", "1 while SQL does not answer and run events wait in Kafka.")
        self._record_age = self.histogram(
            "record_age_seconds",
            "From a run event's broker time until it was in the record; the oldest of each batch.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
        )
        self._notices_lost = self.counter("notices_lost", "Messages of changed runs that Redis did not take.")

    def flushed(self, *, projected: int, repeated: int, age_s: float) -> None:
        """Redis took a batch."""
        self._flushes.inc()
        self._projected.inc(projected)
        self._repeated.inc(repeated)
        self._age.observe(max(0.0, age_s))
        self._paused.set(0)

    def not_joined(self, events: int) -> None:
        """Redis has lost what these events go on from: the record alone has their run."""
        self._not_joined.inc(events)

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

    def runs_deleted(self, count: int) -> None:
        """Runs were deleted from the record."""
        self._runs_deleted.inc(count)

    def recorded(self, *, recorded: int, repeated: int, missing: int) -> None:
        """SQL took events."""
        self._recorded.inc(recorded)
        self._recorded_again.inc(repeated)
        self._record_missing.inc(missing)

    def recorded_until(self, *, age_s: float) -> None:
        """A batch is in the record, so long after its oldest event was written."""
        self._record_age.observe(max(0.0, age_s))
        self._record_paused.set(0)

    def record_refused(self) -> None:
        """SQL did not take a batch."""
        self._record_refused.inc()
        self._record_paused.set(1)

    def notice_lost(self) -> None:
        """Redis did not take a message of changed runs."""
        self._notices_lost.inc()
