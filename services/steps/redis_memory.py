"""The workers' memory on Redis: one hash per step type and five minutes of causes.

A repeat of a command has the same `at_ms`, so a look-up is one HMGET in a known hash, and all that is written together
is one HSET. Fields: `r:<attempt>` its result, `l:<attempt>` "<until ms> <holder>", `t:<attempt>` its takes,
`a:<attempt>` those of them when it was tried alone, `w:<attempt>` by which worker last. A hash lives for the retention
after its last write. Cost: a result as it is on the wire (at most 64 KiB; larger ones are
remembered as acknowledged only) and some 150 bytes, for an hour.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from anabranch.services.steps.last_words import RETENTION_S, instance_of
from anabranch.services.steps.ports import Asked, MemoryUnavailable, Note, Remembered, Take
from anabranch.shared.runtime.redis import Redis, RedisError, RedisKeys

_BUCKET_MS: Final = 5 * 60 * 1000
_RETENTION_S: Final = 3600  # architecture §3: how long a repeated command is recognised

_FIELDS: Final = 5  # of an attempt

T = TypeVar("T", Asked, Note, Take)


class RedisMemory:
    """What workers of one step type remember."""

    def __init__(self, redis: Redis, keys: RedisKeys, uses: str, *, retention_s: int = _RETENTION_S) -> None:
        self._redis = redis
        self._keys = keys
        self._uses = uses
        self._retention_s = retention_s

    async def recall(self, asked: Sequence[Asked]) -> Sequence[Remembered]:
        """Return what is known of each attempt: one round trip, one command per hash."""
        by_bucket = _by_bucket(asked)
        with _wrapped():
            async with self._redis.pipeline(transaction=False) as pipe:
                for bucket, some in by_bucket.items():
                    pipe.hmget(self._key(bucket), [field for ask in some for field in _fields(ask.attempt_id)])
                answers = await pipe.execute()
        known = {
            ask.attempt_id: _remembered(values[_FIELDS * i : _FIELDS * (i + 1)])
            for some, values in zip(by_bucket.values(), answers, strict=True)
            for i, ask in enumerate(some)
        }
        return [known[ask.attempt_id] for ask in asked]

    async def count_takes(self, takes: Sequence[Take]) -> None:
        """Add one to each attempt's takes, and to those alone."""
        with _wrapped():
            async with self._redis.pipeline(transaction=False) as pipe:
                for take in takes:
                    key = self._key(take.at_ms // _BUCKET_MS)
                    pipe.hincrby(key, f"t:{take.attempt_id}", 1)
                    if take.alone_on:
                        pipe.hincrby(key, f"a:{take.attempt_id}", 1)
                        pipe.hset(key, f"w:{take.attempt_id}", take.alone_on)
                for bucket in _by_bucket(takes):
                    pipe.expire(self._key(bucket), self._retention_s)
                await pipe.execute()

    async def last_words(self, worker: str) -> str:
        """Return what the worker said at its end, and how its process ended."""
        with _wrapped():
            said = await self._redis.mget(self._keys.worker_end(worker), self._keys.worker_end(instance_of(worker)))
        return "; ".join(words.decode(errors="replace") for words in said if isinstance(words, bytes))

    async def note_end(self, instance: str, how: str) -> None:
        """Write how a process ended."""
        with _wrapped():
            await self._redis.set(self._keys.worker_end(instance), how, ex=RETENTION_S)

    async def remember(self, notes: Sequence[Note]) -> None:
        """Write the notes: one HSET per hash."""
        with _wrapped():
            async with self._redis.pipeline(transaction=False) as pipe:
                for bucket, some in _by_bucket(notes).items():
                    key = self._key(bucket)
                    pipe.hset(key, items=[item for note in some for item in _written(note)])
                    pipe.expire(key, self._retention_s)
                await pipe.execute()

    def _key(self, bucket: int) -> str:
        return self._keys.worker_memory(self._uses, bucket)


def _fields(attempt_id: str) -> tuple[str, ...]:
    return tuple(f"{kind}:{attempt_id}" for kind in "rltaw")


def _written(note: Note) -> tuple[str, bytes]:
    if note.result is not None:
        return f"r:{note.attempt_id}", note.result
    return f"l:{note.attempt_id}", b"%d %b" % (note.leased_until_ms, note.holder.encode())


def _remembered(values: Sequence[bytes | None]) -> Remembered:
    result, lease, takes, alone, alone_on = values
    until, _, holder = (lease or b"0").partition(b" ")
    return Remembered(result, holder.decode(), int(until), int(takes or 0), int(alone or 0), (alone_on or b"").decode())


def _by_bucket(items: Iterable[T]) -> dict[int, list[T]]:
    groups: dict[int, list[T]] = {}
    for item in items:
        groups.setdefault(item.at_ms // _BUCKET_MS, []).append(item)
    return groups


@contextmanager
def _wrapped() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise MemoryUnavailable(f"Redis: {error!r}") from error
