"""How Kafka is, and what the engine's processes do there: topics, groups, how far behind they are, checkpoints."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import KafkaError

from anabranch.shared.contracts import groups
from anabranch.shared.contracts.topics import CHECKPOINT_KEY, STEPS, TOPICS, Topic
from anabranch.shared.diagnosis.findings import Finding, fault, ok, unknown, warning
from anabranch.shared.diagnosis.in_redis import SKEW_S
from anabranch.shared.record.settings import RecordSettings
from anabranch.shared.runtime.clients import new_admin, new_consumer, stop_consumer
from anabranch.shared.runtime.kafka_refusal import refusal
from anabranch.shared.runtime.kafka_security import version_of
from anabranch.shared.runtime.topic_setup import differences

_FAR_BEHIND: Final = 1_000  # records: a busy engine has some hundred on their way
_OLD_CHECKPOINT_S: Final = 10.0
_CHECKPOINT_WITHIN: Final = 500  # offsets: what the last transactions of a changelog partition take
_TAKE_MS: Final = 200
_QUIET_S: Final = 1.5  # in which nothing more comes
_READ: Final = 5_000
_SHOWN: Final = 5

_SPOILT: Final = "look at what was written there; another program may use the same topic prefix"

_FAILURES: Final = (KafkaError, OSError, TimeoutError)


async def examine_kafka(settings: RecordSettings) -> list[Finding]:
    """Return what is found in Kafka; each check that fails is a finding, and the others are made all the same."""
    if why := await refusal(settings):
        return [fault("Kafka", why, "set what the sentence names; docs/transport.md tells how")]
    try:
        async with _clients(settings) as clients:
            return await _Examination(settings, clients).all()
    except _FAILURES as error:
        return [
            fault(
                "Kafka",
                f"no broker at {settings.kafka_bootstrap_servers} answers: {error}"[:500],
                "start it, or set KAFKA_BOOTSTRAP_SERVERS; nothing goes on without it, and nothing is lost",
            )
        ]


@dataclass(frozen=True, slots=True)
class _Clients:
    """One that is told of topics and groups, one of offsets, and one that reads: it keeps its connection waiting."""

    admin: AIOKafkaAdminClient
    offsets: AIOKafkaConsumer
    reader: AIOKafkaConsumer


@asynccontextmanager
async def _clients(settings: RecordSettings) -> AsyncIterator[_Clients]:
    committed = {"isolation_level": "read_committed"}
    clients = _Clients(new_admin(settings), new_consumer(settings, **committed), new_consumer(settings, **committed))
    try:
        await clients.admin.start()
        await clients.offsets.start()
        await clients.reader.start()
        yield clients
    finally:
        await stop_consumer(clients.reader)
        await stop_consumer(clients.offsets)
        await clients.admin.close()


@dataclass(slots=True)
class _Group:
    """The members of a group by client id, each with the partitions that are its own."""

    state: str
    members: dict[str, list[int]] = field(default_factory=dict)

    @property
    def owned(self) -> set[int]:
        return {partition for owned in self.members.values() for partition in owned}


class _Examination:
    def __init__(self, settings: RecordSettings, clients: _Clients) -> None:
        self._settings = settings
        self._names = settings.topics
        self._admin, self._offsets, self._reader = clients.admin, clients.offsets, clients.reader
        self._existing: dict[str, int] = {}  # topics, and how many partitions each has
        self._types: list[str] = []
        self._clients: set[str] = set()

    async def all(self) -> list[Finding]:
        """Make one check after the other: later ones know what earlier ones found."""
        found: list[Finding] = []
        checks: Sequence[tuple[str, Callable[[], Awaitable[list[Finding]]]]] = (
            ("Kafka", self._brokers),
            ("topics", self._topics),
            ("step types", self._step_types),
            ("orchestrators", self._orchestrators),
            ("history", self._history),
            ("workers", self._workers),
            ("checkpoints", self._checkpoints),
            ("dead letters", self._dead_letters),
            ("clock of Kafka", self._clock),
            ("versions", self._versions),
        )
        for name, check in checks:
            try:
                found += await check()
            except _FAILURES as error:
                found.append(unknown(name, f"Kafka does not say: {error!r}"[:500], "look at the brokers' logs"))
            except Exception as error:  # noqa: BLE001  what stands there is spoilt: the other checks are made
                found.append(unknown(name, f"what Kafka says cannot be read: {error!r}"[:500], _SPOILT))
        return found

    # --- what there is ------------------------------------------------------------------------------------------------

    async def _brokers(self) -> list[Finding]:
        cluster = await self._admin.describe_cluster()
        brokers = len(cluster["brokers"])
        copies = self._settings.replication_factor
        if brokers < copies:
            says = f"{brokers} of the {copies} brokers or more that {copies} copies of every topic need"
            return [warning("Kafka", says, "start the others: until then topics cannot be created")]
        return [
            ok(
                "Kafka",
                f"brokers: {brokers}, copies of a topic: {copies}",
            )
        ]

    async def _topics(self) -> list[Finding]:
        wanted = {topic.name(self._settings.topic_prefix): topic for topic in TOPICS if topic is not STEPS}
        described = {each["topic"]: each["partitions"] for each in await self._admin.describe_topics(list(wanted))}
        self._existing = {name: len(partitions) for name, partitions in described.items() if partitions}
        found = [
            fault(
                "topics",
                f"{name} does not exist",
                f"start {_owner(topic)}, which makes it; if it was there before, its records are gone",
            )
            for name, topic in wanted.items()
            if name not in self._existing
        ]
        there = [(topic, name) for name, topic in wanted.items() if name in self._existing]
        found += [
            fault("topics", *_says_and_does(each))
            for each in (await differences(self._admin, self._settings, there) if there else ())
        ]
        found += _replicas(described)
        return found or [ok("topics", f"{len(there)} topics are as the topic table says")]

    async def _step_types(self) -> list[Finding]:
        """Learn which step types are announced."""
        if self._names.step_types not in self._existing:
            return []
        announced: set[str] = set()
        topic = TopicPartition(self._names.step_types, 0)
        for record in (await self._read({topic: 0}))[topic]:
            name = (record.key or b"").decode(errors="replace")
            (announced.add if record.value else announced.discard)(name)
        self._types = sorted(announced)
        if not announced:
            return [
                warning("step types", "none is announced", "start a step service: pipelines are refused until then")
            ]
        return [ok("step types", ", ".join(self._types))]

    # --- who does what ------------------------------------------------------------------------------------------------

    async def _orchestrators(self) -> list[Finding]:
        group = await self._group(groups.orchestrators(self._settings.topic_prefix))
        found = _ownership("orchestrators", group, self._existing.get(self._names.inbox, 0), "an orchestrator")
        return found + await self._behind("inbox", groups.orchestrators(self._settings.topic_prefix), self._names.inbox)

    async def _history(self) -> list[Finding]:
        prefix, events = self._settings.topic_prefix, self._names.run_events
        found: list[Finding] = []
        kept = {"history": groups.history(prefix)}
        if self._settings.database_url:
            kept["record keeping"] = groups.record(prefix)
        for check, name in kept.items():
            found += _ownership(check, await self._group(name), self._existing.get(events, 0), "history")
            found += await self._behind(f"{check}'s events", name, events)
        return found

    async def _workers(self) -> list[Finding]:
        found: list[Finding] = []
        for step_type in self._types:
            topic, name = self._names.steps(step_type), groups.workers(self._settings.topic_prefix, step_type)
            (described,) = await self._admin.describe_topics([topic])
            partitions = self._existing[topic] = len(described["partitions"])
            group = await self._group(name)
            waiting = sum((await self._lags(name, topic)).values())
            check = f"workers of {step_type}"
            if not group.members and not waiting:
                found.append(warning(check, "none, and nothing waits for one", f"start the {step_type} service"))
                continue
            found += _ownership(check, group, partitions, f"the {step_type} service")
            found += _waiting(f"commands of {step_type}", waiting, len(group.members))
        return found

    async def _checkpoints(self) -> list[Finding]:
        """Compare the last checkpoint of each partition with what the inbox has after it."""
        partitions = min(self._existing.get(self._names.state, 0), self._existing.get(self._names.inbox, 0))
        if not partitions:
            return []
        inbox = [TopicPartition(self._names.inbox, number) for number in range(partitions)]
        ends, decided = await self._offsets.end_offsets(inbox), await self._decided(partitions)
        behind = {
            each: decided[each.partition] for each in inbox if decided.get(each.partition, ends[each]) < ends[each]
        }
        old = []
        for partition, records in (await self._read(behind, most=1)).items():
            age_s = time.time() - records[0].timestamp / 1000 if records else 0.0
            if age_s > _OLD_CHECKPOINT_S:
                count = ends[partition] - behind[partition]
                old.append(f"{partition.partition} (since {age_s:.0f} s, {count} records)")
        if not old:
            return [ok("checkpoints", f"what is in none is younger than {_OLD_CHECKPOINT_S:g} s, in all partitions")]
        return [
            fault(
                "checkpoints",
                f"partitions do not checkpoint: {', '.join(old[:_SHOWN])}{' …' * (len(old) > _SHOWN)}",
                "look at the log of the orchestrators that own them; restarting one loses nothing",
            )
        ]

    async def _dead_letters(self) -> list[Finding]:
        if self._names.dead_letters not in self._existing:
            return []
        partitions = [
            TopicPartition(self._names.dead_letters, n) for n in range(self._existing[self._names.dead_letters])
        ]
        ends, begins = await self._offsets.end_offsets(partitions), await self._offsets.beginning_offsets(partitions)
        count = sum(ends[each] - begins[each] for each in partitions)
        if not count:
            return [ok("dead letters", "none")]
        says = f"{count} records could not be handled"
        return [
            warning("dead letters", says, f"read {self._names.dead_letters}: each says where it comes from and why")
        ]

    async def _clock(self) -> list[Finding]:
        """Ask for records that were written later than now: a broker whose clock is ahead has some."""
        if self._names.inbox not in self._existing:
            return []
        then_ms = int(1000 * (time.time() + SKEW_S))
        partitions = [TopicPartition(self._names.inbox, n) for n in range(self._existing[self._names.inbox])]
        found = await self._offsets.offsets_for_times(dict.fromkeys(partitions, then_ms))
        ahead = [each.timestamp for each in found.values() if each is not None]
        if not ahead:
            return [ok("clock of Kafka", "no record is from the future")]
        return [
            warning(
                "clock of Kafka",
                f"a record was written {max(ahead) / 1000 - time.time():.1f} s from now by this machine's clock",
                "have the brokers and this machine follow the same NTP servers (chronyc tracking)",
            )
        ]

    async def _versions(self) -> list[Finding]:
        """Compare what the groups' members say of themselves."""
        versions = sorted({version for client in self._clients if (version := version_of(client))})
        if len(versions) <= 1:
            return [ok("versions", f"all processes run {versions[0]}")] if versions else []
        says = f"{' and '.join(versions)} run side by side"
        return [warning("versions", says, "finish the roll-out: versions may be mixed while it lasts, not for good")]

    # --- what is asked ------------------------------------------------------------------------------------------------

    async def _group(self, name: str) -> _Group:
        (answer,) = await self._admin.describe_consumer_groups([name])
        _, _, state, _, _, members, *_ = answer.groups[0]
        group = _Group(state)
        for _, client, _, _, assignment, *_ in members:
            parsed = ConsumerProtocolMemberAssignment.decode(assignment) if assignment else None
            owned = [tp.partition for tp in parsed.partitions()] if parsed else []
            group.members.setdefault(client, []).extend(owned)
        self._clients |= set(group.members)
        return group

    async def _behind(self, check: str, group: str, topic: str) -> list[Finding]:
        lags = await self._lags(group, topic)
        behind = sum(lags.values())
        if behind <= _FAR_BEHIND:
            return [ok(check, f"{behind} records are not done yet")] if lags else []
        worst = max(lags, key=lags.__getitem__)
        return [
            warning(
                check,
                f"{behind} records are not done yet, {lags[worst]} of them in partition {worst}",
                "if it grows: start more of them, up to the partitions; if it is one partition, look at its owner",
            )
        ]

    async def _lags(self, group: str, topic: str) -> Mapping[int, int]:
        partitions = [TopicPartition(topic, number) for number in range(self._existing.get(topic, 0))]
        if not partitions:
            return {}
        ends, begins = await self._offsets.end_offsets(partitions), await self._offsets.beginning_offsets(partitions)
        committed = await self._admin.list_consumer_group_offsets(group, partitions=partitions)
        done = {each: max(begins[each], committed[each].offset) for each in partitions}
        return {each.partition: max(0, ends[each] - done[each]) for each in partitions}

    async def _decided(self, partitions: int) -> dict[int, int]:
        """Return by partition the offset of the inbox up to which the changelog holds everything, where it says so."""
        state = [TopicPartition(self._names.state, number) for number in range(partitions)]
        ends = await self._offsets.end_offsets(state)
        read = await self._read({each: max(0, end - _CHECKPOINT_WITHIN) for each, end in ends.items()})
        return {
            partition.partition: int(orjson.loads(record.value)["offset"])
            for partition, records in read.items()
            for record in records
            if record.key == CHECKPOINT_KEY and record.value  # of several the last one stays
        }

    async def _read(
        self, starts: Mapping[TopicPartition, int], *, most: int | None = None
    ) -> dict[TopicPartition, list[Any]]:
        """Return what stands in partitions from these offsets on, or so many records of each at least."""
        found: dict[TopicPartition, list[Any]] = {partition: [] for partition in starts}
        if not starts:
            return found
        self._reader.assign(list(starts))
        ends, begins = (
            await self._offsets.end_offsets(list(starts)),
            await self._offsets.beginning_offsets(list(starts)),
        )
        for partition, offset in starts.items():
            self._reader.seek(partition, max(begins[partition], offset))
        quiet_at = time.monotonic() + _QUIET_S
        while waited := [each for each in starts if most is None or len(found[each]) < most]:
            # What ends with the mark of a transaction has its position before the mark.
            if time.monotonic() > quiet_at or all([await self._reader.position(p) >= ends[p] for p in waited]):
                break
            for partition, records in (await self._reader.getmany(timeout_ms=_TAKE_MS, max_records=_READ)).items():
                found[partition] += records
                quiet_at = time.monotonic() + _QUIET_S
        return found


def _ownership(check: str, group: _Group, partitions: int, who: str) -> list[Finding]:
    if not group.members:
        return [fault(check, f"none is running: {partitions} partitions have no owner", f"start {who}")]
    without = sorted(set(range(partitions)) - group.owned)
    shown = ", ".join(f"{client} ({len(owned)})" for client, owned in sorted(group.members.items())[:_SHOWN])
    shown += " …" * (len(group.members) > _SHOWN)
    if not without:
        return [ok(check, f"{len(group.members)}, each with so many of {partitions} partitions: {shown}")]
    says = f"partitions {_listed(without)} have no owner; the group is {group.state}"
    if group.state != "Stable":
        return [warning(check, says, "look again in a moment: the group shares its partitions out anew")]
    return [fault(check, says, f"restart {who}: its members are {shown}")]


def _waiting(check: str, waiting: int, members: int) -> list[Finding]:
    if waiting <= _FAR_BEHIND or not members:
        return [ok(check, f"{waiting} wait or are in hand")] if members else []
    return [warning(check, f"{waiting} wait or are in hand", "start more workers, up to the topic's partitions")]


def _replicas(described: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Finding]:
    found: list[Finding] = []
    for name, partitions in described.items():
        unled = [each["partition"] for each in partitions if each["leader"] < 0]
        short = [each["partition"] for each in partitions if len(each["isr"]) < len(each["replicas"])]
        if unled:
            says = f"{name}: partitions {_listed(unled)} have no leader"
            found.append(fault("topics", says, "start the brokers that hold them"))
        elif short:
            says = f"{name}: partitions {_listed(short)} have fewer copies in step than they should"
            found.append(warning("topics", says, "start the brokers that hold the others"))
    return found


def _says_and_does(difference: str) -> tuple[str, str]:
    says, _, does = difference.partition(": ")
    return says, does


def _owner(topic: Topic) -> str:
    return f"the {topic.owner}" if topic.owner != "steps" else "a step service"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:_SHOWN])) + " …" * (len(numbers) > _SHOWN)
