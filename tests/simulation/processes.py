"""The processes: wired as `__main__` wires them, on the ports of one host."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, cast

from structlog.typing import FilteringBoundLogger

from anabranch.services.orchestrator.metrics import OrchestratorMetrics
from anabranch.services.orchestrator.owner import PartitionOwner
from anabranch.services.orchestrator.partition_task import PartitionTask
from anabranch.services.steps.metrics import Facts
from anabranch.services.steps.settings import WorkerSettings
from anabranch.services.steps.step_type import StepType
from anabranch.services.steps.worker import Worker
from anabranch.shared.contracts.topics import TopicNames

from .broker import Broker, Lanes, Producer, wake
from .group import Group, Member
from .partition_log import MemoryLog, Reader
from .virtual import Host
from .weather import Weather
from .witness import Journal, Witness
from .worker_ports import MemoryCommands, MemoryControl, MemoryMemory, MemoryResults, Redis, now_ms
from .workload import USES

WORKER = WorkerSettings(
    grace_s=1.0, lease_s=9.0, commit_s=0.3, poll_s=20.0, stop_timeout_s=9.0, give_back_s=2.0, revoke_timeout_s=8.0,
    memory_retry_s=2.0, concurrency=3,
)  # fmt: skip


class Process(ABC):
    """One process: its host, and when it is told to stop."""

    def __init__(self, host: Host, broker: Broker) -> None:
        self.host = host
        self.broker = broker
        self.stopping: asyncio.Future[None] = broker.loop.create_future()
        self.failed: asyncio.Future[None] = broker.loop.create_future()
        self.why: BaseException | None = None
        self.members: Sequence[Member] = ()

    def stop(self) -> None:
        """Tell it to stop, as SIGTERM does."""
        wake(self.stopping)

    def fail(self, error: BaseException) -> None:
        """End it, for this reason."""
        self.why = self.why or error
        wake(self.failed)

    async def live(self) -> None:
        """Run until it has stopped or failed; then the process is gone."""
        running = asyncio.ensure_future(self.main())
        await asyncio.wait([running, self.failed], return_when=asyncio.FIRST_COMPLETED)
        if running.done() and not running.cancelled() and running.exception() is not None:
            self.why = self.why or running.exception()
        if self.why is not None:  # `run_service` cancels what runs, and gives it a moment
            self.broker.weather.count("processes ended by an error")
            self.host.cancel_all()
            self.broker.loop.later(0.01, self.host.kill)
            await asyncio.sleep(1)
        self.host.is_done = self.why is None
        self.broker.loop.later(0, self.host.kill)

    @abstractmethod
    async def main(self) -> None:
        """What `__main__` does."""


class Metrics:
    """The orchestrator's facts, into the count of the simulation."""

    def __init__(self, weather: Weather) -> None:
        self._weather = weather

    def count(self, what: str) -> None:
        """Something that only the simulation does."""
        self._weather.count(what)

    def restored(self, *, seconds: float, records: int) -> None:
        """A partition was taken over."""
        self._weather.count("restores")

    def partition_error(self, error: str) -> None:
        """The log raised."""
        self._weather.count("fences" if error == "Fenced" else f"answered {error}")

    def dropped_stale(self, records: int) -> None:
        """Records of an older assignment were dropped."""
        self._weather.count("stale records dropped", records)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return _nothing


def _nothing(*_: object, **__: object) -> None:
    """The simulation does not count this."""


class WorkerFacts(Facts):
    """The worker's facts, into the count of the simulation."""

    def __init__(self, weather: Weather) -> None:
        self._weather = weather

    def repeat_dropped(self, why: str) -> None:
        """A repeat was not run."""
        self._weather.count(f"repeated commands dropped: {why}")

    def leased(self) -> None:
        """An attempt outlasted the grace."""
        self._weather.count("leases")

    def lapsed(self) -> None:
        """A lease could not be renewed."""
        self._weather.count("lapsed leases")


class OrchestratorProcess(Process):
    """The orchestrator."""

    def __init__(
        self,
        host: Host,
        broker: Broker,
        group: Group,
        *,
        task_type: type[PartitionTask],
        log_type: type[MemoryLog],
        logger: FilteringBoundLogger,
        on_restore: Callable[..., None],
    ) -> None:
        super().__init__(host, broker)
        self._task_type = task_type
        self._log_type = log_type
        self._logger = logger
        self._on_restore = on_restore
        self._reader = Reader()
        self._producer = Producer(broker, host, self.fail)
        self._lanes = Lanes(broker, host)
        self._breaks = False
        self.owner = PartitionOwner(new_task=self._new_task, rejoin=self._rejoin, fail=self.fail, logger=logger)
        self._member = group.member(host, self)
        self.members = (self._member,)

    def break_next_task(self) -> None:
        """Have the next rebalance listener raise."""
        self._breaks = True

    def _new_task(self, partition: int, assignment: int) -> PartitionTask:
        if self._breaks:
            self.broker.weather.count("rebalance listeners that raised")
            raise RuntimeError("no task can be made")
        log = self._log_type(
            partition, assignment, broker=self.broker, producer=self._producer, lanes=self._lanes,
            reader=self._reader, host=self.host,
            on_restore=self._on_restore,
        )  # fmt: skip
        metrics = cast(OrchestratorMetrics, Metrics(self.broker.weather))
        return self._task_type(log, self.broker.topics.inbox, metrics, self._logger, now_ms=lambda: now_ms(self.broker))

    def _rejoin(self) -> None:
        wake(self._member.rejoin)

    async def on_assigned(self, partitions: Sequence[int], generation: int) -> None:
        """What the rebalance listener does: what it raises would be swallowed, so it ends the process."""
        try:
            await self.owner.on_assigned(partitions)
        except Exception as error:  # noqa: BLE001  # as in `membership.py`
            self.fail(error)

    async def on_revoked(self) -> None:
        """As above."""
        try:
            await self.owner.on_revoked()
        except Exception as error:  # noqa: BLE001  # as in `membership.py`
            self.fail(error)

    async def main(self) -> None:
        """Own partitions until told to stop."""
        self._member.start()
        await self.stopping
        await self.owner.stop()
        self._member.leave()
        await self._producer.acknowledged()


class WorkerProcess(Process):
    """A step service."""

    def __init__(
        self,
        host: Host,
        broker: Broker,
        group: Group,
        *,
        worker_type: type[Worker[Any, Any]],
        serves: StepType[Any, Any],
        redis: Redis,
        journal: Journal,
        logger: FilteringBoundLogger,
    ) -> None:
        super().__init__(host, broker)
        topics: TopicNames = broker.topics
        self.commands = MemoryCommands(topics.steps(USES), broker=broker, group=group, host=host)
        self.members = (self.commands.member,)
        self._producer = Producer(broker, host, _nothing)
        self.worker = worker_type(
            serves, name=host.name, topics=topics, commands=self.commands, results=MemoryResults(self._producer),
            memory=MemoryMemory(redis, broker, host), control=MemoryControl(broker, host),
            now_ms=lambda: now_ms(broker), log=logger, settings=WORKER, facts=WorkerFacts(broker.weather),
            resource=Witness(journal, host, broker, redis),
        )  # fmt: skip

    async def main(self) -> None:
        """Serve until told to stop."""
        stopping = asyncio.Event()
        self.stopping.add_done_callback(lambda _: stopping.set())
        await self.worker.run(stopping)
