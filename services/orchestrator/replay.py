"""Rebuilds one run from the inbox: the same records through the same core give the same events, byte for byte.

Everything that can change a run is a record of its partition of the inbox, timers and lost commands too. What else of
the partition a decision depends on is its time, so that is kept as every record has it; the other runs are not decided.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from anabranch.services.orchestrator.core.decide import RULES_VERSION, Decision
from anabranch.services.orchestrator.core.effects import Append, Channel
from anabranch.services.orchestrator.core.partition import Partition, to_runs
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import Undecodable, decode
from anabranch.shared.runtime.partition_scan import PartitionScan
from anabranch.shared.runtime.settings import Settings
from anabranch.shared.runtime.topic_reader import Record

__all__ = ["RULES_VERSION", "Cause", "Event", "InboxReplay", "Replay", "open_inbox"]

_ESCAPED = b"\\u00"  # how a JSON text may spell what a run's id consists of


@dataclass(frozen=True, slots=True)
class Cause:
    """The record of the inbox that led to an event: where it stands, what it says, its broker time."""

    offset: int
    type: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Event:
    """A run event, as it was decided again."""

    value: bytes
    cause: Cause


@dataclass(slots=True)
class Replay:
    """Decides what the records of a partition mean for one run, as the partition's task did."""

    run_id: str
    events: list[Event] = field(default_factory=list)  # of the latest run with this id
    has_ended: bool = False
    _partition: Partition = field(default_factory=Partition)

    def take(self, record: Record) -> None:
        """Decide what a record of the partition means for the run, if it concerns it."""
        value = record.value or b""
        if self.run_id.encode() in value or _ESCAPED in value:
            message = decode(m.INBOX, value)
            if not isinstance(message, Undecodable):
                for part in to_runs(message):
                    if part.run_id == self.run_id:
                        self._take(part, record)
        self._partition.at = max(self._partition.at, record.timestamp_ms)

    def _take(self, message: m.RunMessage, record: Record) -> None:
        decision = self._decide(message, record.timestamp_ms)
        self._partition.commit(decision, record.timestamp_ms)
        if isinstance(message, m.SubmitRun) and decision.turn is not None:
            self.events, self.has_ended = [], False
        cause = Cause(record.offset, message.type, record.timestamp_ms)
        self.events += [
            Event(effect.value, cause)
            for effect in decision.effects
            if isinstance(effect, Append) and effect.channel is Channel.RUN_EVENTS
        ]
        self.has_ended = self.has_ended or decision.ended

    def _decide(self, message: m.RunMessage, at_ms: int) -> Decision:
        try:
            return self._partition.decide(message, at_ms)
        except Exception as error:  # noqa: BLE001  # as the partition's task does: whatever is wrong, the run fails
            return self._abandon(message, error, at_ms)

    def _abandon(self, message: m.RunMessage, error: Exception, at_ms: int) -> Decision:
        try:
            return self._partition.abandon(message, error, at_ms)
        except Exception:  # noqa: BLE001  # as above: nothing touches the run any more
            self._partition.quarantine(message.run_id)
            return Decision(None)


class InboxReplay:
    """A run decided again from its partition of the inbox, up to where that ends."""

    def __init__(self, scan: PartitionScan, run_id: str) -> None:
        self._scan = scan
        self._run_id = run_id
        self._replay = Replay(run_id)

    @property
    def partition(self) -> int | None:
        """The number of the partition; None when there is no inbox."""
        return self._scan.partition

    @property
    def events(self) -> Sequence[Event]:
        """The run's events so far."""
        return self._replay.events

    @property
    def has_ended(self) -> bool:
        """Whether the run has."""
        return self._replay.has_ended

    async def begin(self, started_ms: int | None) -> bool:
        """Decide the run again from its first record, which was appended at `started_ms` if that is known.

        Return whether the inbox still holds that record.
        """
        if started_ms is not None:
            await self._begin_at(started_ms)
            if self._began_at(started_ms):
                return True
        await self._begin_at(None)
        # A submission that was sent twice has its second record behind the first, which may be gone.
        return bool(self.events) and (
            started_ms is None or self._began_at(started_ms) or await self._scan.first_offset() == 0
        )

    def _began_at(self, started_ms: int) -> bool:
        return bool(self.events) and self.events[0].cause.at_ms == started_ms

    async def _begin_at(self, at_ms: int | None) -> None:
        self._replay = Replay(self._run_id)
        await self._scan.seek(at_ms)
        async for records in self._scan.to_end():
            for record in records:
                self._replay.take(record)
                if at_ms is not None and self.has_ended:  # an id may come to a second run, of another time
                    return

    async def go_on(self) -> None:
        """Decide what was appended since."""
        async for records in self._scan.to_end():
            for record in records:
                self._replay.take(record)


@asynccontextmanager
async def open_inbox(settings: Settings, run_id: str) -> AsyncIterator[InboxReplay]:
    """Yield the run's replay, with a connection to Kafka of its own."""
    async with PartitionScan(settings, settings.topics.inbox, run_id.encode()) as scan:
        yield InboxReplay(scan, run_id)
