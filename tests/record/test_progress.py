"""How far the snapshots are goes from history to the gateways through Redis, and how far the record is through SQL."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from aiokafka import TopicPartition
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.services.gateway.cache import RunCache
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.pressure import Pressure
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.services.gateway.staleness import Staleness, StalenessWatch
from anabranch.services.history import progress as progress_module
from anabranch.services.history.progress import RedisProgress
from anabranch.shared.contracts.ids import new_run_id
from anabranch.shared.record.reading import RecordReader
from anabranch.shared.runtime.redis import RedisKeys
from tests.support.record_rows import record
from tests.unit.gateway.fakes import FakeLog
from tests.unit.history.fakes import run_started

KEYS = RedisKeys("pipelines")


class Ends:
    """Says where the partitions of the run events begin and end."""

    def __init__(self, ends: dict[int, int], begins: dict[int, int]) -> None:
        self.ends, self.begins = ends, begins

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {each: self.ends.get(each.partition, 0) for each in partitions}

    async def beginning_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {each: self.begins.get(each.partition, 0) for each in partitions}


async def test_what_neither_has_reached_since_the_last_look_is_stale(redis: Redis, database: AsyncEngine) -> None:
    """Partition 0 is recorded and not projected, 1 the other way round, 2 neither, 3 was emptied by its retention."""
    await record(database, [run_started(new_run_id())])  # offset 0 of partition 0
    await RedisProgress(redis, KEYS).tell({0: 0, 1: 1, 2: 0})
    settings, metrics = GatewaySettings(), GatewayMetrics(CollectorRegistry())
    staleness, pressure = Staleness(settings.run_partitions, metrics), Pressure(FakeLog(), settings, metrics)
    clock: Any = iter((10.0, 14.0))
    watch = StalenessWatch(
        Ends({0: 1, 1: 1, 2: 1, 3: 5}, {3: 5}),  # type: ignore[arg-type]
        RunCache(redis, KEYS, metrics, ended_ttl_s=60, is_all=False), RecordReader(database),
        staleness=staleness, pressure=pressure, settings=settings, monotonic_s=lambda: next(clock),
    )  # fmt: skip
    for _ in range(2):
        await watch._look()
    shown = [(staleness.snapshots.behind_s(each), staleness.record.behind_s(each)) for each in range(5)]
    assert shown == [(4, 0), (0, 4), (4, 4), (None, 0), (None, 0)]


async def test_redis_that_is_away_or_emptied_says_nothing(redis: Redis) -> None:
    """Then nothing is known, and history tells it again within two seconds."""
    progress = RedisProgress(redis, KEYS)
    cache = RunCache(redis, KEYS, GatewayMetrics(CollectorRegistry()), ended_ttl_s=60, is_all=False)
    await progress.tell({3: 8})
    await progress.tell({})
    await progress.tell({4: 1, 3: 9})
    assert await cache.reached() == {3: 9, 4: 1}
    await redis.flushall()
    assert await cache.reached() == {}
    await RedisProgress(Redis(port=1), KEYS).tell({3: 9})


async def test_what_does_not_move_is_told_every_fourth_time(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """What moves is told each time: a read is called stale by it."""
    monkeypatch.setattr(progress_module, "_EVERY_S", 0.0)
    reached = iter([{0: 1}, {0: 2}, *8 * [{0: 2}], {0: 3}, {0: 3}])
    told: list[dict[int, int]] = []

    class Progress(RedisProgress):
        async def tell(self, reached: Mapping[int, int]) -> None:
            told.append(dict(reached))

    with pytest.raises(RuntimeError):  # as a coroutine says that the iterator has ended
        await Progress(redis, KEYS).tell_for_ever(lambda: next(reached))
    assert told == [{0: 1}, {0: 2}, {0: 2}, {0: 2}, {0: 3}]
