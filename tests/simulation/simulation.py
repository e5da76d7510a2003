"""One simulation: a world drawn from a seed, its faults, its end, and what is wrong with it then."""

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from random import Random
from typing import Any
from unittest.mock import patch

from structlog.typing import FilteringBoundLogger

from anabranch.services.orchestrator.core import partition as core_partition
from anabranch.services.orchestrator.core import turn
from anabranch.services.orchestrator.partition_task import PartitionTask
from anabranch.services.steps.worker import Worker
from anabranch.shared.contracts.codec import encode
from anabranch.shared.contracts.messages import RUN_ENDED_TYPES, CancelRun, Message, SubmitRun
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.contracts.topics import TopicNames

from . import invariants
from .broker import Broker, Log, Record
from .faults import CALM_AT_S, Plan, climate_of
from .group import Group
from .harm import Harm, Raising, charging
from .holding import Holding
from .oracle import Restored
from .partition_log import MemoryLog
from .processes import OrchestratorProcess, Process, WorkerProcess
from .restoring import RestoringTask
from .tracing import NO_LOG
from .virtual import Host, Stuck, VirtualLoop
from .weather import Weather
from .witness import Journal
from .worker_ports import Redis
from .workload import USES, Submission, submissions, work

SETTLE_S = 400.0  # longest legitimate wait after the last fault: a lease, a suspicion, a handler, retries, five times
SUBMIT_WITHIN_S = 25.0
EVALUATION_S = 0.3  # what evaluating an expression takes in some worlds: all of a wide run is longer than a session
TOPICS = TopicNames(prefix="sim", runs=2, steps_partitions=2)


@dataclass(frozen=True, slots=True)
class Product:
    """What is simulated. Tests that switch a rule off put a broken part in."""

    task: type[PartitionTask] = PartitionTask
    log: type[MemoryLog] = MemoryLog
    worker: type[Worker[Any, Any]] = Worker
    prepare: Callable[["World"], None] = lambda _: None
    favoured: Collection[str] = ()  # faults that are drawn more often


@dataclass(slots=True)
class Outcome:
    """What became of a seed."""

    seed: int
    faults: list[str]
    drew: Counter[str]
    virtual_s: float = 0.0
    callbacks: int = 0
    cpu_s: float = 0.0
    digest: str = ""  # of every log: the same seed gives the same, in any process


@dataclass(slots=True)
class Slot:
    """A process that is started again when it has ended."""

    start: Callable[[Host], Process]
    name: str
    group: Group
    process: Process | None = None
    is_wanted: bool = True
    starts: int = 0


@dataclass
class World:
    """Everything there is in one simulation."""

    random: Random
    loop: VirtualLoop
    weather: Weather
    broker: Broker
    product: Product
    logger: FilteringBoundLogger = NO_LOG
    redis: Redis = field(default_factory=Redis)
    journal: Journal = field(default_factory=Journal)
    restored: list[Restored] = field(default_factory=list)
    submissions: list[Submission] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)  # runs whose last event is in its topic
    unhandled: list[str] = field(default_factory=list)
    started: list[Host] = field(default_factory=list)  # every process there ever was
    is_restoring: bool = False  # after every record: then records wait for long before they set their timers

    def __post_init__(self) -> None:
        self.inbox_group = Group(self.loop, self.weather, TOPICS.runs)
        self.steps_group = Group(self.loop, self.weather, TOPICS.steps_partitions)
        self.serves = work()
        self.task_type: type[PartitionTask] = self.product.task
        self.slots: list[Slot] = []
        self.poisoned = 0
        self.raising = Raising(self.random)
        self.harm = Harm(self)
        self.holding = Holding(self)
        self.loop.later(0, self.holding.look)
        self.broker.on_append = self._on_append
        self.loop.set_exception_handler(self._on_unhandled)

    # --- processes --------------------------------------------------------------------------------------------------

    def add_orchestrator(self) -> Slot:
        """Start one more orchestrator."""

        def start(host: Host) -> Process:
            return OrchestratorProcess(
                host, self.broker, self.inbox_group, task_type=self.task_type, log_type=self.product.log,
                logger=self.logger, on_restore=self._on_restore,
            )  # fmt: skip

        return self._add(Slot(start, "orchestrator", self.inbox_group))

    def add_worker(self) -> Slot:
        """Start one more worker."""

        def start(host: Host) -> Process:
            return WorkerProcess(
                host, self.broker, self.steps_group, worker_type=self.product.worker, serves=self.serves,
                redis=self.redis, journal=self.journal, logger=self.logger,
            )  # fmt: skip

        return self._add(Slot(start, "worker", self.steps_group))

    def _add(self, slot: Slot) -> Slot:
        slot.name = f"{slot.name}-{len(self.slots)}"
        self.slots.append(slot)
        self.start(slot)
        return slot

    def start(self, slot: Slot) -> None:
        """Start the slot's process, on a host of its own."""
        if not slot.is_wanted:
            return
        slot.starts += 1
        host = Host(f"{slot.name}.{slot.starts}", self.loop)
        self.started.append(host)
        slot.process = host.context.run(slot.start, host)
        host.on_death = lambda dead: self._on_death(slot, dead)
        host.spawn(slot.process.live(), "process")

    def _on_death(self, slot: Slot, host: Host) -> None:
        if isinstance(slot.process, WorkerProcess):
            handlers = sum(attempt.started_at is not None for attempt in slot.process.worker._attempts.values())
            self.weather.count("handlers that died with their worker", handlers)
        slot.group.silent(host)
        self.loop.later(self.random.choice((0.05, 1.0, 4.0)), self.start, slot)

    def hosts(self, slots: list[Slot] | None = None) -> list[Host]:
        """Return the hosts that are up."""
        found = [slot.process.host for slot in (self.slots if slots is None else slots) if slot.process is not None]
        return [host for host in found if host.is_alive]

    def slot_of(self, host: Host) -> Slot:
        """Return the slot of a host that is up."""
        return next(slot for slot in self.slots if slot.process is not None and slot.process.host is host)

    # --- clients ----------------------------------------------------------------------------------------------------

    def submit(self, message: SubmitRun) -> None:
        """Append a submission, as the gateway does."""
        self._send(message, f"{message.run_id}/submit")

    def cancel(self, run_id: str) -> None:
        """Append a cancellation, as the gateway does."""
        self._send(CancelRun(run_id=run_id), f"{run_id}/cancel")

    def _send(self, message: SubmitRun | CancelRun, message_id: str) -> None:
        record = encode(message, message_id=message_id, source="/gateway", at_ms=0, trace_id="0" * 32)
        self._append(message.run_id, message, record.value, record.headers)

    def _append(self, run_id: str, _: Message, value: bytes, headers: Any) -> None:
        key = run_id.encode()
        self.broker.append(TOPICS.inbox, partition_of(key, TOPICS.runs), key, value, headers)

    def poison(self) -> None:
        """Append what is no message."""
        self.poisoned += 1
        self.broker.append(TOPICS.inbox, self.random.randrange(TOPICS.runs), b"poison", b"{", ())

    # --- what happens -----------------------------------------------------------------------------------------------

    def _on_append(self, topic: str, partition: int, record: Record) -> None:
        if topic == TOPICS.inbox and dict(record.headers).get("ce_type") == b"ContinueRun":
            self.weather.count("turns that go on")
        if topic == TOPICS.run_events and _is_end(record):
            assert record.key is not None
            self.ended.add(record.key.decode())

    def _on_restore(self, partition: int, live: dict[bytes, bytes], *, is_newest: bool) -> None:
        if is_newest:
            self.harm.befall(partition, live)
        self.restored.append(Restored(partition, live, tuple(self.harm.harmed.get(partition, ()))))

    def _on_unhandled(self, _: object, context: dict[str, Any]) -> None:
        self.unhandled.append(f"{context.get('message')}: {context.get('exception')!r}")

    def logs(self, topic: str, partitions: int) -> list[Log]:
        """Return the partitions of a topic."""
        return [self.broker.log(topic, partition) for partition in range(partitions)]

    # --- the end ----------------------------------------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """Whether every run has ended and nobody holds anything any more."""
        done = self.ended | self.raising.untouched | self.harm.buried
        if any(submission.message.run_id not in done for submission in self.submissions):
            return False
        commands = self.logs(TOPICS.steps(USES), TOPICS.steps_partitions)
        committed = self.steps_group.committed
        return all(committed.get(partition, 0) == log.end for partition, log in enumerate(commands))


def _is_end(record: Record) -> bool:
    return dict(record.headers)["ce_type"].decode() in RUN_ENDED_TYPES


async def _drive(world: World, plan: Plan) -> None:
    for _ in range(plan.orchestrators):
        world.add_orchestrator()
    for _ in range(plan.workers):
        world.add_worker()
    world.submissions = submissions(world.random, plan.runs, SUBMIT_WITHIN_S)
    last_s = max(_schedule(world, submission) for submission in world.submissions)
    plan.schedule(world)
    await asyncio.sleep(max(last_s, CALM_AT_S))
    plan.calm(world)
    await _until_settled(world)
    invariants.check_quiet(world)
    await _stop_all(world)


def _schedule(world: World, submission: Submission) -> float:
    """Have a client do what it will do, and return when it is done."""
    times_s = [submission.at_s, *submission.again_at_s]
    for at_s in times_s:
        world.loop.later(at_s, world.submit, submission.message)
    if submission.cancel_at_s is not None:
        world.loop.later(submission.cancel_at_s, world.cancel, submission.message.run_id)
        times_s.append(submission.cancel_at_s)
    return max(times_s)


async def _until_settled(world: World) -> None:
    deadline = world.loop.now + SETTLE_S
    await asyncio.sleep(2)
    while not world.is_settled and world.loop.now < deadline:
        await asyncio.sleep(2)
    await asyncio.sleep(30)  # repeats and late answers are handled too; longer than a lease


async def _stop_all(world: World) -> None:
    for slot in world.slots:
        slot.is_wanted = False
        if slot.process is not None:
            slot.process.stop()
    await asyncio.sleep(20)
    if world.hosts():
        world.unhandled.append(f"{[host.name for host in world.hosts()]} did not stop")


def simulate(
    seed: int, *, product: Product = Product(), restoring: bool = False, logger: FilteringBoundLogger = NO_LOG
) -> Outcome:
    """Run a seed to its end, and say what is wrong."""
    began = time.process_time()
    gc.disable()  # what is collected runs its cleanup, whenever that is
    random = Random(seed)
    loop = VirtualLoop()
    weather = Weather(random, climate_of(random))
    world = World(random, loop, weather, Broker(loop, weather, TOPICS), product, logger, is_restoring=restoring)
    if restoring:
        world.task_type = RestoringTask.of(product.task)
    product.prepare(world)
    charge = charging(weather, EVALUATION_S if seed % 6 == 0 else 0.0)
    raising = {name: getattr(world.raising, name) for name in ("decide", "abandon", "refuse")}
    try:
        with (
            patch.object(turn, "STEPS_PER_TURN", 2 if seed % 2 else turn.STEPS_PER_TURN),  # runs of a few steps go on
            patch.object(turn, "COST_PER_TURN", 1 if seed % 3 == 0 else turn.COST_PER_TURN),  # after any expression
            patch.object(turn.Budget, "charge", charge),
            patch.multiple(core_partition, **raising),
        ):
            loop.run_until_complete(_drive(world, Plan.drawn(random, product.favoured)))
            faults = invariants.check(world)
    except Stuck as stuck:
        faults = [str(stuck)]
    loop.close()
    cpu_s = time.process_time() - began
    return Outcome(seed, faults, weather.drew, loop.now, loop.handled, cpu_s, invariants.digest(world))
