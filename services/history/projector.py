"""The loop: take run events, change their snapshots, and only then call them done."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from structlog.typing import FilteringBoundLogger

from anabranch.services.history.decoded import DecodedEvents
from anabranch.services.history.events import EventLog, EventRecord, named
from anabranch.services.history.metrics import HistoryMetrics
from anabranch.services.history.projection import RunChange, add
from anabranch.services.history.store import NOT_JOINED, ChangeRejected, SnapshotStore, StoreUnavailable
from anabranch.services.history.tracing import BatchSpans
from anabranch.shared.contracts.codec import Undecodable
from anabranch.shared.contracts.text import writable

_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 2.0  # below the time a stop has


class DeadLetters(Protocol):
    """Where records go that cannot be projected."""

    def append(self, record: EventRecord, *, error_type: str, message: str) -> None:
        """Send a record there."""
        ...

    async def acknowledged(self) -> None:
        """Return when everything sent has arrived."""
        ...


class Projector:
    """Keeps snapshots up with the log.

    1. Take what has arrived. What is no run event goes to the dead letters.
    2. Overwrite the snapshots, until the store takes it: meanwhile nothing more is taken.
    3. Wait for the dead letters.
    4. Call the records done. A crash before this line projects them again, which changes nothing.
    """

    def __init__(
        self,
        events: EventLog,
        snapshots: SnapshotStore,
        dead_letters: DeadLetters,
        decoded: DecodedEvents,
        *,
        metrics: HistoryMetrics,
        log: FilteringBoundLogger,
        now_s: Callable[[], float] = time.time,
        spans: BatchSpans | None = None,
    ) -> None:
        self._events = events
        self._snapshots = snapshots
        self._dead_letters = dead_letters
        self._decoded = decoded
        self._metrics = metrics
        self._log = log
        self._now_s = now_s
        self._spans = spans

    async def run(self, stopping: asyncio.Event) -> None:
        """Project until told to stop."""
        while not stopping.is_set():
            # 1.
            records = await self._events.take()
            if records:
                await self._project(records, stopping)

    async def _project(self, records: Sequence[EventRecord], stopping: asyncio.Event) -> None:
        began_ns = self._spans.now_ns() if self._spans is not None else 0
        changes, dead = self._changes(records)
        # 2.
        before = await self._overwrite(changes, stopping)
        if before is None:
            return  # told to stop: not done, so whoever reads them next projects them
        if self._spans is not None:
            self._spans.written(records, began_ns)
        # 3.
        if dead + self._report(changes, before, records):
            await self._dead_letters.acknowledged()
        # 4.
        self._events.done(records)

    def _changes(self, records: Sequence[EventRecord]) -> tuple[list[RunChange], int]:
        changes: dict[str, RunChange] = {}
        dead = 0
        for record in records:
            read = self._decoded.of(record)
            if isinstance(read, Undecodable):
                dead += self._bury(record, "Undecodable", read.reason)
                continue
            try:
                add(changes, read.event, read.fields)
            except Exception as error:  # noqa: BLE001  # whatever is wrong with one event, the others go on
                dead += self._bury(record, type(error).__name__, str(error))
        return list(changes.values()), dead

    async def _overwrite(
        self, changes: Sequence[RunChange], stopping: asyncio.Event
    ) -> list[int | ChangeRejected] | None:
        """Return the seqs of before, or nothing when told to stop."""
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                before = await self._snapshots.apply(changes)
            except StoreUnavailable as error:
                self._wait_begins(error, first=delay_s == _FIRST_DELAY_S)
                await self._events.hold(delay_s)
                delay_s = min(delay_s * 2, _LONGEST_DELAY_S)
                if stopping.is_set():
                    return None
                continue
            if delay_s != _FIRST_DELAY_S:
                self._log.info("Redis answers again: projection goes on")
            return before

    def _wait_begins(self, error: StoreUnavailable, *, first: bool) -> None:
        self._metrics.refused()
        if first:
            self._log.warning("Redis does not take snapshots: run events wait in Kafka", error=str(error))

    def _report(
        self, changes: Sequence[RunChange], before: Sequence[int | ChangeRejected], records: Sequence[EventRecord]
    ) -> int:
        """Count and log what the store said; return how many records went to the dead letters."""
        rejected: dict[str, str] = {}
        projected = repeated = 0
        for change, seq in zip(changes, before, strict=True):
            if isinstance(seq, ChangeRejected):
                rejected[change.run_id] = str(seq)
                continue
            if seq == NOT_JOINED:
                self._metrics.not_joined(change.last_seq - change.first_seq + 1)
                continue
            projected += max(0, change.last_seq - max(seq, change.first_seq - 1) - change.missing)
            repeated += change.repeated + max(0, min(seq, change.last_seq) - change.first_seq + 1)
            self._note_gap(change, seq, records)
        self._metrics.flushed(projected=projected, repeated=repeated, age_s=self._age_s(records))
        return self._bury_rejected(records, rejected) if rejected else 0

    def _note_gap(self, change: RunChange, seq: int, records: Sequence[EventRecord]) -> None:
        if change.last_seq > seq and (missing := change.missing_after(seq)):
            self._metrics.events_missing(missing)
            self._log.warning(
                "run events are missing: the snapshot goes on without them",
                **_named_in(records, change.run_id),
                missing=missing,
                seq=change.last_seq,
                seq_before=seq,
            )

    def _age_s(self, records: Sequence[EventRecord]) -> float:
        oldest_ms: int = min(record.timestamp for record in records)
        return self._now_s() - oldest_ms / 1000

    def _bury_rejected(self, records: Sequence[EventRecord], rejected: dict[str, str]) -> int:
        buried = 0
        for record in records:
            run_id = record.key.decode(errors="replace") if record.key else ""
            if run_id in rejected:
                buried += self._bury(record, "ChangeRejected", rejected[run_id])
        return buried

    def _bury(self, record: EventRecord, error_type: str, message: str) -> int:
        """Send the record to the dead letters, and return that it is one."""
        self._metrics.dead_lettered()
        self._log.error(
            "record sent to the dead letters",
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            error_type=error_type,
            error=writable(message),
            **named(record),
        )
        self._dead_letters.append(record, error_type=error_type, message=message)
        return 1


def _named_in(records: Sequence[EventRecord], run_id: str) -> dict[str, str]:
    key = run_id.encode()
    return next((named(record) for record in records if record.key == key), {"run_id": run_id})
