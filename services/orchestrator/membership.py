"""A member of the orchestrators' group that reads nothing: it only tells which partitions this process owns."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError
from structlog.typing import FilteringBoundLogger

from anabranch.services.orchestrator.settings import OrchestratorSettings
from anabranch.shared.runtime.kafka import new_consumer, stop_consumer

_POLL_MS: Final = 10_000
_REPORT_OFFSETS_S: Final = 1.0
_HEARTBEATS_PER_SESSION: Final = 10

OnAssigned = Callable[[Iterable[int]], Awaitable[None]]
OnRevoked = Callable[[], Awaitable[None]]


class Membership:
    """Joins the group, calls back on every rebalance, and reports offsets for lag metrics.

    What a callback raises ends the process through `fail`: the client would log and swallow it.
    """

    def __init__(
        self,
        settings: OrchestratorSettings,
        *,
        on_assigned: OnAssigned,
        on_revoked: OnRevoked,
        offsets: Callable[[], Mapping[int, int]],
        fail: Callable[[BaseException], None],
        logger: FilteringBoundLogger,
    ) -> None:
        self._topic = settings.topics.inbox
        self._offsets = offsets
        self._logger = logger
        session_ms = round(1000 * settings.session_timeout_s)
        self._consumer: AIOKafkaConsumer = new_consumer(
            settings,
            group_id=settings.group,
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=session_ms // _HEARTBEATS_PER_SESSION,
        )
        self._listener = _Listener(self._consumer, on_assigned, on_revoked, fail)
        self._reported: dict[int, int] = {}

    async def start(self) -> None:
        """Join the group."""
        self._consumer.subscribe([self._topic], listener=self._listener)
        await self._consumer.start()

    async def stop(self) -> None:
        """Leave the group; the partitions go to the others at once. Revokes what is still owned first."""
        await stop_consumer(self._consumer)

    def rejoin(self) -> None:
        """Ask for a new assignment."""
        self._consumer.unsubscribe()
        self._consumer.subscribe([self._topic], listener=self._listener)

    @property
    def is_member(self) -> bool:
        """Whether the group has given this process its share, which may be none."""
        return self._listener.assigned

    async def run(self) -> None:
        """Stay a member, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll(), name="membership")
            tasks.create_task(self._report_offsets(), name="offset reports")

    async def _poll(self) -> None:
        while True:  # every partition is paused: a poll only says that we are alive
            await self._consumer.getmany(timeout_ms=_POLL_MS)

    async def _report_offsets(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_OFFSETS_S)
            owned = self._consumer.assignment()
            offsets = {p: o for p, o in self._offsets().items() if TopicPartition(self._topic, p) in owned}
            if offsets == self._reported or not offsets:
                continue
            try:
                await self._consumer.commit({TopicPartition(self._topic, p): o for p, o in offsets.items()})
                self._reported = offsets
            except KafkaError as error:  # they are for lag metrics only; the next report says the same
                self._logger.debug("offsets not reported", error=repr(error))


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # the client has no types
    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        on_assigned: OnAssigned,
        on_revoked: OnRevoked,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._consumer = consumer
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._fail = fail
        self.assigned = False

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self.assigned = False
        try:
            await self._on_revoked()
        except Exception as error:  # noqa: BLE001  # the client swallows what a listener raises: end the process instead
            self._fail(error)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        partitions = list(assigned)
        try:
            self._consumer.pause(*partitions)
            await self._on_assigned([tp.partition for tp in partitions])
        except Exception as error:  # noqa: BLE001  # as above
            self._fail(error)
        self.assigned = True
