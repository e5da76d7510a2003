"""The record's loop: take run events, write them into SQL, tell who follows the runs, and only then call them done.

It goes its own pace, in a consumer group of its own: a database that is slow or away holds up nobody but its readers.
Where it goes on after a rebalance or a restart the record itself says, in the same transaction as the rows: a database
that was restored from a backup catches up from there.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple, Protocol

from structlog.typing import FilteringBoundLogger

from anabranch.services.history.decoded import DecodedEvents, ReadEvent
from anabranch.services.history.events import EventLog, EventRecord, named
from anabranch.services.history.metrics import HistoryMetrics
from anabranch.services.history.projector import DeadLetters
from anabranch.services.history.tracing import BatchSpans
from anabranch.shared.contracts.codec import Undecodable
from anabranch.shared.contracts.messages import RunEventMessage
from anabranch.shared.contracts.text import writable
from anabranch.shared.record.errors import RecordUnavailable, RowsRefused
from anabranch.shared.record.rows import COLUMNS, Known, Place, Rows
from anabranch.shared.record.writing import RecordWriter, write

_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 2.0  # below the time a stop has
_AT_A_TIME: Final = 25  # events that are decoded in one turn of the loop: readers wait for the other loop
_LATER: Final = frozenset(COLUMNS) - {"progress"}
_PROGRESS: Final = frozenset({"progress"})

Changed = Sequence[tuple[str, int, str]]
"""Runs, each with its last event's number and the status it has ended with, or nothing."""


class Notices(Protocol):
    """Tells those who follow runs that the record has more of them."""

    async def tell(self, changed: Changed) -> None:
        """Tell them; nobody hears it where Redis is away, and then they look for themselves."""
        ...


class Arrived(NamedTuple):
    """A record of the topic and the event in it, none where there is none."""

    record: EventRecord
    read: ReadEvent | None

    @property
    def event(self) -> RunEventMessage | None:
        """The event alone."""
        return self.read.event if self.read else None

    @property
    def place(self) -> Place:
        """Where it stands."""
        record = self.record
        return Place(record.partition, record.offset, record.timestamp, record.value or b"")


class Recorder:
    """Keeps the record up with the log.

    1. Take what has arrived. What is no run event is none here; the projector has it in the dead letters.
    2. Write it with how far the record is, in one transaction, until the database takes it.
    3. What the database will never take goes to the dead letters, run by run.
    4. Tell who follows the runs. Call the records done.
    """

    def __init__(
        self,
        events: EventLog,
        record: RecordWriter,
        notices: Notices,
        dead_letters: DeadLetters,
        decoded: DecodedEvents,
        *,
        metrics: HistoryMetrics,
        log: FilteringBoundLogger,
        now_s: Callable[[], float] = time.time,
        spans: BatchSpans | None = None,
    ) -> None:
        self._events = events
        self._record = record
        self._notices = notices
        self._dead_letters = dead_letters
        self._decoded = decoded
        self._metrics = metrics
        self._log = log
        self._now_s = now_s
        self._spans = spans

    async def run(self, stopping: asyncio.Event) -> None:
        """Record until told to stop."""
        while not stopping.is_set():
            # 1.
            records = await self._events.take()
            if records:
                await self._keep(await self._arrived(records), stopping)

    async def _arrived(self, records: Sequence[EventRecord]) -> list[Arrived]:
        arrived: list[Arrived] = []
        for number, record in enumerate(records, start=1):
            read = self._decoded.of(record)
            arrived.append(Arrived(record, None if isinstance(read, Undecodable) else read))
            if not number % _AT_A_TIME:
                await asyncio.sleep(0)
        return arrived

    async def _keep(self, arrived: Sequence[Arrived], stopping: asyncio.Event) -> None:
        began_ns = self._spans.now_ns() if self._spans is not None else 0
        # 2.
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                changed = await self._write(arrived)
                break
            except RecordUnavailable as error:
                self._metrics.record_refused()
                if delay_s == _FIRST_DELAY_S:
                    self._log.warning("the database does not answer: run events wait in Kafka", error=str(error))
                await self._events.hold(delay_s)
                delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
                if stopping.is_set():
                    return  # not done, so whoever reads them next records them
        if delay_s != _FIRST_DELAY_S:
            self._log.info("the database answers again: the record goes on")
        self._metrics.recorded_until(age_s=self._now_s() - min(each.record.timestamp for each in arrived) / 1000)
        if self._spans is not None:
            self._spans.written([each.record for each in arrived], began_ns)
        # 4.
        await self._notices.tell(changed)
        self._events.done([each.record for each in arrived])

    async def _write(self, arrived: Sequence[Arrived]) -> Changed:
        try:
            return await self._write_at_once(arrived, frozenset(COLUMNS))
        except RowsRefused:
            changed = await self._write_apart(arrived)
            await self._write_at_once([each._replace(read=None) for each in arrived], _PROGRESS)
            await self._dead_letters.acknowledged()
            return changed

    async def _write_apart(self, arrived: Sequence[Arrived]) -> Changed:
        """Write the halves of a batch that was refused, down to the one run that the database will not take."""
        # 3.
        runs = sorted({each.event.run_id for each in arrived if each.event})
        if len(runs) <= 1:
            try:
                return await self._write_at_once(arrived, _LATER)
            except RowsRefused as error:
                for each in arrived:
                    self._bury(each.record, error)
                return ()
        some = frozenset(runs[: len(runs) // 2])
        halves = [each for each in arrived if _is_of(each, some)], [each for each in arrived if not _is_of(each, some)]
        return [one for half in halves for one in await self._write_apart(half)]

    async def _write_at_once(self, arrived: Sequence[Arrived], tables: Collection[str]) -> Changed:
        async with self._record.transaction() as session:
            runs = {each.event.run_id for each in arrived if each.event}
            rows = await self._rows(arrived, await session.known(sorted(runs)) if runs else {})
            await write(session, rows, tables)
        self._metrics.recorded(recorded=rows.recorded, repeated=rows.repeated, missing=rows.missing)
        return rows.changed()

    async def _rows(self, arrived: Sequence[Arrived], known: dict[str, Known]) -> Rows:
        rows = Rows(known)
        for number, each in enumerate(arrived, start=1):
            rows.passed(each.place)
            if each.read is not None:
                try:
                    rows.add(each.read.event, each.place, each.read.fields)
                except Exception as error:  # noqa: BLE001  whatever is wrong with one event, the others go on
                    self._bury(each.record, error)
            if not number % _AT_A_TIME:
                await asyncio.sleep(0)
        return rows

    def _bury(self, record: EventRecord, error: Exception) -> None:
        self._metrics.dead_lettered()
        self._log.error(
            "a run event cannot be recorded",
            partition=record.partition,
            offset=record.offset,
            error_type=type(error).__name__,
            error=writable(str(error)),
            **named(record),
        )
        self._dead_letters.append(record, error_type=type(error).__name__, message=str(error))


def _is_of(arrived: Arrived, runs: Collection[str]) -> bool:
    return arrived.event is not None and arrived.event.run_id in runs
