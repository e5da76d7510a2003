"""Where snapshots are written: the port, and Redis behind it."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

from anabranch.services.history.projection import RunChange
from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.runtime.redis import NoScriptError, Redis, RedisError, RedisKeys, ResponseError
from anabranch.shared.runtime.snapshots import SEQ

# One script carries this much at most, so that neither a step with a large output nor many runs hold up the others for
# long: meanwhile Redis does nothing else, some 5 µs per run.
_SCRIPT_BYTES: Final = 4 * 1024 * 1024
_SCRIPT_RUNS: Final = 200

# KEYS: the runs' hashes. ARGV, of one run after the other: its last seq, the seq that its snapshot must have for the
# change to join it, seconds to live, its channel, the status with which it has ended or nothing, how many arguments
# follow, then fields and values, `seq` among them.
# The channel is told the seq; of an end also the status, and the bytes of the hash: who waits need not ask for them.
# What does not join would be a run with holes: its hash goes, nobody is told, and the record answers.
# Answers for each run the seq that its snapshot had before (0 if it is no number), that the change did not join (-1),
# or that its key is no hash. A thousand fields at a time: Lua's stack holds 8,000 arguments.
_OVERWRITE: Final = """
local answers, at = {}, 1
for run, key in ipairs(KEYS) do
  local seq, joins, ttl, channel, ended, size = unpack(ARGV, at, at + 5)
  local first = at + 6
  at = first + size
  local before = redis.pcall('HGET', key, 'seq') or '0'
  local known = tonumber(before) or 0
  answers[run] = before.err and before or known
  if not before.err and known < tonumber(joins) then
    redis.call('DEL', key)
    answers[run] = -1
  elseif not before.err and tonumber(seq) > known then
    for from = first, at - 1, 2000 do
      redis.call('HSET', key, unpack(ARGV, from, math.min(from + 1999, at - 1)))
    end
    redis.call('EXPIRE', key, ttl)
    if ended ~= '' then
      seq = seq .. ' ' .. ended .. ' ' .. redis.call('MEMORY', 'USAGE', key, 'SAMPLES', 0)
    end
    redis.call('PUBLISH', channel, seq)
  end
end
return answers
"""


NOT_JOINED: Final = -1
"""What the store says of a change to a run of which it holds too little: it keeps nothing of that run."""


class StoreUnavailable(AnabranchError):
    """The store did not take the changes now; some may have been applied. Writing them again is safe."""


class ChangeRejected(AnabranchError):
    """The store will never take this change; the others were applied."""


class SnapshotStore(Protocol):
    """Applies changes to snapshots; applying one twice changes nothing."""

    async def apply(self, changes: Sequence[RunChange]) -> list[int | ChangeRejected]:
        """Return for each change the seq its snapshot had before, or `NOT_JOINED`. Raises `StoreUnavailable`."""
        ...


class RedisSnapshots:
    """Snapshots as Redis hashes, those of many runs changed by one script: a call per run cost twice as much.

    `only_whole`: there is a record, which answers for runs that Redis has lost. Without one, what is known of such a
    run since then is better than nothing.
    """

    def __init__(
        self, redis: Redis, keys: RedisKeys, *, active_ttl_s: int, ended_ttl_s: int, only_whole: bool = False
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._active_ttl_s = active_ttl_s
        self._ended_ttl_s = ended_ttl_s
        self._only_whole = only_whole
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
        arguments: list[Any] = [self._keys.run(change.run_id) for change in changes]
        for change in changes:
            arguments += self._arguments(change)
        answers = await self._redis.evalsha(self._sha, len(changes), *arguments)
        return [_outcome(answer) for answer in answers]

    def _arguments(self, change: RunChange) -> list[Any]:
        ttl_s = self._ended_ttl_s if change.ended else self._active_ttl_s
        channel = self._keys.channel(change.run_id)
        size = 2 * (1 + len(change.fields))
        joins = change.first_seq - 1 if self._only_whole else 0
        arguments = [change.last_seq, joins, ttl_s, channel, change.ended, size, SEQ, change.last_seq]
        for field in change.fields.items():
            arguments += field
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
        if size >= _SCRIPT_BYTES or len(chunk) >= _SCRIPT_RUNS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
