"""What the orchestrator counts: one method per fact."""

from prometheus_client import CollectorRegistry, Counter

from anabranch.services.orchestrator.core.transitions import Ignore
from anabranch.shared.contracts.limits import MAX_STEP_TYPES
from anabranch.shared.runtime.metrics import ServiceMetrics


class OrchestratorMetrics(ServiceMetrics):
    """The orchestrator's metrics; labels come from enums and class names, never from ids."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__("orchestrator", registry)
        self._decisions = self.counter(
            "decisions", "Messages decided, by type and what came of them", ("type", "outcome")
        )
        self._decided: dict[tuple[str, Ignore | None], Counter] = {}  # children: `labels` costs more than `inc`
        self._dead_letters = self.counter("dead_letters", "Records that went to the dead letters", ("error",))
        self._errors = self.counter("partition_errors", "Errors of the log that partition tasks answered", ("error",))
        self._stale = self.counter(
            "stale_records", "Records dropped because they were fetched under an older assignment"
        )
        self._quarantined = self.counter("quarantined_runs", "Runs that not even failing could end")
        self._broken = self.counter("broken_runs", "Runs that failed at a take-over since they were not understood")
        self._buried = self.counter("buried_records", "Changelog records that stand for nothing, put into dead letters")
        self._other_rules = self.counter("other_rules", "Partitions restored whose tail was decided under other rules")
        self._held_back = self.counter("held_back", "Times a partition stopped taking because it ran too far ahead")
        self._restore_s = self.histogram("restore_seconds", "From taking a partition over to deciding its first record")
        self._restored = self.counter("restored_records", "Live changelog records read at restores")
        self._checkpoint_s = self.histogram("checkpoint_seconds", "From fixing an offset to its committed transaction")
        self._checkpointed = self.counter("checkpointed_records", "Changelog records written")

        self._refused = self.counter(
            "refused_commands", "Commands that their topic did not take: held back, sent again later", ("uses",)
        )
        self._unwritable = self.gauge(
            "unwritable_command_topic", "1 while a step type's command topic cannot be written", ("uses",)
        )
        self._uses: set[str] = set()

    def command_refused(self, uses: str) -> None:
        """A step type's topic did not take a command."""
        self._refused.labels(self._named(uses)).inc()

    def topic_unwritable(self, uses: str, *, is_so: bool) -> None:
        """A step type's topic takes no commands, or takes them again."""
        self._unwritable.labels(self._named(uses)).set(is_so)

    def _named(self, uses: str) -> str:
        """Return the type as a label: the gateway admits only announced ones, but whoever writes the inbox may not."""
        if uses not in self._uses and len(self._uses) >= MAX_STEP_TYPES:
            return "other"
        self._uses.add(uses)
        return uses

    def decided(self, message_type: str, ignored: Ignore | None) -> None:
        """A message was decided, or ignored for a reason."""
        key = (message_type, ignored)
        counter = self._decided.get(key)
        if counter is None:
            outcome = "applied" if ignored is None else ignored.value
            counter = self._decided[key] = self._decisions.labels(message_type, outcome)
        counter.inc()

    def dead_lettered(self, error: str) -> None:
        """A record went to the dead letters."""
        self._dead_letters.labels(error).inc()

    def partition_error(self, error: str) -> None:
        """The log raised, and the task answered."""
        self._errors.labels(error).inc()

    def dropped_stale(self, records: int) -> None:
        """Records of an older assignment were dropped."""
        self._stale.inc(records)

    def quarantined(self) -> None:
        """A run is touched no more."""
        self._quarantined.inc()

    def broken(self) -> None:
        """A run's records are not understood: it fails."""
        self._broken.inc()

    def buried(self) -> None:
        """A changelog record stands for nothing."""
        self._buried.inc()

    def other_rules(self) -> None:
        """A tail was decided under another version of the rules."""
        self._other_rules.inc()

    def held_back(self) -> None:
        """The task waited before it took more."""
        self._held_back.inc()

    def restored(self, *, seconds: float, records: int) -> None:
        """A partition was taken over."""
        self._restore_s.observe(seconds)
        self._restored.inc(records)

    def checkpointed(self, *, seconds: float, records: int) -> None:
        """A checkpoint was committed."""
        self._checkpoint_s.observe(seconds)
        self._checkpointed.inc(records)
