"""Where snapshots are written: the port, and Redis behind it."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from anabranch.services.history.projection import RunChange
from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.runtime.redis import RedisKeys

# One round trip carries this much at most, so that a step with a large output does not hold up the others for long.
_PIPELINE_BYTES: Final = 4 * 1024 * 1024
_PIPELINE_RUNS: Final = 500

# KEYS: the run's hash. ARGV: last seq, seconds to live, its channel, what to tell it, then fields and values.
# Answers the seq that the snapshot had before. A thousand fields at a time: Lua's stack holds 8,000 arguments.
_OVERWRITE: Final = """
local before = tonumber(redis.call('HGET', KEYS[1], 'seq') or '0')
if tonumber(ARGV[1]) <= before then return before end
redis.call('HSET', KEYS[1], 'seq', ARGV[1])
for from = 5, #ARGV, 2000 do
  redis.call('HSET', KEYS[1], unpack(ARGV, from, math.min(from + 1999, #ARGV)))
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[3], ARGV[4])
return before
"""


class StoreUnavailable(AnabranchError):
    """The store did not take the changes now; some may have been applied. Writing them again is safe."""


class ChangeRejected(AnabranchError):
    """The store will never take this change; the others were applied."""


class SnapshotStore(Protocol):
    """Applies changes to snapshots; applying one twice changes nothing."""

    async def apply(self, changes: Sequence[RunChange]) -> list[int | ChangeRejected]:
        """Return for each change the seq its snapshot had before. Raises `StoreUnavailable`."""
        ...


class RedisSnapshots:
    """Snapshots as Redis hashes, changed by one script per run."""

    def __init__(self, redis: Redis, keys: RedisKeys, *, active_ttl_s: int, ended_ttl_s: int) -> None:
        self._redis = redis
        self._keys = keys
        self._active_ttl_s = active_ttl_s
        self._ended_ttl_s = ended_ttl_s
        self._sha = ""

    async def apply(self, changes: Sequence[RunChange]) -> list[int | ChangeRejected]:
        """Overwrite what the changes say and tell each run's channel once."""
        before: list[int | ChangeRejected] = []
        for chunk in _chunks(changes):
            before += await self._apply(chunk)
        return before

    async def _apply(self, changes: Sequence[RunChange]) -> list[int | ChangeRejected]:
        try:
            return await self._evaluate(changes)
        except NoScriptError:  # Redis was started again or its scripts were flushed
            self._sha = ""
        except (RedisError, OSError) as error:
            raise StoreUnavailable(str(error)) from error
        try:
            return await self._evaluate(changes)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(str(error)) from error

    async def _evaluate(self, changes: Sequence[RunChange]) -> list[int | ChangeRejected]:
        if not self._sha:
            self._sha = await self._redis.script_load(_OVERWRITE)
        pipeline = self._redis.pipeline(transaction=False)
        for change in changes:
            pipeline.execute_command("EVALSHA", *self._arguments(change))
        return [_outcome(answer) for answer in await pipeline.execute(raise_on_error=False)]

    def _arguments(self, change: RunChange) -> list[Any]:
        ttl_s = self._ended_ttl_s if change.ended else self._active_ttl_s
        told = f"{change.last_seq} {change.ended}"
        arguments: list[Any] = [self._sha, 1, self._keys.run(change.run_id), change.last_seq, ttl_s]
        arguments += [self._keys.channel(change.run_id), told]
        for name, value in change.fields.items():
            arguments += [name, value]
        return arguments


def _outcome(answer: object) -> int | ChangeRejected:
    if isinstance(answer, int):
        return answer
    if isinstance(answer, ResponseError) and str(answer).startswith("WRONGTYPE"):
        return ChangeRejected(str(answer))
    assert isinstance(answer, Exception)
    raise answer


def _chunks(changes: Sequence[RunChange]) -> Iterator[list[RunChange]]:
    chunk: list[RunChange] = []
    size = 0
    for change in changes:
        chunk.append(change)
        size += sum(map(len, change.fields.values()))
        if size >= _PIPELINE_BYTES or len(chunk) >= _PIPELINE_RUNS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
