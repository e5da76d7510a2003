"""A step service, from its step type: the one place that wires a worker to Kafka and Redis."""

import asyncio
import faulthandler
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final, NoReturn
from uuid import uuid4

from anabranch.services.steps.announcing import Announcing
from anabranch.services.steps.guard import failure_of
from anabranch.services.steps.invoke import invoker
from anabranch.services.steps.kafka_ports import KafkaCommands, KafkaControl
from anabranch.services.steps.last_words import predecessor_of, say_last_words
from anabranch.services.steps.metrics import WorkerMetrics
from anabranch.services.steps.ports import MemoryUnavailable
from anabranch.services.steps.redis_memory import RedisMemory
from anabranch.services.steps.secrets import ServiceSecrets
from anabranch.services.steps.settings import StepServiceSettings
from anabranch.services.steps.step_type import StepType
from anabranch.services.steps.turns import Turns
from anabranch.services.steps.worker import Worker
from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.contracts.topics import CONTROL, DEAD_LETTERS, INBOX, STEP_TYPES, STEPS, Topic
from anabranch.shared.runtime.clock import now_ms
from anabranch.shared.runtime.kafka import Outbox, ensure_topics, new_consumer, stop_consumer, wait_for_kafka
from anabranch.shared.runtime.owned import OwnedTask
from anabranch.shared.runtime.redis import RedisKeys, new_redis
from anabranch.shared.runtime.service import Deadline, Service, run_service

_KAFKA_WITHIN_S: Final = 60.0
_GONE_WITHIN_S: Final = 0.6  # of a worker that failed: a second, with its last words and what it takes to notice
_REDIS_WITHIN_S: Final = 1.0  # at the start; a memory that is slower is as good as none
_LOOK_AGAIN_S: Final = 0.5  # for topics that other services create
_OF_OTHERS: Final = (INBOX, CONTROL, STEP_TYPES, DEAD_LETTERS)


def serve(step_type: StepType[Any, Any], settings: StepServiceSettings | None = None) -> NoReturn:
    """Serve a step type until SIGTERM, then exit. The last line of a step service's `__main__`.

    Settings come from the environment unless given; docs/step-services.md lists them.
    """
    faulthandler.enable()  # a crash of native code shows the handler's stack
    run_service(f"steps.{step_type.name}", settings or StepServiceSettings(), partial(run_step_service, step_type))


async def run_step_service(step_type: StepType[Any, Any], service: Service[StepServiceSettings]) -> None:
    """Announce the type and work on its commands until the service stops."""
    settings, topics = service.settings, service.settings.topics
    waits_for = _Waiting(service)
    await service.unless_stopping(wait_for_kafka(settings, Deadline.after(_KAFKA_WITHIN_S)))
    await _topics_are_there(step_type, service, waits_for)
    if service.stopping.is_set():
        return
    async with AsyncExitStack() as stack:
        outbox, control = Outbox(settings), KafkaControl(settings)
        await outbox.start()
        stack.push_async_callback(_stop_outbox, outbox, service)
        announcing = Announcing(step_type, outbox, settings, service.log, service.fail)
        announcing.announce()
        keeping = OwnedTask(announcing.keep(), name="keep announced", fail=service.fail)
        stack.push_async_callback(keeping.stop)
        await control.start()
        stack.push_async_callback(control.stop)
        redis = new_redis(settings)
        stack.push_async_callback(redis.aclose)
        name, memory = _name_of(settings), RedisMemory(redis, RedisKeys(settings.topic_prefix), step_type.name)
        await _note_predecessor(memory, service)
        commands = KafkaCommands(settings, step_type.name, fail=service.fail)
        stack.push_async_callback(commands.stop)  # also of a worker that failed: its sockets are closed
        numbers = settings.worker(concurrency=step_type.concurrency)
        turns = Turns()
        worker = Worker(
            step_type,
            name=name,
            topics=topics,
            commands=commands,
            results=outbox,
            memory=memory,
            control=control,
            now_ms=now_ms,
            log=service.log,
            settings=numbers,
            facts=WorkerMetrics(step_type.name, service.registry),
            turns=turns,
            invoke=await stack.enter_async_context(invoker(step_type, numbers.concurrency, turns, spans=service.spans)),
            resource=await stack.enter_async_context(_resource_of(step_type, service)),
            secrets=ServiceSecrets(step_type.name, settings),
        )
        service.ready_when("membership", lambda: commands.is_member or "waiting for its share of the commands")
        service.ready_when("taking", lambda: worker.is_taking or "takes no commands")
        service.in_hand = worker.in_hand
        service.last_words = partial(say_last_words, settings, name)
        waits_for.nothing()
        try:
            await worker.run(service.stopping)
        except BaseException as error:
            service.end_within(_GONE_WITHIN_S, error)  # the group is told if that can be done quickly
            raise


class LifespanFailed(AnabranchError):
    """A step type's lifespan raised: there is nothing to serve with."""


@asynccontextmanager
async def _resource_of(step_type: StepType[Any, Any], service: Service[Any]) -> AsyncIterator[Any]:
    """Open and close what a step type's handlers share. Whatever that raises ends the service, in one line."""
    if step_type.lifespan is None:
        yield None
        return
    try:
        lifespan = step_type.lifespan()
        resource = await lifespan.__aenter__()
    except BaseException as error:
        _blame_lifespan(error, step_type, service)
        raise
    try:
        yield resource
    finally:
        try:
            await lifespan.__aexit__(*sys.exc_info())
        except BaseException as error:
            _blame_lifespan(error, step_type, service)
            raise


def _blame_lifespan(error: BaseException, step_type: StepType[Any, Any], service: Service[Any]) -> None:
    """Raise what is to be said instead of an error of a lifespan, unless that is how the service is told to end."""
    if service.is_failing and issubclass(type(error), asyncio.CancelledError):
        return
    failure = failure_of(error)
    failed = LifespanFailed(f"the lifespan of {step_type.name} raised {failure.error_type}: {failure.message}")
    service.end_within(_GONE_WITHIN_S, failed)
    raise failed from error


class _Waiting:
    """What the service waits for before it can work, for its readiness."""

    def __init__(self, service: Service[Any]) -> None:
        self._for = "Kafka"
        service.ready_when("start", lambda: not self._for or f"waits for {self._for}")

    def topics(self, missing: list[str]) -> None:
        """Wait for topics that other services create."""
        self._for = f"topics that other services create: {', '.join(missing)}"

    def nothing(self) -> None:
        """Wait no longer."""
        self._for = ""


async def _topics_are_there(
    step_type: StepType[Any, Any], service: Service[StepServiceSettings], waits: _Waiting
) -> None:
    """Create our own topic; wait for those of others; check them all: a result must go to its run's partition."""
    settings = service.settings
    own = (STEPS, settings.topics.steps(step_type.name))
    await ensure_topics(settings, [own])
    others: list[tuple[Topic, str]] = [(topic, topic.name(settings.topic_prefix)) for topic in _OF_OTHERS]
    consumer = new_consumer(settings)
    await consumer.start()
    try:
        while not service.stopping.is_set():
            there = await consumer.topics()
            if not (missing := [name for _, name in others if name not in there]):
                await ensure_topics(settings, [own, *others])
                return
            waits.topics(missing)
            await asyncio.sleep(_LOOK_AGAIN_S)
    finally:
        await stop_consumer(consumer)


async def _note_predecessor(memory: RedisMemory, service: Service[StepServiceSettings]) -> None:
    """Write how the process before this one ended, before anything that it had in hand is taken up."""
    if (told := predecessor_of(service.settings)) is None:
        return
    try:
        async with asyncio.timeout(_REDIS_WITHIN_S):
            await memory.note_end(*told)
    except (MemoryUnavailable, TimeoutError) as error:
        service.log.warning("how the process before this one ended cannot be written down", error=repr(error))


def _name_of(settings: StepServiceSettings) -> str:
    """Return a name that no worker had before: a restarted container has the host name and pid of its predecessor."""
    return f"{settings.instance}-{uuid4().hex[:6]}"


async def _stop_outbox(outbox: Outbox, service: Service[Any]) -> None:
    await outbox.stop(service.deadline)
