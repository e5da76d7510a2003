"""What history could not project, sent to the dead-letters topic."""

from anabranch.services.history.events import EventRecord
from anabranch.services.history.settings import HistorySettings
from anabranch.shared.contracts.dead_letters import Origin, dead_letter, letter_key
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.runtime.kafka import Outbox


class KafkaDeadLetters:
    """Appends dead letters through the process's outbox."""

    def __init__(self, outbox: Outbox, settings: HistorySettings) -> None:
        self._outbox = outbox
        self._topic = settings.topics.dead_letters
        self._partitions = settings.run_partitions

    def append(self, record: EventRecord, *, error_type: str, message: str) -> None:
        """Send the record as it was, byte for byte; the beginning of a value that is too large."""
        origin = Origin(
            record.topic, record.partition, record.offset, record.timestamp, record.key, record.value, record.headers
        )
        letter = dead_letter(origin, service="history", source="history", error_type=error_type, reason=message)
        key = letter_key(record.key)
        partition = partition_of(key or b"", self._partitions)
        self._outbox.append(self._topic, partition, key, letter.value, letter.headers)

    async def acknowledged(self) -> None:
        """Return when all of them are acknowledged."""
        await self._outbox.acknowledged()
