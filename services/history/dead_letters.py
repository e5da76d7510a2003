"""What history could not project, sent to the dead-letters topic."""

import base64

from anabranch.services.history.events import Record
from anabranch.services.history.settings import HistorySettings
from anabranch.shared.contracts.codec import encode
from anabranch.shared.contracts.limits import MAX_MESSAGE_BYTES
from anabranch.shared.contracts.messages import DeadLetter
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.runtime.kafka import Outbox

_NO_TRACE = "0" * 32


class KafkaDeadLetters:
    """Appends dead letters through the process's outbox."""

    def __init__(self, outbox: Outbox, settings: HistorySettings) -> None:
        self._outbox = outbox
        self._topic = settings.topics.dead_letters
        self._partitions = settings.run_partitions

    def append(self, record: Record, *, error_type: str, message: str) -> None:
        """Send the record as it was, byte for byte; without its value when that is larger than a message may be."""
        letter = DeadLetter(
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            at_ms=record.timestamp,
            key_base64=_base64(record.key),
            value_base64=_base64(record.value),
            headers={name: value.decode(errors="replace") for name, value in record.headers},
            service="history",
            error_type=error_type,
            error_message=message,
        )
        place = f"{record.topic}/{record.partition}/{record.offset}"
        encoded = encode(letter, message_id=place, source="history", at_ms=record.timestamp, trace_id=_NO_TRACE)
        partition = partition_of(record.key or b"", self._partitions)
        self._outbox.append(self._topic, partition, record.key, encoded.value, encoded.headers)

    async def acknowledged(self) -> None:
        """Return when all of them are acknowledged."""
        await self._outbox.acknowledged()


def _base64(value: bytes | None) -> str | None:
    if value is None or len(value) > MAX_MESSAGE_BYTES:
        return None
    return base64.b64encode(value).decode()
