"""Tells the gateways how far the snapshots are: they compare it with Kafka, and say how stale a read is."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from anabranch.shared.runtime.redis import Redis, RedisError, RedisKeys

_EVERY_S: Final = 0.5  # below the second from which a read is called stale
_UNCHANGED: Final = 4  # times that it is the same before it is told again


class RedisProgress:
    """One hash, with the next offset of each partition of the run events."""

    def __init__(self, redis: Redis, keys: RedisKeys) -> None:
        self._redis = redis
        self._key = keys.progress()

    async def tell_for_ever(self, reached: Callable[[], Mapping[int, int]]) -> None:
        """Tell it twice a second, or every two if it has not changed: Redis may have been emptied, or be an old one."""
        told: Mapping[int, int] = {}
        unchanged = 0
        while True:
            await asyncio.sleep(_EVERY_S)
            now = dict(reached())
            unchanged = unchanged + 1 if now == told else 0
            if unchanged % _UNCHANGED == 0:
                await self.tell(now)
                told = now

    async def tell(self, reached: Mapping[int, int]) -> None:
        """Tell it once; while Redis does not take it nobody knows, and the loop that writes snapshots says why."""
        if not reached:
            return
        try:
            await self._redis.hset(self._key, mapping={str(each): offset for each, offset in reached.items()})
        except (RedisError, OSError, TimeoutError):
            return
