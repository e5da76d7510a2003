"""Which API keys there are: followed in Kafka, so that neither Redis nor SQL is needed to authenticate."""

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from aiokafka import AIOKafkaConsumer
from pydantic import ValidationError
from structlog.typing import FilteringBoundLogger

from anabranch.services.gateway.principal import Principal
from anabranch.services.gateway.whole_topic import Record, records_of
from anabranch.shared.contracts.api_keys import Scope, hash_of, key_id_of
from anabranch.shared.contracts.limits import MAX_API_KEYS
from anabranch.shared.contracts.messages import API_KEYS, ApiKeyIssued, ApiKeyUsed, use_key_of

NOTED_EVERY_S: Final = 60.0  # for each key: when it was last used
_NO_HASH: Final = "0" * 64  # compared with when there is no such key: the answer takes as long


@dataclass(slots=True)
class _Known:
    hash: str
    expires_s: float
    principal: Principal
    used_s: float = 0.0  # as it was last noted, by whichever gateway


class ApiKeys:
    """The keys that work, by id."""

    def __init__(
        self, now_s: Callable[[], float] = time.time, *, used: Callable[[str, float], None] = lambda _, __: None
    ) -> None:
        self.complete = False  # everything written before this process started was read
        self._known: dict[str, _Known] = {}
        self._now_s = now_s
        self._used = used

    def principal(self, text: str) -> Principal | None:
        """Return whose key this is, or None when it does not work, for whatever reason."""
        key_id = key_id_of(text)
        known = self._known.get(key_id) if key_id is not None else None
        matches = hmac.compare_digest(hash_of(text), _NO_HASH if known is None else known.hash)
        now_s = self._now_s()
        if known is None or not matches or known.expires_s <= now_s:
            return None
        if key_id is not None and now_s - known.used_s >= NOTED_EVERY_S:
            known.used_s = now_s
            self._used(key_id, now_s)
        return known.principal

    def take(self, key: bytes, value: bytes | None) -> None:
        """Apply one record. Raises `ValueError` for one that cannot be read: its key does not work any more."""
        key_id = key.decode(errors="replace")
        self._known.pop(key_id, None)
        if value is None:
            return
        message = API_KEYS.validate_json(value)
        if isinstance(message, ApiKeyUsed):
            self._take_use(key_id, message)
        else:
            self._take_key(key_id, message)

    def _take_use(self, record_key: str, use: ApiKeyUsed) -> None:
        if record_key != use_key_of(use.id):
            raise ValueError("the record's key is not that of a use")
        known, used_s = self._known.get(use.id), _seconds(use.used_at)
        if known is not None and known.used_s < used_s <= self._now_s():
            known.used_s = used_s

    def _take_key(self, key_id: str, issued: ApiKeyIssued) -> None:
        if issued.id != key_id:
            raise ValueError("the record's key is not the id in it")
        if issued.revoked_at is not None:
            return
        if len(self._known) >= MAX_API_KEYS:
            raise ValueError(f"there are {MAX_API_KEYS} keys already")
        self._known[key_id] = _known(issued)


def _known(issued: ApiKeyIssued) -> _Known:
    expires_s = float("inf") if issued.expires_at is None else _seconds(issued.expires_at)
    scopes = frozenset(Scope(scope) for scope in issued.scopes)
    return _Known(issued.hash, expires_s, Principal(issued.tenant, scopes, f"key:{issued.id}"))


def _seconds(text: str) -> float:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("a time without its zone")
    return at.timestamp()


class ApiKeyReader:
    """Follows the topic of API keys."""

    def __init__(self, consumer: AIOKafkaConsumer, topic: str, api_keys: ApiKeys, log: FilteringBoundLogger) -> None:
        self._consumer = consumer
        self._topic = topic
        self._api_keys = api_keys
        self._log = log

    async def follow(self) -> None:
        """Read for ever."""
        async for record in records_of(self._consumer, self._topic, self._is_complete):
            self.take(record)

    def _is_complete(self) -> None:
        self._api_keys.complete = True

    def take(self, record: Record) -> None:
        """Apply one record of the topic."""
        try:
            self._api_keys.take(record.key or b"", record.value)
        except (ValidationError, ValueError):  # without its text: it may quote the record
            key_id = (record.key or b"")[:80].decode(errors="replace")
            self._log.error("a record of an API key cannot be read: the key does not work", key=key_id)
