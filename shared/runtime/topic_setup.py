"""Topics at start-up: create what is missing, check what exists against the table."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    InvalidReplicationFactorError,
    KafkaError,
    NotControllerError,
    RequestTimedOutError,
    TopicAlreadyExistsError,
    for_code,
)

from anabranch.shared.contracts.topics import Partitions, Topic
from anabranch.shared.runtime.clients import new_admin
from anabranch.shared.runtime.deadline import Deadline
from anabranch.shared.runtime.errors import KafkaUnreachable, TopicMismatch
from anabranch.shared.runtime.settings import Settings

# Creation of a topic is a second at most; a cluster that is just starting needs some to elect leaders.
_TIMEOUT_S: Final = 30.0
_PAUSE_S: Final = 0.1

# What a wrong value of would break, silently: order and placement, the changelog, broker time, large records.
_CHECKED: Final = {"cleanup.policy": "delete", "message.timestamp.type": "CreateTime", "max.message.bytes": "1048588"}

_CREATED: Final = frozenset({0, TopicAlreadyExistsError.errno})
# Brokers still joining, or a controller moving.
_TRY_AGAIN: Final = frozenset(
    {InvalidReplicationFactorError.errno, NotControllerError.errno, RequestTimedOutError.errno}
)


async def ensure_topics(
    settings: Settings, topics: Sequence[tuple[Topic, str]], *, deadline: Deadline | None = None
) -> None:
    """Create the topics that are missing, wait for their leaders, and check all of them against the table.

    Several processes may do this at once. Raises `TopicMismatch`, which says what differs and what to do, and
    `KafkaUnreachable` when Kafka does not do it by the deadline.
    """
    admin = new_admin(settings)
    try:
        await admin.start()
        await _created(admin, settings, {name: topic for topic, name in topics}, deadline or Deadline.after(_TIMEOUT_S))
        await _check(admin, settings, topics)
    except (KafkaError, OSError, TimeoutError) as error:
        raise KafkaUnreachable(
            f"Kafka at {settings.kafka_bootstrap_servers} did not answer about topics: {error!r}"
        ) from error
    finally:
        await admin.close()


async def _created(
    admin: AIOKafkaAdminClient, settings: Settings, wanted: dict[str, Topic], deadline: Deadline
) -> None:
    said = ""
    while waiting := await _not_led(admin, wanted):
        if deadline.passed:
            raise KafkaUnreachable(f"topics without a leader: {', '.join(waiting)}. {said}".strip())
        missing = {name: wanted[name] for name, exists in waiting.items() if not exists}
        said = await _create(admin, settings, missing) if missing else said
        if said or not missing:
            await asyncio.sleep(_PAUSE_S)


async def _not_led(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, bool]:
    """Return the topics that cannot be written yet, and whether they exist."""
    found = {entry["topic"]: entry for entry in await admin.describe_topics(list(names))}
    existing = {name for name, entry in found.items() if entry["partitions"]}
    led = {name for name in existing if all(part["leader"] >= 0 for part in found[name]["partitions"])}
    return {name: name in existing for name in names if name not in led}


async def _create(admin: AIOKafkaAdminClient, settings: Settings, missing: dict[str, Topic]) -> str:
    """Ask for the topics; return why some of them have to be asked for again, if so."""
    new = [
        NewTopic(name, _partitions(topic, settings), settings.replication_factor, topic_configs=topic.settings())
        for name, topic in missing.items()
    ]
    again = ""
    for name, code, message in (await admin.create_topics(new)).topic_errors:
        if code in _TRY_AGAIN:
            again = f"{name}: {message or for_code(code).__name__}"
        elif code not in _CREATED:
            raise TopicMismatch(f"{name} cannot be created: {message or for_code(code).__name__}")
    return again


async def _check(admin: AIOKafkaAdminClient, settings: Settings, topics: Sequence[tuple[Topic, str]]) -> None:
    if faults := await differences(admin, settings, topics):
        raise TopicMismatch("; ".join(faults))


async def differences(admin: AIOKafkaAdminClient, settings: Settings, topics: Sequence[tuple[Topic, str]]) -> list[str]:
    """Return in what topics that exist differ from the table, each with what to do: `says: do`."""
    names = [name for _, name in topics]
    counts = {entry["topic"]: len(entry["partitions"]) for entry in await admin.describe_topics(names)}
    configs = await _configs(admin, names)
    return [
        fault
        for topic, name in topics
        for fault in (
            *_wrong_partitions(topic, name, counts[name], settings),
            *_wrong_configs(topic, name, configs[name]),
        )
    ]


def _partitions(topic: Topic, settings: Settings) -> int:
    return topic.partition_count(runs=settings.run_partitions, steps=settings.step_partitions)


def _wrong_partitions(topic: Topic, name: str, actual: int, settings: Settings) -> list[str]:
    wanted = _partitions(topic, settings)
    if actual == wanted or topic.partitions is Partitions.STEPS:  # who writes commands counts the partitions there are
        return []
    return [
        f"{name} has {actual} partitions, the settings say {wanted}: set ANABRANCH_RUN_PARTITIONS and "
        "ANABRANCH_STEP_PARTITIONS to what exists, or drain into a new ANABRANCH_TOPIC_PREFIX"
    ]


def _wrong_configs(topic: Topic, name: str, actual: dict[str, str]) -> list[str]:
    wanted = _CHECKED | {key: value for key, value in topic.settings().items() if key in _CHECKED}
    return [
        f"{name} has {key}={actual.get(key)}, the topic table says {value}: "
        f"kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config {key}={value}"
        for key, value in wanted.items()
        if actual.get(key) != value
    ]


async def _configs(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    asked = [ConfigResource(ConfigResourceType.TOPIC, name, configs=dict.fromkeys(_CHECKED)) for name in names]
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    for response in await admin.describe_configs(asked):
        for code, message, _, name, entries in response.resources:
            if code:
                raise TopicMismatch(f"the settings of {name} cannot be read: {message or for_code(code).__name__}")
            found[name] = _values(entries)
    return found


def _values(entries: Sequence[Sequence[Any]]) -> dict[str, str]:
    return {str(entry[0]): str(entry[1]) for entry in entries}
