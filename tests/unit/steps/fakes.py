"""In-memory ports, and a world with one worker in it."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from pydantic import BaseModel

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.ports import (
    Asked,
    AssignmentListener,
    CancelRecord,
    CommandRecord,
    MemoryUnavailable,
    Note,
    Remembered,
    Secrets,
    Take,
)
from anabranch.services.steps.settings import WorkerSettings
from anabranch.services.steps.step_type import StepType, step_type
from anabranch.services.steps.worker import Invoke, Worker
from anabranch.shared.contracts.codec import Headers, Undecodable, decode
from anabranch.shared.contracts.messages import DEAD_LETTERS, INBOX, CancelStep, DeadLetter, InboxMessage, RunStep
from anabranch.shared.contracts.topics import TopicNames
from anabranch.shared.runtime.errors import CommitRefused

TOPICS = TopicNames()
EPOCH_MS = 1_800_000_000_000  # what the wall clock says at loop time 0
RUN = "0190b0a0-0000-7000-8000-000000000001"


def now_ms() -> int:
    return EPOCH_MS + int(asyncio.get_running_loop().time() * 1000)


@dataclass(frozen=True)
class Appended:
    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: Headers

    @property
    def message(self) -> InboxMessage:
        message = decode(INBOX, self.value)
        assert not isinstance(message, Undecodable), message
        return message

    @property
    def letter(self) -> DeadLetter:
        letter = decode(DEAD_LETTERS, self.value)
        assert not isinstance(letter, Undecodable), letter
        return letter


class FakeCommands:
    """The command topic of one member. Records stay until they are taken; `commits` is what the group would know."""

    def __init__(self) -> None:
        self.waiting: list[CommandRecord] = []
        self.commits: dict[int, int] = {}
        self.commit_calls = 0
        self.paused: set[int] = set()
        self.polls = 0
        self.assignment = 0
        self.has_left = False
        self.refuses_commits = False
        self.listener: AssignmentListener | None = None
        self._arrived = asyncio.Event()

    async def start(self, listener: AssignmentListener) -> None:
        self.listener = listener
        self.assign([0, 1])

    def assign(self, partitions: Iterable[int]) -> None:
        assert self.listener is not None
        self.assignment += 1
        self.paused.clear()
        self.listener.on_assigned(partitions, self.assignment, now_ms())

    def deliver(self, value: bytes, *, partition: int = 0, offset: int, assignment: int | None = None) -> None:
        number = self.assignment if assignment is None else assignment
        self.waiting.append(CommandRecord(partition, offset, now_ms(), b"key", value, number))
        self._arrived.set()

    async def take(self, max_records: int, wait_s: float) -> Sequence[CommandRecord]:
        self.polls += 1
        if not self._served() and wait_s:
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._arrived.wait()
        taken = self._served()[:max_records]
        self.waiting = [record for record in self.waiting if record not in taken]
        return taken

    def _served(self) -> list[CommandRecord]:
        return [record for record in self.waiting if record.partition not in self.paused]

    async def commit(self, offsets: Mapping[int, int], assignment: int) -> None:
        await asyncio.sleep(0.002)
        self.commit_calls += 1
        if self.refuses_commits or assignment != self.assignment:
            raise CommitRefused("rebalanced")
        self.commits.update(offsets)

    def pause(self, partitions: Iterable[int]) -> None:
        self.paused.update(partitions)

    def resume(self, partitions: Iterable[int]) -> None:
        self.paused.difference_update(partitions)
        self._arrived.set()

    async def stop(self) -> None:
        self.has_left = True


class FakeResults:
    """A producer whose acknowledgements take `delay_s`, and none come while it `is_mute`."""

    def __init__(self) -> None:
        self.appended: list[Appended] = []
        self.delay_s = 0.005
        self.failure: Exception | None = None
        self._speaks = asyncio.Event()
        self._speaks.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def append(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        assert value is not None
        self.appended.append(Appended(topic, partition, key, value, headers))

    def acknowledged(self) -> asyncio.Future[None]:
        task = asyncio.ensure_future(self._acknowledge())
        self._tasks.add(task)
        return task

    async def _acknowledge(self) -> None:
        await asyncio.sleep(self.delay_s)
        await self._speaks.wait()
        if self.failure is not None:
            raise self.failure

    def go_mute(self) -> None:
        self._speaks.clear()

    def speak(self) -> None:
        self._speaks.set()

    def messages(self, kind: type[Any] | None = None) -> list[Any]:
        found = [record.message for record in self.appended if record.topic == TOPICS.inbox]
        return found if kind is None else [message for message in found if isinstance(message, kind)]

    def letters(self) -> list[DeadLetter]:
        return [record.letter for record in self.appended if record.topic == TOPICS.dead_letters]

    def results(self) -> list[tuple[str, Any]]:
        """What was answered, without leases: (kind, output or error type)."""
        answers = [m for m in self.messages() if m.type in {"AttemptSucceeded", "AttemptFailed", "AttemptCancelled"}]
        return [
            (m.type, m.output if m.type == "AttemptSucceeded" else m.error.type if m.type == "AttemptFailed" else None)
            for m in answers
        ]


class FakeMemory:
    """A dictionary that may be down, and counts its calls."""

    def __init__(self) -> None:
        self.known: dict[str, Remembered] = {}
        self.ends: dict[str, str] = {}
        self.is_down = False
        self.hangs = False
        self.recalls = 0
        self.writes = 0

    async def _call(self) -> None:
        await asyncio.sleep(3600 if self.hangs else 0.001)
        if self.is_down:
            raise MemoryUnavailable("down")

    async def recall(self, asked: Sequence[Asked]) -> Sequence[Remembered]:
        self.recalls += 1
        await self._call()
        return [self.known.get(ask.attempt_id, Remembered()) for ask in asked]

    async def count_takes(self, takes: Sequence[Take]) -> None:
        await self._call()
        for take in takes:
            known = self.known.get(take.attempt_id, Remembered())
            known = known._replace(takes=known.takes + 1)
            if take.alone_on:
                known = known._replace(alone=known.alone + 1, alone_on=take.alone_on)
            self.known[take.attempt_id] = known

    async def last_words(self, worker: str) -> str:
        await self._call()
        return self.ends.get(worker, "")

    async def remember(self, notes: Sequence[Note]) -> None:
        self.writes += 1
        await self._call()
        for note in notes:
            known = self.known.get(note.attempt_id, Remembered())
            if note.result is not None:
                known = known._replace(result=note.result)
            else:
                known = known._replace(holder=note.holder, leased_until_ms=note.leased_until_ms)
            self.known[note.attempt_id] = known


class FakeControl:
    """The control topic: what was there before, and what comes."""

    def __init__(self) -> None:
        self.before: list[CancelRecord] = []
        self.later: list[CancelRecord] = []
        self._arrived = asyncio.Event()

    async def read_to_end(self) -> Sequence[CancelRecord]:
        await asyncio.sleep(0.5)
        return self.before

    async def take(self, wait_s: float) -> Sequence[CancelRecord]:
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._arrived.wait()
        self._arrived.clear()
        taken, self.later = self.later, []
        return taken

    def cancel(self, command: RunStep) -> None:
        self.later.append(cancellation(command))
        self._arrived.set()


def cancellation(command: RunStep) -> CancelRecord:
    message = CancelStep(run_id=command.run_id, step=command.step, attempt=command.attempt)
    return CancelRecord(0, now_ms(), message.model_dump_json().encode())


class Order(BaseModel):
    sleep_s: float = 0
    text: str = "hi"


class Echo(BaseModel):
    text: str


@dataclass
class Witness:
    """Which attempts were started and which were ended, by (step, attempt)."""

    started: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    contexts: list[StepContext] = field(default_factory=list)


def echo_type(witness: Witness) -> StepType[Order, Echo]:
    @step_type("echo", description="Says what it is told, later.")
    async def echo(order: Order, context: StepContext) -> Echo:
        witness.started.append(context.step)
        witness.contexts.append(context)
        await asyncio.sleep(order.sleep_s)
        witness.finished.append(context.step)
        return Echo(text=order.text)

    return echo


@dataclass
class World:
    """One worker on in-memory ports."""

    worker: Worker[Any, Any]
    commands: FakeCommands
    results: FakeResults
    memory: FakeMemory
    control: FakeControl
    witness: Witness
    running: "asyncio.Task[None] | None" = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    offset: int = 0

    def send(self, command: RunStep, *, partition: int = 0, assignment: int | None = None) -> int:
        """Deliver a command at the next offset and return that."""
        self.offset += 1
        value = command.model_dump_json().encode()
        self.commands.deliver(value, partition=partition, offset=self.offset, assignment=assignment)
        return self.offset

    async def stop(self) -> None:
        assert self.running is not None
        self.stopping.set()
        await self.running

    async def crash(self) -> None:
        assert self.running is not None
        self.running.cancel()
        with suppress(asyncio.CancelledError):
            await self.running


def a_command(
    step: str = "a", *, attempt: int = 1, timeout_s: float = 300, at_ms: int | None = None, **given: Any
) -> RunStep:
    """A command that was caused ten minutes from now, so that its past need not be looked up."""
    at_ms = now_ms() + 600_000 if at_ms is None else at_ms
    return RunStep(
        run_id=RUN, step=step, attempt=attempt, uses="echo", tenant="t", input=given, timeout_s=timeout_s, at_ms=at_ms
    )


def an_old_command(step: str = "a", *, attempt: int = 1, timeout_s: float = 300, **given: Any) -> RunStep:
    """A command that may have been in other hands before."""
    return a_command(step, attempt=attempt, timeout_s=timeout_s, at_ms=now_ms() - 60_000, **given)


def a_world(
    *,
    serves: StepType[Any, Any] | None = None,
    memory: FakeMemory | None = None,
    worker_class: type[Worker[Any, Any]] = Worker,
    witness: Witness | None = None,
    invoke: Invoke | None = None,
    secrets: Secrets | None = None,
    **settings: Any,
) -> World:
    """A world whose worker has not started."""
    witness = witness or Witness()
    commands, results, control = FakeCommands(), FakeResults(), FakeControl()
    memory = memory or FakeMemory()
    worker = worker_class(
        serves or echo_type(witness),
        name="worker-1",
        topics=TOPICS,
        commands=commands,
        results=results,
        memory=memory,
        control=control,
        now_ms=now_ms,
        log=structlog.get_logger(),
        settings=WorkerSettings(**settings),
        invoke=invoke,
        secrets=secrets,
    )
    return World(worker, commands, results, memory, control, witness)


@asynccontextmanager
async def running(world: World) -> AsyncIterator[World]:
    """A world whose worker runs, and is killed at the end if it still does."""
    world.running = asyncio.create_task(world.worker.run(world.stopping))
    await asyncio.sleep(0.6)  # the control topic is read
    try:
        yield world
        if world.running.done() and not world.running.cancelled():
            world.running.result()
    finally:
        await world.crash()
