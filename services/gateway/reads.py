"""What is known about runs in Redis, and the runs this gateway accepted itself."""

import re
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.reading import Submission
from anabranch.shared.contracts.bounded import BoundedMemory
from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.contracts.limits import MIB
from anabranch.shared.contracts.times import rfc3339
from anabranch.shared.runtime.redis import RedisKeys
from anabranch.shared.runtime.snapshots import (
    ACCEPTED,
    BODY_HASH,
    ENDED_STATUSES,
    STATUS,
    accepted_document,
    document,
    status_of,
)

T = TypeVar("T")

# Longer than history is ever behind in good health, shorter than a snapshot lives: an ended run that Redis has
# forgotten must not look accepted again.
_REMEMBERED_S: Final = 3600.0
_REMEMBERED: Final = 20_000
_REMEMBERED_BYTES: Final = 64 * MIB

_RUN_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class ReadsUnavailable(AnabranchError):
    """Redis does not answer."""


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as it is known now: its status, and its whole document as JSON."""

    status: str
    body: bytes

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ENDED_STATUSES


class AcceptedRuns:
    """The runs that this gateway accepted lately: readable before anybody has taken them up."""

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant
        self._runs: BoundedMemory[str, tuple[Submission, int]] = BoundedMemory(
            max_entries=_REMEMBERED, max_weight=_REMEMBERED_BYTES, max_age_s=_REMEMBERED_S, now_s=time.monotonic
        )

    def remember(self, run_id: str, submission: Submission, at_ms: int) -> None:
        """Kafka acknowledged this run at this broker time."""
        self._runs.put(run_id, (submission, at_ms), weight=submission.weight)

    def view(self, run_id: str) -> RunView | None:
        """Return the run as accepted, or None when it is not known here."""
        known = self._runs.get(run_id)
        if known is None:
            return None
        submission, at_ms = known
        definition = submission.definition
        body = accepted_document(
            run_id,
            pipeline=definition.name,
            tenant=self._tenant,
            inputs=submission.inputs,
            labels=submission.labels,
            steps=definition.steps,
            created_at=rfc3339(at_ms),
        )
        return RunView(ACCEPTED, body)


class RunReads:
    """Runs as history projected them, else as this gateway accepted them."""

    def __init__(self, redis: Redis, keys: RedisKeys, accepted: AcceptedRuns, metrics: GatewayMetrics) -> None:
        self._redis = redis
        self._keys = keys
        self._accepted = accepted
        self._metrics = metrics

    async def view(self, run_id: str) -> RunView | None:
        """Return the run, or None when nobody knows it. Raises `ReadsUnavailable`."""
        if not _RUN_ID.fullmatch(run_id):
            return None
        fields = await self._ask(
            cast(Awaitable[Mapping[bytes, bytes]], self._redis.hgetall(self._keys.run(run_id))), "read"
        )
        if fields:
            return RunView(status_of(fields), document(run_id, fields))
        return self._accepted.view(run_id)

    async def status(self, run_id: str) -> str | None:
        """Return the projected status alone, or None. Raises `ReadsUnavailable`."""
        found = await self._ask(
            cast(Awaitable[bytes | None], self._redis.hget(self._keys.run(run_id), STATUS.decode())), "read"
        )
        return found.decode() if found else None

    async def has_ended(self, run_id: str) -> bool:
        """Return whether the run is known to have ended; not so while Redis does not answer."""
        try:
            return await self.status(run_id) in ENDED_STATUSES
        except ReadsUnavailable:
            return False

    async def remember_key(self, run_id: str, body_hash: str, keep_s: int) -> "KnownKey":
        """Note the body of an idempotency key and return what was known of it. Raises `ReadsUnavailable`."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.set(self._keys.idempotency(run_id), body_hash, nx=True, get=True, ex=keep_s)
        pipeline.hmget(self._keys.run(run_id), [BODY_HASH.decode(), STATUS.decode()])
        noted, (projected, status) = await self._ask(pipeline.execute(), "idempotency")
        known = noted or projected
        return KnownKey(known.decode() if known else None, status.decode() if status else None)

    async def _ask(self, answer: Awaitable[T], use: str) -> T:
        try:
            return await answer
        except (TimeoutError, RedisError, OSError) as error:
            self._metrics.redis_failed(use)
            raise ReadsUnavailable(str(error)) from error


@dataclass(frozen=True, slots=True)
class KnownKey:
    """What Redis knows of an idempotency key: the hash of its first body, and its run's status once it is projected."""

    body_hash: str | None = None
    status: str | None = None
