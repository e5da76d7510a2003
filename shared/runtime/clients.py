"""aiokafka's clients with the project's settings. Every number has its reason beside it."""

import asyncio
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import collect_hosts
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import KafkaError

from anabranch.shared.contracts.limits import MAX_FETCH_BYTES, MAX_RECORD_BYTES
from anabranch.shared.runtime.deadline import Deadline
from anabranch.shared.runtime.errors import KafkaRefused, KafkaUnreachable
from anabranch.shared.runtime.kafka_refusal import refusal
from anabranch.shared.runtime.kafka_security import kafka_arguments
from anabranch.shared.runtime.log import get_logger
from anabranch.shared.runtime.settings import Settings

# Producer. In aiokafka this is the time for an answer and also the age at which a batch whose partition has no leader
# is given up. It must outlast an election or a broker's restart (some 20 s), and notice a silent connection within it.
_PRODUCE_TIMEOUT_MS: Final = 60_000

# Transactions live as long as a checkpoint. An open one holds back readers until the next owner fences it, or until
# this.
_TRANSACTION_TIMEOUT_MS: Final = 30_000

# Consumer. A poll without records ends after this. Polls are what an idle consumer costs (0.1 % of a core for one a
# second of 12 partitions); and since aiokafka has one poll per broker under way, this is how long a resumed, sought or
# newly assigned partition may wait for the poll before.
_FETCH_MAX_WAIT_MS: Final = 500

# The same of a consumer that follows one partition for as long as its process lives, and is never sought again.
_FOLLOW_MAX_WAIT_MS: Final = 5_000

# How often the client's own loop looks for something to do that nothing has told it of. Answers, assignments and
# resumed partitions wake it, but not that a partition has no committed offset, which is then reset: a new member of a
# group waits for that as long. Five times a second, its default, is a third of what an idle step service costs.
_LOOK_MS: Final = 500

# A dead member is noticed after the session; a live one may miss several heartbeats while its loop is busy. It is a
# heartbeat that tells a member of a rebalance: a new worker waits for its share as long. Each is 0.06 % of a core a
# second.
_SESSION_TIMEOUT_MS: Final = 8_000
_HEARTBEAT_MS: Final = 1_000

# How long a rebalance waits for members that are handing over: a checkpoint, or results being acknowledged.
_REBALANCE_TIMEOUT_MS: Final = 30_000

# Our consumers never stop polling; one that has not for a minute is stuck.
_MAX_POLL_INTERVAL_MS: Final = 60_000

_PROBE_TIMEOUT_MS: Final = 5_000
_PROBE_PAUSE_S: Final = 0.2
_REFUSED_PAUSE_S: Final = 1.0  # brokers count logins that fail, and some lock an account


def new_producer(settings: Settings, *, transactional_id: str | None = None) -> AIOKafkaProducer:
    """Return a producer, not started: acks=all, idempotent, records up to MAX_RECORD_BYTES."""
    return AIOKafkaProducer(
        **kafka_arguments(settings),
        acks="all",
        enable_idempotence=True,
        transactional_id=transactional_id,
        transaction_timeout_ms=_TRANSACTION_TIMEOUT_MS,
        max_request_size=MAX_RECORD_BYTES,
        request_timeout_ms=_PRODUCE_TIMEOUT_MS,
    )


def new_consumer(settings: Settings, *topics: str, group_id: str | None = None, **overrides: Any) -> AIOKafkaConsumer:
    """Return a consumer, not started, with the project's defaults; `overrides` are aiokafka's own names.

    Offsets are never committed behind its back. A group without a committed offset starts at the earliest record, so
    that nothing is lost; a consumer without a group is told where to start, or fails loudly.
    """
    defaults: dict[str, Any] = {
        **kafka_arguments(settings),
        "group_id": group_id,
        "enable_auto_commit": False,
        "auto_offset_reset": "none" if group_id is None else "earliest",
        "fetch_max_bytes": MAX_FETCH_BYTES,
        "max_partition_fetch_bytes": MAX_RECORD_BYTES,
        "fetch_max_wait_ms": _FETCH_MAX_WAIT_MS,
        "consumer_timeout_ms": _LOOK_MS,
        "session_timeout_ms": _SESSION_TIMEOUT_MS,
        "heartbeat_interval_ms": _HEARTBEAT_MS,
        "rebalance_timeout_ms": _REBALANCE_TIMEOUT_MS,
        "max_poll_interval_ms": _MAX_POLL_INTERVAL_MS,
        "partition_assignment_strategy": (StickyPartitionAssignor,),
    }
    return AIOKafkaConsumer(*topics, **(defaults | overrides))


def new_follower(settings: Settings, **overrides: Any) -> AIOKafkaConsumer:
    """Return a consumer for `follow`, not started; `overrides` as in `new_consumer`.

    One whose place the topic no longer has fails, unless told otherwise: who has to know all of it begins anew.
    """
    return new_consumer(settings, fetch_max_wait_ms=_FOLLOW_MAX_WAIT_MS, **overrides)


async def follow(follower: AIOKafkaConsumer, partition: TopicPartition) -> int:
    """Read one partition from its first record on; return the offset at which it ends now.

    The offsets are asked for first: a broker answers the requests of a connection one after the other, and a poll of a
    quiet partition takes seconds.
    """
    beginnings = await follower.beginning_offsets([partition])
    ends = await follower.end_offsets([partition])
    follower.assign([partition])
    follower.seek(partition, beginnings[partition])
    end: int = ends[partition]
    return end


async def stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Stop a consumer, whatever state it is in.

    aiokafka cancels its fetches and awaits them, and one that rests after an error raises `CancelledError` at whoever
    stops the consumer, as if that had been cancelled himself: a process would end 40 s after its Kafka.
    """
    try:
        await consumer.stop()
    except asyncio.CancelledError:
        await consumer._client.close()  # what `stop` does last
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise


def new_client(settings: Settings) -> AIOKafkaClient:
    """Return a bare client, not started: connections, metadata, and requests that the caller makes."""
    return AIOKafkaClient(**kafka_arguments(settings))


def new_admin(settings: Settings) -> AIOKafkaAdminClient:
    """Return an admin client, not started."""
    return AIOKafkaAdminClient(
        **kafka_arguments(settings),
        request_timeout_ms=_PROBE_TIMEOUT_MS,
    )


async def wait_for_kafka(settings: Settings, deadline: Deadline) -> None:
    """Return when a broker answers; `KafkaUnreachable` at the deadline, `KafkaRefused` if one did but not to us."""
    said = ""
    while (why := await refusal(settings)) or not await _answers(settings):
        if why and why != said:
            get_logger().warning("Kafka refuses this client", why=why)
        said = why
        if deadline.passed:
            raise KafkaRefused(why) if why else KafkaUnreachable(_nobody(settings))
        await asyncio.sleep(_REFUSED_PAUSE_S if why else _PROBE_PAUSE_S)


def _nobody(settings: Settings) -> str:
    words = f"no broker of {settings.kafka_bootstrap_servers} answered; is Kafka running there?"
    if settings.kafka_security_protocol == "PLAINTEXT":
        return words
    return f"{words} Does its listener speak {settings.kafka_security_protocol} (KAFKA_SECURITY_PROTOCOL)?"


async def _answers(settings: Settings) -> bool:
    # A bare connection first: aiokafka logs an error for every broker that is not there yet.
    if not await _any_listens(settings.kafka_bootstrap_servers):
        return False
    admin = new_admin(settings)
    try:
        await admin.start()
        return bool((await admin.describe_cluster())["brokers"])
    except (KafkaError, OSError, TimeoutError):
        return False
    finally:
        await admin.close()


async def _any_listens(servers: str) -> bool:
    for host, port, _ in collect_hosts(servers):
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_MS / 1000):
                _, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError):
            continue
        writer.close()
        return True
    return False
