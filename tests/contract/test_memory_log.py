"""The in-memory log of the simulation keeps the contract."""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from random import Random
from typing import Any, cast

import pytest

from anabranch.services.orchestrator.core.changelog import Change
from anabranch.services.orchestrator.ports import PartitionLog
from anabranch.shared.contracts.topics import TopicNames
from tests.contract.log_contract import LogContract, TypedRecord
from tests.simulation.broker import Broker, Lanes, Producer
from tests.simulation.partition_log import MemoryLog, Reader
from tests.simulation.virtual import VirtualLoop
from tests.simulation.weather import Weather


class _RealTime:
    """The running loop, with the two words that the in-memory log says to the virtual one."""

    world = Context()

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    @property
    def now(self) -> float:
        return self._loop.time()

    def later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        return self._loop.call_later(delay_s, callback, *args, context=self.world)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


class MemoryBench:
    """A broker without weather, and one process."""

    topics = TopicNames(prefix="contract", runs=2, steps_partitions=2)

    def __init__(self) -> None:
        self._broker = Broker(cast(VirtualLoop, _RealTime()), Weather(Random(0)), self.topics)
        self._producer = Producer(self._broker, None, lambda _: None)
        self._lanes = Lanes(self._broker, None)
        self._reader = Reader()

    def log(self, partition: int, assignment: int) -> PartitionLog:
        return MemoryLog(
            partition, assignment, broker=self._broker, producer=self._producer, lanes=self._lanes, reader=self._reader
        )

    async def arrive(self, partition: int, value: bytes) -> None:
        self._broker.append(self.topics.inbox, partition, b"key", value, (("h", b"1"),))

    async def leave_open(self, partition: int, changes: Sequence[Change]) -> None:
        changelog = self._broker.changelogs[partition]
        changelog.write(changelog.start_producer(), changes)

    async def read(self, topic: str, partition: int) -> Sequence[TypedRecord]:
        return [(r.key, r.value, r.headers) for r in self._broker.log(topic, partition).records]


class TestMemoryLog(LogContract):
    @pytest.fixture
    async def bench(self) -> MemoryBench:
        return MemoryBench()
