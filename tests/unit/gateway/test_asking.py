"""Redis is asked for many at once."""

import asyncio
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from anabranch.services.gateway.asking import Asking, Command
from tests.unit.gateway.fakes import FakeRedis


def _status(key: str) -> Command:
    return lambda pipeline: pipeline.hget(key, "status")


async def _asked(asking: Asking, *keys: str) -> list[Any]:
    return await asyncio.gather(*(asking.ask(_status(key)) for key in keys), return_exceptions=True)


async def test_what_is_asked_together_is_one_exchange() -> None:
    """Each gets its own answer."""
    redis = FakeRedis()
    redis.hashes = {f"run:{n}": {b"status": b"%d" % n} for n in range(100)}
    asking = Asking(redis)  # type: ignore[arg-type]
    found = await _asked(asking, *redis.hashes, "run:unknown")
    assert found == [*(b"%d" % n for n in range(100)), None]
    assert redis.calls == 1
    assert await asking.ask(_status("run:7")) == b"7"
    assert redis.calls == 2


async def test_without_redis_everybody_is_told_and_the_next_question_is_asked_again() -> None:
    """Nobody waits for ever."""
    redis = FakeRedis()
    asking = Asking(redis)  # type: ignore[arg-type]
    redis.down = True
    assert [type(each) for each in await _asked(asking, *"abc")] == [RedisConnectionError] * 3
    redis.down = False
    assert await _asked(asking, "a") == [None]


async def test_who_has_left_is_not_answered_and_the_others_are() -> None:
    """A client may hang up while Redis is asked."""
    asking = Asking(FakeRedis())  # type: ignore[arg-type]
    asks = [asyncio.create_task(asking.ask(_status(key))) for key in "abc"]
    await asyncio.sleep(0)
    asks[1].cancel()
    assert await asyncio.gather(asks[0], asks[2]) == [None, None]
    with pytest.raises(asyncio.CancelledError):
        await asks[1]
