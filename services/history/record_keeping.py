"""The record's half of the service: its database, its share of the events, and the loop between the two."""

import asyncio
from collections.abc import Mapping
from typing import Final

from anabranch.services.history.dead_letters import KafkaDeadLetters
from anabranch.services.history.decoded import DecodedEvents
from anabranch.services.history.events import KafkaEventLog, whenever_any
from anabranch.services.history.metrics import HistoryMetrics
from anabranch.services.history.notices import RedisNotices
from anabranch.services.history.recording import Recorder
from anabranch.services.history.retention import RecordRetention
from anabranch.services.history.settings import HistorySettings
from anabranch.services.history.tracing import BatchSpans
from anabranch.shared.record.database import UNANSWERED, open_database
from anabranch.shared.record.errors import RecordUnavailable
from anabranch.shared.record.schema import SchemaBehind, check
from anabranch.shared.record.writing import RecordWriter
from anabranch.shared.runtime.redis import Redis, RedisKeys
from anabranch.shared.runtime.service import Service

_LOOK_AGAIN_S: Final = 1.0  # for a database that is away, or that nobody has brought up to date yet


class RecordKeeping:
    """Run events in, rows out, until the service stops; as long as the database cannot be used they wait in Kafka."""

    def __init__(
        self,
        service: Service[HistorySettings],
        redis: Redis,
        keys: RedisKeys,
        dead_letters: KafkaDeadLetters,
        decoded: DecodedEvents,
        *,
        metrics: HistoryMetrics,
    ) -> None:
        settings = service.settings
        self._service = service
        self._database = open_database(settings.database_url, name=settings.instance)
        self._writer = RecordWriter(self._database)
        self._waits_for = "the database"
        self._events = KafkaEventLog(
            settings,
            group=settings.record_group,
            rest_s=whenever_any(settings.record_gather_s),
            batch_records=settings.record_batch_records,
            fail=service.fail,
            metrics=metrics,
            log=service.log,
            begins=self._begins,
        )
        notices = RedisNotices(redis, keys, metrics)
        self._retention = RecordRetention(settings, metrics=metrics, log=service.log)
        self._recorder = Recorder(
            self._events, self._writer, notices, dead_letters, decoded, metrics=metrics, log=service.log,
            spans=None if service.spans is None else BatchSpans(service.spans, "record"),
        )  # fmt: skip
        service.ready_when("record", lambda: not self._waits_for or f"waits for {self._waits_for}")

    async def run(self, stopping: asyncio.Event) -> None:
        """Record until told to stop."""
        try:
            await self._tables_are_there(stopping)
            if not stopping.is_set():
                await self._record(stopping)
        finally:
            await self._database.dispose()

    async def _record(self, stopping: asyncio.Event) -> None:
        await self._events.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                committing = tasks.create_task(
                    self._events.commit_every(self._service.settings.history_commit_s), name="commit the record's"
                )
                tasks.create_task(self._retention.run(stopping), name="forget old runs")
                await self._recorder.run(stopping)
                committing.cancel()
        finally:
            await self._events.stop()

    async def _tables_are_there(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            try:
                await check(self._database)
            except (SchemaBehind, *UNANSWERED) as error:
                words = str(error) if isinstance(error, SchemaBehind) else f"the database: {error!r}"
                if words != self._waits_for:
                    self._service.log.warning("nothing is recorded yet", error=words)
                self._waits_for = words
                await asyncio.sleep(_LOOK_AGAIN_S)
            else:
                self._waits_for = ""
                return

    async def _begins(self, partition: int) -> int:
        """Return where the record goes on, as the database has it; waits until it says so.

        What it has nothing of begins at the first record there is, wherever the group is: the database may have been
        emptied, or restored from a backup that is older than the partition's first event.
        """
        while True:
            try:
                progress: Mapping[int, int] = await self._writer.progress()
            except RecordUnavailable as error:
                self._service.log.warning("the record does not say how far it is", error=str(error))
                await asyncio.sleep(_LOOK_AGAIN_S)
            else:
                return progress.get(partition, 0)
