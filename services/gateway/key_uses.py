"""Says in Kafka when a key was last used. With a producer of its own: no run waits for it, and it fails no run."""

import asyncio

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from structlog.typing import FilteringBoundLogger

from anabranch.shared.contracts.messages import API_KEYS, ApiKeyUsed, use_key_of
from anabranch.shared.contracts.times import rfc3339


class KeyUses:
    """Uses that are still to be written, the last of each key."""

    def __init__(self, producer: AIOKafkaProducer, topic: str, log: FilteringBoundLogger) -> None:
        self._producer = producer
        self._topic = topic
        self._log = log
        self._noted: dict[str, float] = {}
        self._any = asyncio.Event()

    def note(self, key_id: str, used_s: float) -> None:
        """A key was used."""
        self._noted[key_id] = used_s
        self._any.set()

    async def write(self) -> None:
        """Write for ever. What cannot be written is left out: a key that goes on being used is noted again."""
        while True:
            await self._any.wait()
            self._any.clear()
            noted, self._noted = self._noted, {}
            try:
                for key_id, used_s in noted.items():
                    await self._append(key_id, used_s)
                await self._producer.flush()
            except (KafkaError, OSError, TimeoutError) as error:
                self._log.warning("when API keys were last used is not written", error=repr(error), keys=len(noted))

    async def _append(self, key_id: str, used_s: float) -> None:
        used = ApiKeyUsed(id=key_id, used_at=rfc3339(int(used_s * 1000)))
        appended = await self._producer.send(
            self._topic, API_KEYS.dump_json(used), key=use_key_of(key_id).encode(), partition=0
        )
        appended.add_done_callback(self._said)

    def _said(self, appended: "asyncio.Future[object]") -> None:
        if not appended.cancelled() and (error := appended.exception()) is not None:
            self._log.warning("when an API key was last used is not written", error=repr(error))
