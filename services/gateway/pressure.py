"""When to send submissions away: before Kafka or the orchestrators are hurt by them."""

import asyncio
from collections.abc import Mapping
from typing import Final, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from structlog.typing import FilteringBoundLogger

from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.problems import unavailable
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.shared.contracts.limits import MAX_UNACKNOWLEDGED_BYTES

_RETRY_LAG_S: Final = 5  # the orchestrators work off some thousands of records a second
_RETRY_SOON_S: Final = 1
_UNKNOWN: Final = -1


class Appending(Protocol):
    """The part of the outbox that says how much is on its way."""

    unacknowledged: int
    unacknowledged_bytes: int


class Pressure:
    """What is known about the way a submission has to go. `refuse_if_high` is a comparison or two."""

    def __init__(self, outbox: Appending, settings: GatewaySettings, metrics: GatewayMetrics) -> None:
        self._outbox = outbox
        self._settings = settings
        self._metrics = metrics
        self.inbox_exists = False
        self.lag = _UNKNOWN

    def refuse_if_high(self) -> None:
        """Raise a 503 problem when a submission should come back later."""
        if self.inbox_exists and self.lag > self._settings.max_inbox_lag:
            self._metrics.run_refused("inbox_lag")
            raise unavailable(
                f"The orchestrators are {self.lag} records behind; {self._settings.max_inbox_lag} is the limit.",
                retry_after_s=_RETRY_LAG_S,
            )
        self.refuse_if_no_way()

    def refuse_if_no_way(self) -> None:
        """Raise a 503 problem when nothing can be appended now, not even what takes work off the orchestrators."""
        if not self.inbox_exists:
            self._metrics.run_refused("no_inbox")
            raise unavailable("The orchestrator has not created its inbox yet.", retry_after_s=_RETRY_SOON_S)
        outbox = self._outbox
        is_heavy = outbox.unacknowledged_bytes >= MAX_UNACKNOWLEDGED_BYTES
        if is_heavy or outbox.unacknowledged >= self._settings.max_unacknowledged:
            self._metrics.run_refused("unacknowledged")
            raise unavailable("Too many requests are on their way to Kafka.", retry_after_s=_RETRY_SOON_S)

    def measured(self, lag: int, partitions: Mapping[int, int] = {}) -> None:
        """The inbox exists and the orchestrators are this far behind, in all and in each partition."""
        self.inbox_exists = True
        self.lag = lag
        self._metrics.inbox_lag(lag, partitions)

    def not_measured(self) -> None:
        """Kafka did not say how far they are. What was known before may be wrong: nobody is refused for it."""
        self.lag = _UNKNOWN
        self._metrics.inbox_lag(_UNKNOWN)


class LagWatch:
    """Compares the inbox's ends with the orchestrators' committed offsets: two requests to Kafka per look."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        admin: AIOKafkaAdminClient,
        pressure: Pressure,
        settings: GatewaySettings,
        log: FilteringBoundLogger,
    ) -> None:
        self._consumer = consumer
        self._admin = admin
        self._pressure = pressure
        self._settings = settings
        self._log = log
        self._partitions = [TopicPartition(settings.topics.inbox, n) for n in range(settings.run_partitions)]
        self._begins: Mapping[TopicPartition, int] = {}
        self._is_said = False  # before the first measurement as well

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            try:
                await self._look()
            except (KafkaError, OSError, TimeoutError) as error:
                self._say_unknown(error)
                self._pressure.not_measured()
            soon = not self._pressure.inbox_exists
            await asyncio.sleep(min(0.5, self._settings.lag_check_s) if soon else self._settings.lag_check_s)

    def _say_unknown(self, error: BaseException) -> None:
        """Say so once: until it was measured again the next look says the same."""
        if self._pressure.lag != _UNKNOWN or not self._is_said:
            self._log.warning("the inbox's lag is unknown", error=repr(error))
        self._is_said = True

    async def _look(self) -> None:
        if not self._pressure.inbox_exists and self._settings.topics.inbox not in await self._consumer.topics():
            return
        ends = await self._consumer.end_offsets(self._partitions)
        committed = await self._admin.list_consumer_group_offsets(
            self._settings.orchestrator_group, partitions=self._partitions
        )
        offsets = {partition: known.offset for partition, known in committed.items() if known.offset >= 0}
        if len(offsets) < len(self._partitions) and not self._begins:
            self._begins = await self._consumer.beginning_offsets(self._partitions)
        lags = lags_of(ends, offsets, self._begins)
        self._pressure.measured(sum(lags.values()), lags)


def lags_of(
    ends: Mapping[TopicPartition, int],
    committed: Mapping[TopicPartition, int],
    begins: Mapping[TopicPartition, int],
) -> dict[int, int]:
    """Return how many records of each partition are not yet read; without a committed offset, all of them."""
    return {each.partition: max(0, end - committed.get(each, begins.get(each, 0))) for each, end in ends.items()}
