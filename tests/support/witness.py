"""The `witness` step type, of the tests' own: it counts its handler's starts outside, in Redis.

`python -m tests.support.witness` from the root of the repository serves it, beside the services of the house. Input:
`{sleep: seconds, gate: path, value}`, where nothing goes on while the gate exists; output: `{value}`. The counts are a
hash, `witness:starts`, by attempt.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from redis.asyncio import BlockingConnectionPool, Redis

from anabranch.steps import StepContext, serve, step_type

STARTS: Final = "witness:starts"
_LOOK_EVERY_S: Final = 0.1


class Watched(BaseModel):
    """What to do after the start was counted."""

    model_config = ConfigDict(extra="forbid")

    sleep: float = 0
    gate: str = ""
    value: Any = None


class Seen(BaseModel):
    """The value, unchanged."""

    value: Any = None


@asynccontextmanager
async def open_redis() -> AsyncIterator[Redis]:
    """Connect to the Redis of the stack."""
    url = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
    redis = Redis.from_pool(BlockingConnectionPool.from_url(url, max_connections=8))
    try:
        yield redis
    finally:
        await redis.aclose()


@step_type("witness", description="Count the start of its handler, outside.", concurrency=64, lifespan=open_redis)
async def witness(watched: Watched, context: StepContext) -> Seen:
    """Count this start, then sleep, and wait for the gate to open."""
    redis: Redis = context.resource
    await redis.hincrby(STARTS, f"{context.run_id}/{context.step}/{context.attempt}", 1)
    await asyncio.sleep(watched.sleep)
    while watched.gate and Path(watched.gate).exists():
        await asyncio.sleep(_LOOK_EVERY_S)
    return Seen(value=watched.value)


async def starts(redis: Redis) -> dict[str, int]:
    """Return how often each attempt's handler was started."""
    return {attempt.decode(): int(count) for attempt, count in (await redis.hgetall(STARTS)).items()}


if __name__ == "__main__":
    serve(witness)
