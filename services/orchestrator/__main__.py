"""`python -m anabranch.services.orchestrator`: wires the orchestrator and runs it."""

import asyncio
from collections.abc import Iterable
from typing import NoReturn

from anabranch.services.orchestrator.command_topics import CommandTopics
from anabranch.services.orchestrator.kafka_log import InboxReader, KafkaPartitionLog
from anabranch.services.orchestrator.membership import Membership
from anabranch.services.orchestrator.metrics import OrchestratorMetrics
from anabranch.services.orchestrator.owner import PartitionOwner
from anabranch.services.orchestrator.partition_task import PartitionTask
from anabranch.services.orchestrator.settings import OrchestratorSettings
from anabranch.services.orchestrator.tracing import DecisionSpans
from anabranch.shared.contracts.topics import CONTROL, DEAD_LETTERS, INBOX, RUN_EVENTS, STATE
from anabranch.shared.runtime.clock import now_ms
from anabranch.shared.runtime.kafka import Outbox, ensure_topics, wait_for_kafka
from anabranch.shared.runtime.lanes import Lanes
from anabranch.shared.runtime.service import Deadline, Service, run_service

_OWNED_TOPICS = (INBOX, STATE, RUN_EVENTS, CONTROL, DEAD_LETTERS)
_KAFKA_WAIT_S = 60.0


async def main(service: Service[OrchestratorSettings]) -> None:
    """Own partitions until told to stop."""
    settings, logger = service.settings, service.log
    service.ready_when("membership", lambda: "waiting for Kafka")
    await service.unless_stopping(wait_for_kafka(settings, Deadline.after(_KAFKA_WAIT_S)))
    await ensure_topics(settings, [(topic, topic.name(settings.topic_prefix)) for topic in _OWNED_TOPICS])
    metrics = OrchestratorMetrics(service.registry)
    outbox, reader = Outbox(settings), InboxReader(settings)
    await outbox.start()
    await reader.start()
    command_topics = CommandTopics(settings.topics, metrics, logger, gone=lambda uses: _resend(owner, uses))
    lanes = Lanes(settings, command_topics)
    await lanes.start()
    background: set[asyncio.Task[None]] = set()

    def fail(error: BaseException) -> None:
        task = asyncio.create_task(service.fail(error), name="fail")
        background.add(task)

    def on_failed(failed: "asyncio.Future[NoReturn]") -> None:
        if not failed.cancelled() and (error := failed.exception()) is not None:
            fail(error)

    def new_task(partition: int, assignment: int) -> PartitionTask:
        log = KafkaPartitionLog(partition, assignment, settings=settings, reader=reader, outbox=outbox, lanes=lanes)
        spans = None if service.spans is None else DecisionSpans(service.spans, partition)
        return PartitionTask(log, settings.topics.inbox, metrics, logger, settings.pace, now_ms=now_ms, spans=spans)

    def rejoin() -> None:
        membership.rejoin()

    async def on_assigned(partitions: Iterable[int]) -> None:
        metrics.assigned()
        await owner.on_assigned(partitions)

    owner = PartitionOwner(new_task=new_task, rejoin=rejoin, fail=fail, logger=logger)
    metrics.watch(lambda: owner.tasks)
    membership = Membership(
        settings,
        on_assigned=on_assigned,
        on_revoked=owner.on_revoked,
        offsets=lambda: {p: task.offset for p, task in owner.tasks.items() if task.offset is not None},
        fail=fail,
        logger=logger,
    )
    outbox.failed.add_done_callback(on_failed)
    lanes.failed.add_done_callback(on_failed)
    service.ready_when("membership", lambda: membership.is_member or "waiting for the group's first assignment")
    service.ready_when("partitions", lambda: _restored(owner))
    running = [
        asyncio.create_task(reader.run(), name="inbox reader"),
        asyncio.create_task(_stay(membership), name="membership"),
    ]
    await _until_stopping(service, running)
    await owner.stop()
    await membership.stop()
    await _cancel(running)
    await lanes.stop()
    outbox.failed.remove_done_callback(on_failed)  # from here on `stop` itself raises what is lost
    await outbox.stop(service.deadline)
    await reader.stop()


def _resend(owner: PartitionOwner, uses: str) -> None:
    for task in owner.tasks.values():
        task.commands_gone(uses)


async def _stay(membership: Membership) -> None:
    await membership.start()
    await membership.run()


def _restored(owner: PartitionOwner) -> bool | str:
    waiting = sorted(partition for partition, task in owner.tasks.items() if not task.is_restored)
    return f"partitions {waiting} are being restored" if waiting else True


async def _until_stopping(service: Service[OrchestratorSettings], running: "list[asyncio.Task[None]]") -> None:
    stopping = asyncio.create_task(service.stopping.wait(), name="stopping")
    try:
        done, _ = await asyncio.wait([stopping, *running], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
    for task in done - {stopping}:
        task.result()


async def _cancel(running: "list[asyncio.Task[None]]") -> None:
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


if __name__ == "__main__":
    run_service("orchestrator", OrchestratorSettings(), main)
