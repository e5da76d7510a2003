"""A step service of the tests' own: counts in Redis how often a handler of each attempt was started."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import BaseModel
from redis.asyncio import Redis

from anabranch.steps import StepContext, serve, step_type

STARTS = "witness:starts"
"""A hash: attempt -> how often its handler was started."""


class WitnessInput(BaseModel):
    """What to return, and how long to take, seconds."""

    value: int = 0
    sleep_s: float = 0.0


class WitnessOutput(BaseModel):
    """What was asked for."""

    value: int


@asynccontextmanager
async def witness_book() -> AsyncIterator[Redis]:
    """Open the book that outlives the worker."""
    redis = Redis.from_url(os.environ["REDIS_URL"])
    yield redis
    await redis.aclose()


@step_type("witness", lifespan=witness_book)
async def witness(given: WitnessInput, context: StepContext) -> WitnessOutput:
    """Note the start, take the time, return the value."""
    await context.resource.hincrby(STARTS, f"{context.run_id}/{context.step}/{context.attempt}", 1)
    await asyncio.sleep(given.sleep_s)
    return WitnessOutput(value=given.value)


if __name__ == "__main__":
    serve(witness)
