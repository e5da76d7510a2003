"""The process's one way to append: batches by partition, order kept, nobody waits."""

import asyncio
from typing import NoReturn

from aiokafka.structs import RecordMetadata

from anabranch.shared.contracts.codec import Headers
from anabranch.shared.runtime.deadline import Deadline
from anabranch.shared.runtime.settings import Settings


class Outbox:
    """Appends records through one idempotent producer."""

    unacknowledged: int
    failed: "asyncio.Future[NoReturn]"

    def __init__(self, settings: Settings) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        """Connect; `KafkaUnreachable` when no broker answers."""
        raise NotImplementedError

    async def stop(self, deadline: Deadline | None = None) -> None:
        """Wait until everything is acknowledged, at most until the deadline, and close."""
        raise NotImplementedError

    def append(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """Append a record: never blocks; the order within a partition is the order of calls."""
        raise NotImplementedError

    def acknowledged(self) -> "asyncio.Future[None]":
        """Return a future that is done when everything appended so far is acknowledged."""
        raise NotImplementedError

    async def append_and_wait(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers
    ) -> RecordMetadata:
        """Append a record and return where it is; raises `AppendFailed`."""
        raise NotImplementedError
