"""How many commands wait for each step type: seen from here, it is known also when no worker is there to say so."""

import asyncio
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from structlog.typing import FilteringBoundLogger

from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.pressure import lags_of
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.services.gateway.step_types import BUILT_IN, StepTypes
from anabranch.shared.contracts import groups

_LOOK_EVERY_S: Final = 15.0  # as often as Prometheus reads by default; two or three requests to Kafka for each type


class CommandLagWatch:
    """Compares the ends of the command topics with what their workers have committed."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        admin: AIOKafkaAdminClient,
        *,
        step_types: StepTypes,
        settings: GatewaySettings,
        metrics: GatewayMetrics,
        log: FilteringBoundLogger,
    ) -> None:
        self._consumer = consumer
        self._admin = admin
        self._step_types = step_types
        self._settings = settings
        self._metrics = metrics
        self._log = log

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            try:
                self._metrics.command_lags(await self.look())
            except (KafkaError, OSError, TimeoutError) as error:
                self._metrics.command_lags({})  # what was known before may be wrong
                self._log.debug("the lag of commands is unknown", error=repr(error))
            await asyncio.sleep(_LOOK_EVERY_S)

    async def look(self) -> dict[str, dict[int, int]]:
        """Return how many commands of each type and partition no worker has answered for."""
        served = sorted(set(self._step_types.known) - {each.name for each in BUILT_IN})
        topics = {self._settings.topics.steps(uses): uses for uses in served}
        described = await self._admin.describe_topics(list(topics)) if topics else []
        # As many as there are: a topic may have been made with another number of them than the settings say now.
        partitions = {
            topics[each["topic"]]: [TopicPartition(each["topic"], part["partition"]) for part in each["partitions"]]
            for each in described
        }
        return {uses: await self._lags(uses, of_topic) for uses, of_topic in partitions.items() if of_topic}

    async def _lags(self, uses: str, partitions: list[TopicPartition]) -> dict[int, int]:
        ends = await self._consumer.end_offsets(partitions)
        found = await self._admin.list_consumer_group_offsets(
            groups.workers(self._settings.topic_prefix, uses), partitions=partitions
        )
        committed = {partition: known.offset for partition, known in found.items() if known.offset >= 0}
        unknown = [partition for partition in partitions if partition not in committed]
        begins = await self._consumer.beginning_offsets(unknown) if unknown else {}
        return lags_of(ends, committed, begins)
