"""Redis that does not answer holds up one request at a time where runs can be read elsewhere."""

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from anabranch.services.gateway.cache import CacheUnavailable, RunCache
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.shared.runtime.redis import RedisKeys

from .fakes import FakeRedis

HANG_S = 60.0


class Bench:
    """A cache, its Redis, and the clock between the two."""

    def __init__(self, *, is_all: bool) -> None:
        self.now_s = 0.0
        self.redis = FakeRedis()
        redis: Any = self.redis
        metrics = GatewayMetrics(CollectorRegistry())
        self.cache = RunCache(
            redis, RedisKeys("p"), metrics, ended_ttl_s=1, is_all=is_all, monotonic_s=lambda: self.now_s
        )

    async def answers(self) -> bool:
        """Return whether Redis was asked and answered."""
        try:
            return await self.cache.status("r") is None
        except CacheUnavailable:
            return False


async def test_redis_that_failed_is_tried_again_by_one_at_a_time() -> None:
    """A second later, and all ask it as soon as that one was answered."""
    bench = Bench(is_all=False)
    bench.redis.down = True
    assert not await bench.answers()
    for _ in range(5):
        assert not await bench.answers()
    assert bench.redis.calls == 1
    bench.now_s = 1.5
    assert [await bench.answers() for _ in range(5)] == 5 * [False]
    assert bench.redis.calls == 2
    bench.redis.down, bench.now_s = False, 3.0
    asked = await asyncio.gather(*(bench.answers() for _ in range(5)))
    assert sorted(asked) == [False] * 4 + [True]
    assert await asyncio.gather(*(bench.answers() for _ in range(5))) == 5 * [True]


async def test_whoever_tries_and_leaves_leaves_it_to_another() -> None:
    """Redis stands still: his client does not wait for it."""
    bench = Bench(is_all=False)
    bench.redis.down = True
    assert not await bench.answers()
    bench.redis.down, bench.now_s = False, 2.0
    bench.redis.stands_still = asyncio.Event()
    trying = asyncio.create_task(bench.answers())
    await asyncio.sleep(0)
    assert not await bench.answers()
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    bench.redis.stands_still.set()
    bench.now_s = 4.0
    async with asyncio.timeout(HANG_S):
        assert await bench.answers()


async def test_a_client_that_leaves_says_nothing_of_redis() -> None:
    """Redis answers the others."""
    bench = Bench(is_all=False)
    bench.redis.stands_still = asyncio.Event()
    leaving = asyncio.create_task(bench.answers())
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    bench.redis.stands_still.set()
    assert await bench.answers()


async def test_redis_is_asked_however_often_it_failed_where_it_is_all_there_is() -> None:
    """Nothing else could answer."""
    bench = Bench(is_all=True)
    bench.redis.down = True
    for _ in range(3):
        assert not await bench.answers()
    assert bench.redis.calls == 3
    bench.redis.down = False
    assert await bench.answers()
