"""The history service: `python -m anabranch.services.history`. The one place that wires it."""

import asyncio
from typing import Final

from aiokafka import AIOKafkaConsumer

from anabranch.services.history.dead_letters import KafkaDeadLetters
from anabranch.services.history.decoded import DecodedEvents
from anabranch.services.history.events import KafkaEventLog, by_load
from anabranch.services.history.metrics import HistoryMetrics
from anabranch.services.history.progress import RedisProgress
from anabranch.services.history.projector import Projector
from anabranch.services.history.record_keeping import RecordKeeping
from anabranch.services.history.settings import HistorySettings
from anabranch.services.history.store import RedisSnapshots
from anabranch.services.history.tracing import BatchSpans
from anabranch.shared.runtime.deadline import Deadline
from anabranch.shared.runtime.kafka import Outbox, new_consumer, stop_consumer, wait_for_kafka
from anabranch.shared.runtime.redis import RedisKeys, new_redis
from anabranch.shared.runtime.service import Service, run_service

_KAFKA_WITHIN_S: Final = 60.0
_LOOK_AGAIN_S: Final = 0.5  # for a topic that another service creates


class History:
    """Run events in, snapshots and the record out, until the service stops."""

    def __init__(self, service: Service[HistorySettings]) -> None:
        settings = service.settings
        self._service = service
        self._waits_for = "Kafka"
        self._metrics = HistoryMetrics(service.registry)
        self._redis = new_redis(settings)
        self._outbox = Outbox(settings)
        self._events = KafkaEventLog(
            settings,
            group=settings.history_group,
            rest_s=by_load(settings.history_gather_s),
            batch_records=settings.history_batch_records,
            fail=service.fail,
            metrics=self._metrics,
            log=service.log,
        )
        keys = RedisKeys(settings.topic_prefix)
        snapshots = RedisSnapshots(
            self._redis,
            keys,
            active_ttl_s=settings.active_snapshot_ttl_s,
            ended_ttl_s=settings.snapshot_ttl_s,
            only_whole=bool(settings.database_url),
        )
        self._progress = RedisProgress(self._redis, keys)
        dead_letters = KafkaDeadLetters(self._outbox, settings)
        decoded = DecodedEvents(are_shared=bool(settings.database_url))
        self._projector = Projector(
            self._events, snapshots, dead_letters, decoded, metrics=self._metrics, log=service.log,
            spans=None if service.spans is None else BatchSpans(service.spans, "project"),
        )  # fmt: skip
        self._record = None
        if settings.database_url:
            self._record = RecordKeeping(service, self._redis, keys, dead_letters, decoded, metrics=self._metrics)
        service.ready_when("events", lambda: not self._waits_for or f"waits for {self._waits_for}")

    async def run(self) -> None:
        """Project and record until the service stops."""
        settings, stopping = self._service.settings, self._service.stopping
        await self._service.unless_stopping(wait_for_kafka(settings, Deadline.after(_KAFKA_WITHIN_S)))
        await self._outbox.start()
        try:
            await self._topic_exists(stopping)
            await self._events.start()
            self._waits_for = ""
            await self._work(stopping)
        finally:
            await self._events.stop()
            await self._outbox.stop(self._service.deadline)
            await self._redis.aclose()

    async def _work(self, stopping: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            committing = tasks.create_task(
                self._events.commit_every(self._service.settings.history_commit_s), name="commit offsets"
            )
            appending = tasks.create_task(_until_failed(self._outbox), name="watch the outbox")
            telling = tasks.create_task(
                self._progress.tell_for_ever(lambda: self._events.reached), name="tell how far the snapshots are"
            )
            recording = tasks.create_task(self._record.run(stopping), name="record") if self._record else None
            await self._projector.run(stopping)
            if recording is not None:
                await recording
            committing.cancel()
            telling.cancel()
            appending.cancel()

    async def _topic_exists(self, stopping: asyncio.Event) -> None:
        """Wait until the orchestrator has created the topic: a member of a group would not notice that for minutes."""
        topic = self._service.settings.topics.run_events
        looking: AIOKafkaConsumer = new_consumer(self._service.settings)
        await looking.start()
        try:
            while not stopping.is_set() and topic not in await looking.topics():
                self._waits_for = f"topic {topic}, which the orchestrator creates"
                await asyncio.sleep(_LOOK_AGAIN_S)
        finally:
            await stop_consumer(looking)


async def _until_failed(outbox: Outbox) -> None:
    await outbox.failed


async def serve(service: Service[HistorySettings]) -> None:
    """Run the service."""
    await History(service).run()


if __name__ == "__main__":
    run_service("history", HistorySettings(), serve)
