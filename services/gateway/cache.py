"""Runs as Redis holds them: a cache that may be emptied, away, slow or behind at any moment."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from anabranch.services.gateway.asking import Asking, Command
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.contracts.limits import MIB
from anabranch.shared.runtime.redis import Redis, RedisError, RedisKeys
from anabranch.shared.runtime.snapshots import (
    BODY_HASH,
    CREATED_AT,
    RUNNING,
    SEQ,
    STATUS,
    TENANT,
    Fields,
    Standing,
    is_whole,
)

T = TypeVar("T")

_REST_S: Final = 1.0  # after a failure, where there is another place to read from: each try may take two seconds
_PUT_BACK_BYTES: Final = 4 * MIB  # as much as history writes by one script: meanwhile Redis does nothing else

# KEYS: the run's hash. ARGV: seconds to live, then fields and values. What is there is newer, or the same. A thousand
# fields at a time: Lua's stack holds 8,000 arguments.
_PUT_BACK: Final = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
for from = 2, #ARGV, 2000 do
  redis.call('HSET', KEYS[1], unpack(ARGV, from, math.min(from + 1999, #ARGV)))
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
"""


class CacheUnavailable(AnabranchError):
    """Redis does not answer."""


@dataclass(frozen=True, slots=True)
class KnownKey:
    """What Redis knows of an idempotency key: the hash of its first body, and its run's status once it is projected."""

    body_hash: str | None = None
    status: str | None = None


class RunCache:
    """The snapshots in Redis. Everything raises `CacheUnavailable` when Redis does not answer.

    `is_all`: there is nowhere else to look, so Redis is asked again however often it has just failed. Else nobody
    waits for it but who tries, once a second, whether it is back.
    """

    def __init__(
        self,
        redis: Redis,
        keys: RedisKeys,
        metrics: GatewayMetrics,
        *,
        ended_ttl_s: int,
        is_all: bool,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._asking = Asking(redis)
        self._keys = keys
        self._metrics = metrics
        self._ended_ttl_s = ended_ttl_s
        self._rest_s = 0.0 if is_all else _REST_S
        self._rests_until_s: float | None = (
            None  # since Redis failed; then one after the other tries whether it is back
        )
        self._monotonic_s = monotonic_s

    async def standing(self, run_id: str, tenant: str) -> Standing | None:
        """Return where the tenant's run stands, but for its size: one look, as long for a foreign run as for none.

        What later events say of a run whose start Redis has lost has no tenant, and is nobody's.
        """
        key, names = self._keys.run(run_id), [each.decode() for each in (TENANT, STATUS, SEQ, CREATED_AT)]
        owner, status, seq, created_at = await self._look(lambda pipeline: pipeline.hmget(key, names))
        if owner is None or seq is None or owner.decode() != tenant:
            return None
        return Standing(RUNNING if status is None else status.decode(), int(seq), (created_at or b"").decode())

    async def size(self, run_id: str) -> int | None:
        """Return the bytes of all fields as Redis holds them; None when it does not know the run."""
        key = self._keys.run(run_id)
        found: int | None = await self._look(lambda pipeline: pipeline.memory_usage(key, samples=0))
        return found

    async def fields(self, run_id: str, tenant: str, *, is_large: bool = False) -> Fields | None:
        """Return the tenant's run, None unless it is whole."""
        key = self._keys.run(run_id)
        if is_large:  # on a connection of its own: others do not wait for it
            fields = await self._ask(lambda: cast(Awaitable[Mapping[bytes, bytes]], self._redis.hgetall(key)), "read")
        else:
            fields = await self._look(lambda pipeline: pipeline.hgetall(key))
        return dict(fields) if is_whole(fields) and fields.get(TENANT) == tenant.encode() else None

    async def status(self, run_id: str) -> str | None:
        """Return the status alone, whosever the run is."""
        key = self._keys.run(run_id)
        found = await self._look(lambda pipeline: pipeline.hget(key, STATUS.decode()))
        return found.decode() if found else None

    async def reached(self) -> dict[int, int]:
        """Return how far the snapshots are: the next offset of each partition of the run events that is known."""
        key = self._keys.progress()
        found = await self._look(lambda pipeline: pipeline.hgetall(key))
        return {int(partition): int(offset) for partition, offset in found.items()}

    async def put_back(self, run_id: str, fields: Fields) -> None:
        """Keep a run that has ended, as history would have: others will read it, too. Nothing is overwritten."""
        if sum(map(len, fields.values())) > _PUT_BACK_BYTES:
            return
        script = self._redis.register_script(_PUT_BACK)
        arguments: list[bytes | int] = [self._ended_ttl_s, *(each for field in fields.items() for each in field)]
        await self._ask(lambda: script(keys=[self._keys.run(run_id)], args=arguments), "put_back")

    async def remember_keys(self, hashes: Sequence[tuple[str, str]], keep_s: int) -> list[KnownKey]:
        """Note the bodies of idempotency keys, each by its run, and return what was known of each: one round trip."""
        pipeline = self._redis.pipeline(transaction=False)
        for run_id, body_hash in hashes:
            pipeline.set(self._keys.idempotency(run_id), body_hash, nx=True, get=True, ex=keep_s)
            pipeline.hmget(self._keys.run(run_id), [BODY_HASH.decode(), STATUS.decode()])
        answers = await self._ask(pipeline.execute, "idempotency")
        return [_known_key(noted, *of_run) for noted, of_run in zip(answers[::2], answers[1::2], strict=True)]

    async def _look(self, command: Command) -> Any:
        return await self._ask(lambda: self._asking.ask(command), "read")

    async def _ask(self, answer: Callable[[], Awaitable[T]], use: str) -> T:
        is_trying = self._rests_until_s is not None
        if is_trying and self._rest_s:
            self._try_alone()
        try:
            answered = await answer()
        except (TimeoutError, RedisError, OSError) as error:
            self._metrics.redis_failed(use)
            self._rests_until_s = self._monotonic_s() + self._rest_s
            raise CacheUnavailable(str(error)) from error
        except asyncio.CancelledError:
            if is_trying:  # its client has left, and another tries
                self._rests_until_s = self._monotonic_s() + self._rest_s
            raise
        self._rests_until_s = None
        return answered

    def _try_alone(self) -> None:
        """Raise `CacheUnavailable` unless it is time to try again; all others rest until that is known."""
        if self._rests_until_s is not None and self._monotonic_s() < self._rests_until_s:
            raise CacheUnavailable("Redis did not answer just now")
        self._rests_until_s = float("inf")


def _known_key(noted: bytes | None, projected: bytes | None, status: bytes | None) -> KnownKey:
    known = noted or projected
    return KnownKey(known.decode() if known else None, status.decode() if status else None)
