"""What the orchestrator counts: one method per fact."""

from collections.abc import Callable, Mapping
from typing import Final, Protocol, get_args

from prometheus_client import CollectorRegistry, Counter

from anabranch.services.orchestrator.core.status import TERMINAL_RUN
from anabranch.services.orchestrator.core.transitions import Ignore
from anabranch.services.orchestrator.ports import ON_ERROR
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.limits import MAX_STEP_TYPES
from anabranch.shared.runtime.metrics import AtMost, OneOf, ServiceMetrics

_MESSAGES: Final = OneOf(*(message.__name__ for message in get_args(m.RunMessage)))
_OUTCOMES: Final = OneOf("applied", *(reason.value for reason in Ignore))
_ENDED_AS: Final = dict(zip(("RunSucceeded", "RunFailed", "RunCancelled", "RunTimedOut"), TERMINAL_RUN, strict=True))
_BYTES: Final = (1e3, 1e4, 1e5, 1e6, 4e6, 16e6, 64e6)
_PIPELINE_SECONDS: Final = (
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 86400.0,
)  # fmt: skip


class OwnedPartition(Protocol):
    """What a partition task is asked when somebody reads the metrics."""

    @property
    def is_restored(self) -> bool:
        """Whether it decides."""

    @property
    def active_runs(self) -> int:
        """How many runs have not ended."""

    def quiet_ms(self) -> int:
        """For how long nothing was heard of the run that was heard of least lately."""

    def unwritten_s(self) -> float:
        """For how long the oldest record that was decided is in no checkpoint."""


class OrchestratorMetrics(ServiceMetrics):
    """The orchestrator's metrics; labels come from enums and class names, never from ids."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__("orchestrator", registry)
        self._ended = self.histogram(
            "pipeline_duration_seconds",
            "From a run's start to its end, by how it ended; decided again after a crash, it is counted again",
            {"status": OneOf(*TERMINAL_RUN)},
            buckets=_PIPELINE_SECONDS,
            as_known=True,
        )
        for status in TERMINAL_RUN:
            self._ended.labels(status)
        self._active = self.gauge(
            "active_pipelines", "Runs of this process's partitions that have not ended", as_known=True
        )
        self._owned = self.gauge("partitions", "Partitions that this process owns, and decides")
        self._quiet = self.gauge(
            "quiet_run_seconds", "For how long nothing was heard of the run that was heard of least lately"
        )
        self._unwritten = self.gauge(
            "unwritten_seconds", "For how long the oldest record that was decided is in no checkpoint"
        )
        self._events = self.tally(
            "run_events",
            "Run events appended: what happened to runs and steps",
            "type",
            OneOf(*_run_event_types()),
        )
        self._lost = self.counter("lost_workers", "Attempts whose worker was not heard of until its lease was over")
        self._rebalances = self.counter("rebalances", "Assignments of partitions to this process")
        self._decisions = self.counter(
            "decisions", "Messages decided, by type and what came of them", {"type": _MESSAGES, "outcome": _OUTCOMES}
        )
        self._decided: dict[tuple[str, Ignore | None], Counter] = {}  # children: `labels` costs more than `inc`
        self._dead_letters = self.counter(
            "dead_letters",
            "Records that went to the dead letters",
            {"error": AtMost(50, "classes of errors")},
        )
        self._errors = self.counter(
            "partition_errors",
            "Errors of the log that partition tasks answered",
            {"error": OneOf(*(error.__name__ for error in ON_ERROR))},
        )
        self._stale = self.counter(
            "stale_records", "Records dropped because they were fetched under an older assignment"
        )
        self._quarantined = self.counter("quarantined_runs", "Runs that not even failing could end")
        self._broken = self.counter("broken_runs", "Runs that failed at a take-over since they were not understood")
        self._buried = self.counter("buried_records", "Changelog records that stand for nothing, put into dead letters")
        self._other_rules = self.counter("other_rules", "Partitions restored whose tail was decided under other rules")
        self._held_back = self.histogram(
            "held_back_seconds", "How long a partition stopped taking because it ran too far ahead"
        )
        self._restore_s = self.histogram("restore_seconds", "From taking a partition over to deciding its first record")
        self._restored = self.counter("restored_records", "Live changelog records read at restores")
        self._checkpoint_s = self.histogram("checkpoint_seconds", "From fixing an offset to its committed transaction")
        self._checkpointed = self.counter("checkpointed_records", "Changelog records written")
        self._checkpoint_bytes = self.histogram(
            "checkpoint_bytes", "Keys and values of a checkpoint's records", buckets=_BYTES
        )

        self._refused = self.counter(
            "refused_commands",
            "Commands that their topic did not take: held back, sent again later",
            {"uses": _step_types()},
        )
        self._unwritable = self.gauge(
            "unwritable_command_topic", "1 while a step type's command topic cannot be written", {"uses": _step_types()}
        )

    def watch(self, tasks: Callable[[], Mapping[int, OwnedPartition]]) -> None:
        """Ask the partition tasks what they hold, whenever somebody reads the metrics."""

        def owned() -> list[OwnedPartition]:
            return [task for task in tasks().values() if task.is_restored]

        self._active.set_function(lambda: sum(task.active_runs for task in owned()))
        self._owned.set_function(lambda: len(owned()))
        self._quiet.set_function(lambda: max((task.quiet_ms() for task in owned()), default=0) / 1000)
        self._unwritten.set_function(lambda: max((task.unwritten_s() for task in owned()), default=0.0))

    def said(self, event: str) -> None:
        """A run event was appended."""
        self._events.count(event)

    def run_ended(self, event: str, *, seconds: float, trace_id: str) -> None:
        """A run is over: `event` is the type of its last run event."""
        self._ended.labels(_ENDED_AS[event]).observe(seconds, {"trace_id": trace_id})

    def worker_lost(self, attempts: int) -> None:
        """Leases were over, and nobody had renewed them."""
        self._lost.inc(attempts)

    def assigned(self) -> None:
        """The group has given this process its share."""
        self._rebalances.inc()

    def command_refused(self, uses: str) -> None:
        """A step type's topic did not take a command."""
        self._refused.labels(uses).inc()

    def topic_unwritable(self, uses: str, *, is_so: bool) -> None:
        """A step type's topic takes no commands, or takes them again."""
        self._unwritable.labels(uses).set(is_so)

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

    def held_back(self, *, seconds: float) -> None:
        """The task waited before it took more."""
        self._held_back.observe(seconds)

    def restored(self, *, seconds: float, records: int) -> None:
        """A partition was taken over."""
        self._restore_s.observe(seconds)
        self._restored.inc(records)

    def checkpointed(self, *, seconds: float, records: int, size: int) -> None:
        """A checkpoint was committed; `size` is in bytes."""
        self._checkpoint_bytes.observe(size)
        self._checkpoint_s.observe(seconds)
        self._checkpointed.inc(records)


def _step_types() -> AtMost:
    """The gateway admits only announced types, but whoever writes the inbox may not."""
    return AtMost(MAX_STEP_TYPES, "step types")


def _run_event_types() -> list[str]:
    kinds = get_args(get_args(m.RunEventMessage)[0])
    return [name for kind in kinds for name in get_args(kind.model_fields["type"].annotation)]
