"""Where run events come from: the port, and Kafka behind it."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from aiokafka.errors import KafkaError
from structlog.typing import FilteringBoundLogger

from anabranch.services.history.metrics import HistoryMetrics
from anabranch.services.history.settings import HistorySettings
from anabranch.shared.contracts.codec import header
from anabranch.shared.contracts.text import writable
from anabranch.shared.contracts.traces import trace_context_in
from anabranch.shared.runtime.errors import CommitRefused
from anabranch.shared.runtime.group_reader import GroupReader
from anabranch.shared.runtime.owned import Fail
from anabranch.shared.runtime.topic_reader import Record

_TAKE_S: Final = 1.0  # how long an idle service waits at most before it looks whether it has to stop
_REST_PER_EVENT_S: Final = 0.000_125  # eight thousand events a second are read as they come; more than that gather


class EventRecord(NamedTuple):
    """A record of the run-events topic, and the number of the assignment it was fetched under."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    assignment: int


def named(record: EventRecord) -> dict[str, str]:
    """Return what a line of the log names that is about a record: the run, and its trace."""
    said = trace_context_in(header(record.headers, "traceparent"))
    trace_id = "" if said is None else said.trace_id
    return {"run_id": writable((record.key or b"").decode(errors="replace")), "trace_id": trace_id}


class EventLog(Protocol):
    """Run events in the order of their partitions, each given again until it is `done`."""

    async def take(self) -> Sequence[EventRecord]:
        """Return what has arrived, after a while nothing."""
        ...

    async def hold(self, seconds: float) -> None:
        """Take nothing for a while, but keep what is ours."""
        ...

    def done(self, records: Sequence[EventRecord]) -> None:
        """These need not be given again."""
        ...


def by_load(most_s: float) -> Callable[[int], float]:
    """Return how many seconds events gather at the broker after so many were read.

    None or few are followed at once: somebody waits for each of them. A reader that asks for every event of a busy
    engine as it is written takes a third of a run's time away from those that run it (docs/benchmarks.md), so the rest
    grows with what was read, up to `most_s`.
    """
    return lambda events: min(most_s, events * _REST_PER_EVENT_S)


def whenever_any(rest_s: float) -> Callable[[int], float]:
    """Return the same for events that nobody waits for: some have been read, and more are read `rest_s` later."""
    return lambda events: rest_s if events else 0.0


class KafkaEventLog:
    """The run-events topic, shared by a consumer group. Events gather at the broker for `rest_s` after so many were
    read; `batch_records` are taken at once.

    Offsets are committed in the background and on revoke: a record between two commits is projected again by whoever
    reads it next, which changes nothing.
    """

    def __init__(
        self,
        settings: HistorySettings,
        *,
        group: str,
        rest_s: Callable[[int], float],
        batch_records: int,
        fail: Fail,
        metrics: HistoryMetrics,
        log: FilteringBoundLogger,
        **reader: Any,
    ) -> None:
        self._topic = settings.topics.run_events
        self._max_records = batch_records
        self._metrics = metrics
        self._log = log
        self._done: dict[int, int] = {}  # by partition: the offset to go on from
        self._reached: dict[int, int] = {}  # the same, committed or not, where anything was taken
        self._reader = GroupReader(
            settings,
            self._topic,
            group=group,
            tagged=self._tagged,
            fail=fail,
            rest_s=rest_s,
            auto_offset_reset="earliest",
            **reader,
        )

    async def start(self) -> None:
        """Join the group."""
        await self._reader.start(self)

    async def stop(self) -> None:
        """Commit and leave the group."""
        await self.commit()
        await self._reader.stop()

    async def take(self) -> Sequence[EventRecord]:
        """Return what has arrived within a second."""
        records = await self._reader.take(self._max_records, _TAKE_S)
        for record in records:
            self._reached.setdefault(record.partition, record.offset)
        return records

    async def hold(self, seconds: float) -> None:
        """Take nothing but stay a member: what arrives is fetched up to the reader's bounds and kept."""
        self._reader.stay()
        await asyncio.sleep(seconds)

    def done(self, records: Sequence[EventRecord]) -> None:
        """Note the offsets for the next commit, unless they are another member's by now."""
        for record in records:
            if record.assignment == self._reader.assignment:
                self._done[record.partition] = self._reached[record.partition] = record.offset + 1

    @property
    def reached(self) -> dict[int, int]:
        """How far all is done in each partition that is ours: the next offset."""
        return self._reader.positions | self._reached

    async def commit(self) -> None:
        """Commit what is done."""
        offsets, self._done = self._done, {}
        if not offsets:
            return
        try:
            await self._reader.commit(offsets, self._reader.assignment)
        except (CommitRefused, KafkaError) as error:
            self._metrics.commit_failed()
            self._log.warning("offsets not committed; the next commit covers them", error=repr(error))

    async def commit_every(self, seconds: float) -> None:
        """Commit for ever."""
        while True:
            await asyncio.sleep(seconds)
            await self.commit()

    def on_assigned(self, partitions: Iterable[int], assignment: int, at_ms: int) -> None:
        """Go on where the group's offsets stand: what was done under an assignment of before is committed or lost."""
        self._done, self._reached = {}, {}

    async def on_revoked(self, partitions: Iterable[int]) -> None:
        """Commit, so that the next owner repeats little."""
        await self.commit()

    def _tagged(self, partition: int, records: Sequence[Record], assignment: int) -> list[EventRecord]:
        topic = self._topic
        return [
            EventRecord(topic, partition, r.offset, r.timestamp_ms, r.key, r.value, r.headers, assignment)
            for r in records
        ]
