"""Announces a step type, and again when the announcement was overwritten or removed; notices when its topic is gone.

Anybody may write the step-types topic. What stands there last under the type's name is what gateways check pipelines
against, so the service looks after it for as long as it lives: the first time it is written again at once. Two versions
of one service each want their own to stand there: while both run they take turns with growing pauses of some seconds at
most, and the one that stays has the last word.
"""

import asyncio
from hashlib import blake2b
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from structlog.typing import FilteringBoundLogger

from anabranch.services.steps.step_type import StepType
from anabranch.shared.contracts.announcements import BadAnnouncement, check_announcement
from anabranch.shared.contracts.codec import Encoded, encode
from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.contracts.limits import MAX_ANNOUNCEMENT_BYTES
from anabranch.shared.runtime.clock import now_ms
from anabranch.shared.runtime.kafka import Outbox, new_consumer, stop_consumer
from anabranch.shared.runtime.owned import Fail
from anabranch.shared.runtime.settings import Settings

_LOOK_MS: Final = 5_000  # a poll of the topic without records ends after this; then the command topic is looked for
_AGAIN_AFTER_S: Final = 0.1  # the second time in a row; the first time at once, for pipelines are refused meanwhile
_AGAIN_AT_MOST_S: Final = 3.0
_QUIET_S: Final = 15.0  # after this the next time is a first one
_PAUSE_S: Final = 5.0  # after an error of Kafka's
_GONE_AFTER_S: Final = 5.0  # orchestrators look every two seconds: none misses that the commands in it are gone


def announcement_of(step_type: StepType[Any, Any]) -> Encoded:
    """Return the record that announces a type. Raises `BadAnnouncement` when no gateway would take it."""
    message = step_type.announcement()
    check_announcement(message)
    record = encode(
        message,
        message_id=f"{step_type.name}/{step_type.version}",
        source=f"anabranch/steps/{step_type.name}",
        at_ms=now_ms(),
        trace_id=blake2b(step_type.name.encode(), digest_size=16).hexdigest(),
    )
    if len(record.value) > MAX_ANNOUNCEMENT_BYTES:
        raise BadAnnouncement(
            f"its schemas take {len(record.value)} bytes; at most {MAX_ANNOUNCEMENT_BYTES} are allowed"
        )
    return record


class CommandTopicGone(AnabranchError):
    """The service's command topic was deleted: nothing that is known of its offsets holds any more."""


class Announcing:
    """Keeps a step type announced."""

    def __init__(
        self, step_type: StepType[Any, Any], outbox: Outbox, settings: Settings, log: FilteringBoundLogger, fail: Fail
    ) -> None:
        self._name = step_type.name
        self._record = announcement_of(step_type)
        self._outbox = outbox
        self._settings = settings
        self._log = log
        self._fail = fail
        self._partition = TopicPartition(settings.topics.step_types, 0)
        self._is_failing = False
        self._pause_s = 0.0
        self._again_at_s = -_QUIET_S
        self._last: bytes | None = None  # what stands under our name, as far as was read

    def announce(self) -> None:
        """Tell the gateways of the type: pipelines that use it are checked against its schemas from now on."""
        key, (value, headers) = self._name.encode(), self._record
        self._outbox.append(self._partition.topic, 0, key, value, headers)

    async def keep(self) -> None:
        """Look after it for ever. What Kafka refuses here stops no step: it is tried again.

        A command topic that is gone ends the process; it is created at the next start.
        """
        while True:
            try:
                await self._look_after()
            except (KafkaError, OSError) as error:
                if not self._is_failing:  # it is tried again every few seconds
                    self._log.warning("the announcement cannot be looked after", uses=self._name, error=repr(error))
                self._is_failing = True
            await asyncio.sleep(_PAUSE_S)

    async def _look_after(self) -> None:
        consumer = new_consumer(self._settings, auto_offset_reset="earliest", fetch_max_wait_ms=_LOOK_MS)
        try:
            await consumer.start()
            await self._follow(consumer)
        finally:
            await stop_consumer(consumer)

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        await self._outbox.acknowledged()
        consumer.assign([self._partition])
        await consumer.seek_to_beginning(self._partition)
        self._last = None
        while True:
            await self._read_to_end(consumer)
            if self._is_failing:
                self._is_failing = False
                self._log.info("the announcement is looked after again", uses=self._name)
            if self._last != self._record.value:
                self._log.warning("the step type was announced otherwise: announcing it again", uses=self._name)
                await self._pause()
                self.announce()
                await self._outbox.acknowledged()
            await self._topic_is_there(consumer)

    async def _pause(self) -> None:
        """Wait for the own turn: not at all after a quiet while, then longer each time."""
        now_s = asyncio.get_running_loop().time()
        was_quiet = now_s - self._again_at_s > _QUIET_S
        self._pause_s = 0.0 if was_quiet else min(max(2 * self._pause_s, _AGAIN_AFTER_S), _AGAIN_AT_MOST_S)
        await asyncio.sleep(self._pause_s)
        self._again_at_s = now_s + self._pause_s

    async def _read_to_end(self, consumer: AIOKafkaConsumer) -> None:
        """Wait for a while for what is written, and read all of it."""
        key, is_read = self._name.encode(), False
        while not is_read:
            fetched = await consumer.getmany(self._partition, timeout_ms=_LOOK_MS)
            for record in (record for records in fetched.values() for record in records):
                if record.key == key:
                    self._last = record.value
            end = (await consumer.end_offsets([self._partition]))[self._partition]
            is_read = await consumer.position(self._partition) >= end

    async def _topic_is_there(self, consumer: AIOKafkaConsumer) -> None:
        name = self._settings.topics.steps(self._name)
        if name in await consumer.topics():
            return
        await asyncio.sleep(_GONE_AFTER_S)
        if name not in await consumer.topics():
            await self._fail(CommandTopicGone(f"{name} was deleted; it is created at the next start"))
