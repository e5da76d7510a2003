"""The orchestrator as a process, beside command topics that are missing, deleted, or made otherwise."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiokafka.admin import NewTopic
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest
from aiokafka.structs import TopicPartition

from anabranch.deploy.local.kafka import LocalKafka
from anabranch.deploy.local.redis import LocalRedis
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import encode
from anabranch.shared.contracts.ids import new_run_id, trace_id_of_run
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.contracts.topics import INBOX, RUN_EVENTS, STEP_TYPES, STEPS
from anabranch.shared.runtime.clients import new_admin
from anabranch.shared.runtime.kafka import Outbox, ensure_topics, new_consumer
from anabranch.shared.runtime.settings import Settings
from tests.support.builders import a_definition, a_step
from tests.support.one_service import OneService, eventually

PARTITIONS = 2
NOTHING: Mapping[str, str] = {}
WITH_ACLS = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}


class Installation:
    """Kafka, an orchestrator, and the test as client and reader of run events."""

    def __init__(self, settings: Settings, outbox: Outbox, folder: Path) -> None:
        self.settings = settings
        self.outbox = outbox
        self.ends: dict[str, m.RunEnded] = {}
        self.held_back: list[m.StepChanged] = []
        self._folder = folder
        self.orchestrator = self.service("orchestrator")

    def service(self, name: str, **env: object) -> OneService:
        told = {
            "KAFKA_BOOTSTRAP_SERVERS": self.settings.kafka_bootstrap_servers,
            "REDIS_URL": self.settings.redis_url,
            "ANABRANCH_RUN_PARTITIONS": PARTITIONS,
        }
        return OneService(name, self._folder / f"{name}.log", **(told | env))

    def submit(self, *uses: str, **with_: Any) -> str:
        """Submit a run of one step after the other."""
        steps = {f"s{n}": a_step(*([f"s{n - 1}"] if n else []), uses=each, with_=with_) for n, each in enumerate(uses)}
        run_id = new_run_id()
        message = m.SubmitRun(run_id=run_id, tenant="t", definition=a_definition(steps), keep_s=60)
        record = encode(message, message_id=run_id, source="t", at_ms=0, trace_id=trace_id_of_run(run_id))
        partition = partition_of(run_id.encode(), PARTITIONS)
        self.outbox.append(self.settings.topics.inbox, partition, run_id.encode(), record.value, record.headers)
        return run_id

    async def until_ended(self, *runs: str, within_s: float = 60) -> None:
        """Return when these runs have succeeded."""
        await eventually(lambda: _so(all(run in self.ends for run in runs)), within_s, self.orchestrator.words)
        assert {self.ends[run].status for run in runs} == {"succeeded"}

    async def follow(self) -> None:
        """Read run events for ever."""
        consumer = new_consumer(self.settings)
        await consumer.start()
        partitions = [TopicPartition(self.settings.topics.run_events, n) for n in range(PARTITIONS)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        try:
            while True:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    for record in records:
                        self._take(m.RUN_EVENTS.validate_json(record.value))
        finally:
            await consumer.stop()

    def _take(self, event: m.RunEvent) -> None:
        match event:
            case m.RunEnded():
                self.ends[event.run_id] = event
            case m.StepChanged(type="StepHeldBack"):
                self.held_back.append(event)

    async def admin(self, work: Callable[[Any], Awaitable[Any]]) -> None:
        admin = new_admin(self.settings)
        await admin.start()
        await work(admin)
        await admin.close()


def _nothing() -> str:
    return ""


async def _so(value: bool) -> bool:
    return value


@pytest_asyncio.fixture
async def installation(tmp_path: Path) -> AsyncIterator[Installation]:
    async with installed(tmp_path) as installation:
        yield installation


@asynccontextmanager
async def installed(tmp_path: Path, more: Mapping[str, str] = NOTHING) -> AsyncIterator[Installation]:
    """An installation whose broker has these settings too."""
    async with (
        LocalKafka(tmp_path / "kafka", settings=more) as kafka,
        LocalRedis(tmp_path / "redis") as redis,
    ):
        settings = Settings(kafka_bootstrap_servers=kafka.bootstrap, redis_url=redis.url, run_partitions=PARTITIONS)
        topics = settings.topics
        ours = [(INBOX, topics.inbox), (RUN_EVENTS, topics.run_events), (STEP_TYPES, topics.step_types)]
        await ensure_topics(settings, ours)
        outbox = Outbox(settings)
        await outbox.start()
        installation = Installation(settings, outbox, tmp_path)
        following = asyncio.create_task(installation.follow())
        async with installation.orchestrator:
            yield installation
        following.cancel()
        await asyncio.wait([following])
        await outbox.stop()


async def test_type_without_a_topic_holds_back_its_own_runs_and_no_other(installation: Installation) -> None:
    """Across a restart of the orchestrator, which goes on when it is killed in that state; until the topic is there."""
    async with installation.service("steps.simulate", ANABRANCH_STEP_PARTITIONS=3):
        held = [installation.submit("simulate", "ghost") for _ in range(5)]
        await installation.until_ended(*(installation.submit("simulate", "simulate") for _ in range(20)))
        await eventually(lambda: _so(len({event.run_id for event in installation.held_back}) == 5))
        event = installation.held_back[0]
        assert (event.step, event.status, event.attempt) == ("s1", "queued", 1)
        assert "the topic does not exist" in (event.waiting_on or "")
        unwritable = 'anabranch_orchestrator_unwritable_command_topic{uses="ghost"}'
        assert await installation.orchestrator.metric(unwritable) == 1.0
        for _ in range(2):
            await installation.orchestrator.kill()
            await installation.orchestrator.start()
            await installation.until_ended(installation.submit("simulate"))
        name = installation.settings.topics.steps("ghost")
        await installation.admin(lambda admin: admin.create_topics([NewTopic(name, 1, 1)]))
        commands = await _commands(installation.settings, name, 5)
        assert {command.run_id for command in commands} == {*held}
        assert {(command.step, command.attempt) for command in commands} == {("s1", 1)}
        assert await installation.orchestrator.metric(unwritable) == 0.0
    assert '"event":"failed"' not in installation.orchestrator.words()


async def _commands(settings: Settings, topic: str, count: int) -> list[m.RunStep]:
    consumer = new_consumer(settings)
    await consumer.start()
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    await consumer.seek_to_beginning(partition)
    commands: list[m.RunStep] = []
    async with asyncio.timeout(90):
        while len({command.run_id for command in commands}) < count:
            for record in (await consumer.getmany(timeout_ms=200)).get(partition, []):
                commands.append(m.COMMANDS.validate_json(record.value))
    await consumer.stop()
    return commands


async def test_topic_that_is_deleted_under_load_is_made_again_and_every_run_ends(installation: Installation) -> None:
    """Its service ends and makes it at its next start; what was in it is sent again; other runs go on meanwhile."""
    async with installation.service("steps.simulate") as service:
        runs = [installation.submit("simulate", "simulate", "simulate", sleep="300ms") for _ in range(100)]
        await installation.until_ended(installation.submit("simulate"))
        name = installation.settings.topics.steps("simulate")
        await installation.admin(lambda admin: admin.delete_topics([name]))
        runs += [installation.submit("simulate", "simulate") for _ in range(50)]
        await installation.until_ended(installation.submit("transform", value=1))
        assert await service.until_ended() == 1
        assert "CommandTopicGone" in service.words()
        await service.start()
        await eventually(lambda: _so(all(run in installation.ends for run in runs)), 120, _nothing)
        assert {installation.ends[run].status for run in runs} == {"succeeded"}
    assert '"event":"failed"' not in installation.orchestrator.words()


async def test_command_that_is_too_large_for_its_topic_fails_its_step(installation: Installation) -> None:
    """A topic made by hand has a limit of its own."""
    name = installation.settings.topics.steps("small")
    small = NewTopic(name, 1, 1, topic_configs={"max.message.bytes": "10000"})
    await installation.admin(lambda admin: admin.create_topics([small]))
    run = installation.submit("small", text="x" * 20_000)
    await eventually(lambda: _so(run in installation.ends), 30, installation.orchestrator.words)
    error = installation.ends[run].error
    assert (installation.ends[run].status, error and error.type) == ("failed", "PayloadTooLarge")
    await installation.until_ended(installation.submit("transform", value=1))


class Acls:
    """Forbids everybody what concerns one topic, and allows it again. The numbers are Kafka's own."""

    TOPIC, LITERAL, ANY, DENY, ALLOW = 2, 3, 1, 2, 3

    def __init__(self, installation: Installation, topic: str) -> None:
        self._installation = installation
        self._topic = topic

    async def add(self, operation: int, permission: int) -> None:
        """Add one."""
        entry = (self.TOPIC, self._topic, self.LITERAL, "User:ANONYMOUS", "*", operation, permission)
        await self._installation.admin(lambda admin: self._send(admin, CreateAclsRequest(*entry)))

    async def remove(self) -> None:
        """Remove all."""
        every = (self.TOPIC, self._topic, self.LITERAL, None, None, self.ANY, self.ANY)
        await self._installation.admin(lambda admin: self._send(admin, DeleteAclsRequest(*every)))

    async def _send(self, admin: Any, request: Any) -> None:
        (answer,) = (await admin._send_to_controller(request)).to_object().popitem()[1]
        assert answer["error_code"] == 0, answer


ALL, WRITE = 2, 4


@pytest.mark.parametrize("when", ["from the start", "in use"])
@pytest.mark.parametrize("forbidden", [WRITE, ALL])
async def test_topic_that_may_not_be_written_holds_back_its_own_runs_and_no_other(
    tmp_path: Path, forbidden: int, when: str
) -> None:
    """Whether it may be seen or not, and was written before or not; once it may be written, they run to their end."""
    async with installed(tmp_path, WITH_ACLS) as here:
        simulate, other = here.settings.topics.steps("simulate"), here.settings.topics.steps("other")
        of_one_partition = here.settings.model_copy(update={"step_partitions": 1})
        await ensure_topics(of_one_partition, [(STEPS, simulate), (STEPS, other)])
        runs = []
        if when == "in use":
            runs += [here.submit("simulate")]
            assert len(await _commands(here.settings, simulate, 1)) == 1
        acls = Acls(here, simulate)
        await acls.add(forbidden, Acls.DENY)
        runs += [here.submit("simulate", "simulate") for _ in range(5)]
        await eventually(lambda: _so(len({event.run_id for event in here.held_back}) == 5), 30, here.orchestrator.words)
        (why,) = {event.waiting_on for event in here.held_back}
        assert f"{simulate}: the orchestrator may not" in (why or "")
        unwritable = 'anabranch_orchestrator_unwritable_command_topic{uses="simulate"}'
        assert await here.orchestrator.metric(unwritable) == 1.0
        others = {here.submit("other") for _ in range(5)}
        await here.until_ended(here.submit("transform", value=1))
        await here.orchestrator.kill()
        await here.orchestrator.start()
        others |= {here.submit("other") for _ in range(5)}
        await here.until_ended(here.submit("transform", value=1))
        assert {command.run_id for command in await _commands(here.settings, other, 10)} == others
        await acls.remove()
        async with here.service("steps.simulate", ANABRANCH_STEP_PARTITIONS=1):
            await here.until_ended(*runs, within_s=60)
        assert await here.orchestrator.metric(unwritable) == 0.0
    assert '"event":"failed"' not in here.orchestrator.words()
