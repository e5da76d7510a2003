"""What `anabranch keys` does: an operator's command, which reads and writes Kafka itself."""

import secrets
import time
from dataclasses import dataclass, field

from aiokafka import TopicPartition

from anabranch.client.commands import FAILED, OK, put, say
from anabranch.shared.contracts.api_keys import ID_BYTES, SECRET_BYTES, Scope, api_key, hash_of
from anabranch.shared.contracts.limits import MAX_API_KEYS
from anabranch.shared.contracts.messages import API_KEYS, ApiKeyIssued, ApiKeyUsed, use_key_of
from anabranch.shared.contracts.times import rfc3339
from anabranch.shared.contracts.topics import API_KEYS as TOPIC
from anabranch.shared.runtime.clients import new_consumer, new_producer, stop_consumer, wait_for_kafka
from anabranch.shared.runtime.deadline import Deadline
from anabranch.shared.runtime.errors import KafkaUnreachable
from anabranch.shared.runtime.kafka import ensure_topics
from anabranch.shared.runtime.settings import Settings


@dataclass(slots=True)
class Found:
    """What the topic says: each key by its id, and when it was last used."""

    issued: dict[str, ApiKeyIssued] = field(default_factory=dict)
    used_at: dict[str, str] = field(default_factory=dict)

    def take(self, record_key: str, value: bytes | None) -> None:
        """Apply one record, as a gateway does."""
        try:
            message = None if value is None else API_KEYS.validate_json(value)
        except ValueError:
            message = None
            say(f"the record of key {record_key} cannot be read: it does not work")
        if isinstance(message, ApiKeyUsed) and record_key == use_key_of(message.id):
            self.used_at[message.id] = message.used_at
        elif isinstance(message, ApiKeyIssued) and record_key == message.id:
            self.issued[record_key] = message
        else:
            self.issued.pop(record_key, None)


async def create(settings: Settings, *, tenant: str, scopes: tuple[str, ...], name: str, days: int | None) -> int:
    """Make a key and print it: this once, since only its hash is kept."""
    text, issued = new_key(tenant=tenant, scopes=scopes, name=name, days=days, now_ms=time.time_ns() // 1_000_000)
    if not await _reaches(settings):
        return FAILED
    if sum(each.revoked_at is None for each in (await read(settings)).issued.values()) >= MAX_API_KEYS:
        say(f"there are {MAX_API_KEYS} keys already, and gateways know no more: revoke some")
        return FAILED
    await write(settings, issued)
    say(f"key {issued.id} of tenant {tenant}; it is shown this once:")
    put(text)
    return OK


async def show(settings: Settings) -> int:
    """Print every key: never the key itself."""
    if not await _reaches(settings):
        return FAILED
    found = await read(settings)
    for issued in found.issued.values():
        state = f"revoked {issued.revoked_at}" if issued.revoked_at else f"expires {issued.expires_at or 'never'}"
        scopes = ",".join(issued.scopes)
        used = f"used {found.used_at.get(issued.id, 'never')}"
        put(f"{issued.id}  {issued.tenant}  {scopes}  created {issued.created_at}  {used}  {state}  {issued.name}")
    return OK


async def revoke(settings: Settings, key_id: str) -> int:
    """Make a key stop working, on every gateway."""
    if not await _reaches(settings):
        return FAILED
    issued = (await read(settings)).issued.get(key_id)
    if issued is None:
        say(f"there is no key {key_id}")
        return FAILED
    now = rfc3339(time.time_ns() // 1_000_000)
    await write(settings, issued.model_copy(update={"revoked_at": issued.revoked_at or now}))
    say(f"key {key_id} is revoked")
    return OK


def new_key(
    *, tenant: str, scopes: tuple[str, ...], name: str, days: int | None, now_ms: int
) -> tuple[str, ApiKeyIssued]:
    """Return a new key and what is kept of it."""
    key_id = secrets.token_hex(ID_BYTES)
    text = api_key(key_id, secrets.token_hex(SECRET_BYTES))
    return text, ApiKeyIssued(
        id=key_id,
        hash=hash_of(text),
        tenant=tenant,
        scopes=tuple(Scope(scope) for scope in scopes),
        name=name,
        created_at=rfc3339(now_ms),
        expires_at=None if days is None else rfc3339(now_ms + days * 86_400_000),
    )


async def write(settings: Settings, issued: ApiKeyIssued) -> None:
    """Append the key's record; it is acknowledged when this returns."""
    producer = new_producer(settings)
    await producer.start()
    try:
        await producer.send_and_wait(
            settings.topics.api_keys, API_KEYS.dump_json(issued), key=issued.id.encode(), partition=0
        )
    finally:
        await producer.stop()


async def read(settings: Settings) -> Found:
    """Return every key, the oldest first."""
    partition = TopicPartition(settings.topics.api_keys, 0)
    consumer = new_consumer(settings)
    await consumer.start()
    found = Found()
    try:
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        while await consumer.position(partition) < end:
            for record in (await consumer.getmany(timeout_ms=200)).get(partition, []):
                found.take((record.key or b"").decode(errors="replace"), record.value)
    finally:
        await stop_consumer(consumer)
    return found


async def _reaches(settings: Settings) -> bool:
    try:
        await wait_for_kafka(settings, Deadline.after(10.0))
    except KafkaUnreachable as error:
        say(str(error))
        return False
    await ensure_topics(settings, [(TOPIC, settings.topics.api_keys)])
    return True
