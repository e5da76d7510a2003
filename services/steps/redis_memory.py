"""The workers' memory on Redis: one hash per step type and five minutes of causes.

A repeat of a command has the same `at_ms`, so a look-up is one HMGET in a known hash, and all that is written together
is one HSET. Fields: `r:<attempt>` its result, `l:<attempt>` "<until ms> <holder>", `t:<attempt>` its takes. A hash
lives for the retention after its last write. Cost: a result as it is on the wire (at most 64 KiB; larger ones are
remembered as acknowledged only) and some 150 bytes, for an hour.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from anabranch.services.steps.ports import Asked, MemoryUnavailable, Note, Remembered
from anabranch.shared.runtime.redis import RedisKeys

_BUCKET_MS: Final = 5 * 60 * 1000
_RETENTION_S: Final = 3600  # architecture §3: how long a repeated command is recognised

T = TypeVar("T")


class RedisMemory:
    """What workers of one step type remember."""

    def __init__(self, redis: Redis, keys: RedisKeys, uses: str, *, retention_s: int = _RETENTION_S) -> None:
        self._redis = redis
        self._keys = keys
        self._uses = uses
        self._retention_s = retention_s

    async def recall(self, asked: Sequence[Asked]) -> Sequence[Remembered]:
        """Return what is known of each attempt: one round trip, one command per hash."""
        by_key = _grouped(asked, self._key)
        with _wrapped():
            async with self._redis.pipeline(transaction=False) as pipe:
                for key, some in by_key.items():
                    pipe.hmget(key, [field for ask in some for field in _fields(ask.attempt_id)])
                answers = await pipe.execute()
        known = {
            ask.attempt_id: _remembered(values[3 * i : 3 * i + 3])
            for some, values in zip(by_key.values(), answers, strict=True)
            for i, ask in enumerate(some)
        }
        return [known[ask.attempt_id] for ask in asked]

    async def count_takes(self, asked: Sequence[Asked]) -> Sequence[int]:
        """Add one to each attempt's takes and return the sums."""
        with _wrapped():
            async with self._redis.pipeline(transaction=False) as pipe:
                for ask in asked:
                    pipe.hincrby(self._key(ask), f"t:{ask.attempt_id}", 1)
                for key in _grouped(asked, self._key):
                    pipe.expire(key, self._retention_s)
                answers = await pipe.execute()
        return [int(count) for count in answers[: len(asked)]]

    async def remember(self, notes: Sequence[Note]) -> None:
        """Write the notes: one HSET per hash."""
        with _wrapped():
            async with self._redis.pipeline(transaction=False) as pipe:
                for key, some in _grouped(notes, self._key).items():
                    pipe.hset(key, mapping=dict(_written(note) for note in some))
                    pipe.expire(key, self._retention_s)
                await pipe.execute()

    def _key(self, about: Asked | Note) -> str:
        return self._keys.worker_memory(self._uses, about.at_ms // _BUCKET_MS)


def _fields(attempt_id: str) -> tuple[str, str, str]:
    return f"r:{attempt_id}", f"l:{attempt_id}", f"t:{attempt_id}"


def _written(note: Note) -> tuple[str, bytes]:
    result, lease, _ = _fields(note.attempt_id)
    return (
        (lease, b"%d %b" % (note.leased_until_ms, note.holder.encode()))
        if note.result is None
        else (result, note.result)
    )


def _remembered(values: Sequence[bytes | None]) -> Remembered:
    result, lease, takes = values
    until, _, holder = (lease or b"0").partition(b" ")
    return Remembered(result, holder.decode(), int(until), int(takes or 0))


def _grouped(items: Iterable[T], key_of: Callable[[T], str]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(key_of(item), []).append(item)
    return groups


@contextmanager
def _wrapped() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise MemoryUnavailable(f"Redis: {error!r}") from error
