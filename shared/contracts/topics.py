"""The topic table: every topic, declared once. Creation, checks at start-up, manifests and documents come from it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from pydantic import TypeAdapter

from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.limits import MAX_RECORD_BYTES, MAX_WAIT_S

DEFAULT_PREFIX: Final = "pipelines"
DEFAULT_PARTITIONS: Final = 12

_HOUR_MS: Final = 3600 * 1000
_LONGER_THAN_ANY_WAIT_MS: Final = MAX_WAIT_S * 1000 + 24 * _HOUR_MS


class Cleanup(StrEnum):
    """Kafka's `cleanup.policy`."""

    DELETE = "delete"
    COMPACT = "compact"


class Partitions(StrEnum):
    """How many partitions: as many as runs have (P), as step commands have (S), or one."""

    RUNS = "P"
    STEPS = "S"
    ONE = "1"


@dataclass(frozen=True, slots=True)
class Topic:
    """One row of the table. `suffix` follows the prefix; `{type}` in it stands for a step type."""

    suffix: str
    key: str
    partitions: Partitions
    cleanup: Cleanup
    messages: TypeAdapter[Any] | None
    written_by: tuple[str, ...]
    read_by: tuple[str, ...]
    owner: str
    config: tuple[tuple[str, str], ...] = ()

    def name(self, prefix: str, step_type: str = "") -> str:
        """Return the topic's name under a prefix, e.g. `pipelines.steps.http`."""
        return f"{prefix}.{self.suffix.format(type=step_type)}"

    def settings(self) -> dict[str, str]:
        """Return the topic's configuration as Kafka spells it."""
        common = {"cleanup.policy": self.cleanup.value, "max.message.bytes": str(MAX_RECORD_BYTES)}
        kept = {"retention.ms": str(_LONGER_THAN_ANY_WAIT_MS)} if self.cleanup is Cleanup.DELETE else {}
        return common | kept | dict(self.config)

    def partition_count(self, *, runs: int, steps: int) -> int:
        """Return the number of partitions when a run has `runs` and a step type `steps` of them."""
        return {Partitions.RUNS: runs, Partitions.STEPS: steps, Partitions.ONE: 1}[self.partitions]


INBOX: Final = Topic(
    "inbox", "run_id", Partitions.RUNS, Cleanup.DELETE, m.INBOX,
    written_by=("gateway", "steps", "orchestrator"), read_by=("orchestrator",), owner="orchestrator",
    config=(("message.timestamp.type", "LogAppendTime"),),
)  # fmt: skip
STEPS: Final = Topic(
    "steps.{type}", "run_id/step", Partitions.STEPS, Cleanup.DELETE, m.COMMANDS,
    written_by=("orchestrator",), read_by=("steps",), owner="steps",
)  # fmt: skip
STATE: Final = Topic(
    "state", "run_id, run_id/step", Partitions.RUNS, Cleanup.COMPACT, None,
    written_by=("orchestrator",), read_by=("orchestrator",), owner="orchestrator",
    # Small segments and a bounded lag, so that a restore reads live records, not history: the active segment is never
    # compacted, so it may hold 60 s of writes at most; tombstones go with the next pass after a minute.
    config=(
        ("segment.bytes", str(8 * 1024 * 1024)), ("segment.ms", "60000"), ("max.compaction.lag.ms", "60000"),
        ("min.cleanable.dirty.ratio", "0.2"), ("delete.retention.ms", "60000"),
    ),
)  # fmt: skip
RUN_EVENTS: Final = Topic(
    "run-events", "run_id", Partitions.RUNS, Cleanup.DELETE, m.RUN_EVENTS,
    written_by=("orchestrator",), read_by=("history", "anyone"), owner="orchestrator",
)  # fmt: skip
DEFINITIONS: Final = Topic(
    "definitions", "tenant/name", Partitions.ONE, Cleanup.COMPACT, m.DEFINITIONS,
    written_by=("gateway",), read_by=("gateway",), owner="gateway",
)  # fmt: skip
STEP_TYPES: Final = Topic(
    "step-types", "type", Partitions.ONE, Cleanup.COMPACT, m.STEP_TYPES,
    written_by=("steps",), read_by=("gateway",), owner="gateway",
)  # fmt: skip
API_KEYS: Final = Topic(
    "api-keys", "key id, key id/used", Partitions.ONE, Cleanup.COMPACT, m.API_KEYS,
    written_by=("operators", "gateway"), read_by=("gateway", "operators"), owner="gateway",
)  # fmt: skip
CONTROL: Final = Topic(
    "control", "run_id", Partitions.ONE, Cleanup.DELETE, m.CONTROL,
    written_by=("orchestrator",), read_by=("steps",), owner="orchestrator",
    # A worker reads it from its start before it takes commands: an hour of cancellations, longer than a command of a
    # cancelled run is of any use (its run has ended after the grace).
    config=(("retention.ms", str(_HOUR_MS)), ("segment.ms", str(_HOUR_MS // 4))),
)  # fmt: skip
DEAD_LETTERS: Final = Topic(
    "dead-letters", "original key", Partitions.RUNS, Cleanup.DELETE, m.DEAD_LETTERS,
    written_by=("any consumer",), read_by=("operators",), owner="orchestrator",
)  # fmt: skip

CHECKPOINT_KEY: Final = b"_checkpoint"
"""Of the record of the changelog that says up to which offset of the inbox its partition has been decided."""

TOPICS: Final = (INBOX, STEPS, STATE, RUN_EVENTS, DEFINITIONS, STEP_TYPES, API_KEYS, CONTROL, DEAD_LETTERS)


@dataclass(frozen=True, slots=True)
class TopicNames:
    """The names of all topics under one prefix, and how many partitions they have."""

    prefix: str = DEFAULT_PREFIX
    runs: int = DEFAULT_PARTITIONS
    steps_partitions: int = DEFAULT_PARTITIONS

    @property
    def inbox(self) -> str:
        """Everything that can change a run."""
        return INBOX.name(self.prefix)

    @property
    def state(self) -> str:
        """The changelog."""
        return STATE.name(self.prefix)

    @property
    def run_events(self) -> str:
        """What happened to runs."""
        return RUN_EVENTS.name(self.prefix)

    @property
    def definitions(self) -> str:
        """Named pipelines."""
        return DEFINITIONS.name(self.prefix)

    @property
    def step_types(self) -> str:
        """What step services announce."""
        return STEP_TYPES.name(self.prefix)

    @property
    def api_keys(self) -> str:
        """Who may do what."""
        return API_KEYS.name(self.prefix)

    @property
    def control(self) -> str:
        """Cancellations."""
        return CONTROL.name(self.prefix)

    @property
    def dead_letters(self) -> str:
        """What could not be handled."""
        return DEAD_LETTERS.name(self.prefix)

    def steps(self, step_type: str) -> str:
        """Commands of one step type."""
        return STEPS.name(self.prefix, step_type)
