"""What is known about runs in Redis, and the runs this gateway accepted itself."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from anabranch.services.gateway.asking import Asking, Command
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.reading import Submission
from anabranch.shared.contracts.bounded import BoundedMemory
from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.contracts.limits import MAX_READING_BYTES, MAX_UNCOUNTED_READING_BYTES, MIB
from anabranch.shared.contracts.times import rfc3339
from anabranch.shared.runtime.redis import RedisKeys
from anabranch.shared.runtime.room import Room
from anabranch.shared.runtime.snapshots import (
    ACCEPTED,
    BODY_HASH,
    ENDED_STATUSES,
    RUNNING,
    STATUS,
    TENANT,
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

_COPIES: Final = 3  # of a document while it is put together: what Redis sent, its fields, the document
_ROOM_WITHIN_S: Final = 10.0  # for this long a large document waits for its turn

_RUN_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class ReadsUnavailable(AnabranchError):
    """Redis does not answer."""


class ReadsBusy(ReadsUnavailable):
    """Too many large documents are being read."""


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as it is known now: its status, and its whole document as JSON. `is_large`: others wait for its room."""

    status: str
    body: bytes
    is_large: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ENDED_STATUSES


class AcceptedRuns:
    """The runs that this gateway accepted lately: readable before anybody has taken them up."""

    def __init__(self) -> None:
        self._runs: BoundedMemory[str, tuple[Submission, str, int]] = BoundedMemory(
            max_entries=_REMEMBERED, max_weight=_REMEMBERED_BYTES, max_age_s=_REMEMBERED_S, now_s=time.monotonic
        )

    def remember(self, run_id: str, submission: Submission, tenant: str, at_ms: int) -> None:
        """Kafka acknowledged this run at this broker time."""
        self._runs.put(run_id, (submission, tenant, at_ms), weight=submission.weight)

    def knows(self, run_id: str, tenant: str) -> bool:
        """Return whether this gateway accepted the tenant's run lately."""
        known = self._runs.get(run_id)
        return known is not None and known[1] == tenant

    def view(self, run_id: str, tenant: str) -> RunView | None:
        """Return the tenant's run as accepted, or None when it is not known here."""
        known = self._runs.get(run_id)
        if known is None or known[1] != tenant:
            return None
        submission, _, at_ms = known
        definition = submission.definition
        body = accepted_document(
            run_id,
            pipeline=definition.name,
            tenant=tenant,
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
        self._asking = Asking(redis)
        self._keys = keys
        self._accepted = accepted
        self._metrics = metrics
        self._room = Room(MAX_READING_BYTES)

    @asynccontextmanager
    async def view(self, run_id: str, tenant: str, *, size: int | None = None) -> AsyncIterator[RunView | None]:
        """Yield the tenant's run, or None when it has none such; a large one keeps its room until the context ends.

        Whoever knows already that it is the tenant's, and its `size` in Redis, saves the looks for them. Raises
        `ReadsUnavailable`, and of that `ReadsBusy` when there is no room in time.
        """
        if size is None and await self._is_of(run_id, tenant):
            size = await self._size(run_id)
        if size is None:
            yield self._accepted.view(run_id, tenant)
        elif size <= MAX_UNCOUNTED_READING_BYTES:
            yield await self._projected(run_id, tenant)
        else:
            taken = await self._take_room(_COPIES * size)
            try:
                view = await self._projected(run_id, tenant, is_large=True)
                kept = min(taken, len(view.body) if view else 0)
                self._room.give_back(taken - kept)
                taken = kept
                yield view
            finally:
                self._room.give_back(taken)

    async def is_open(self, run_id: str, tenant: str) -> bool:
        """Return whether the tenant's run is known and has not ended. Raises `ReadsUnavailable`."""
        status = await self.status_of(run_id, tenant)
        return status is not None and status not in ENDED_STATUSES

    async def status_of(self, run_id: str, tenant: str) -> str | None:
        """Return the status of the tenant's run, None when it has none such: one look, whosever it is.

        Raises `ReadsUnavailable`.
        """
        if not _RUN_ID.fullmatch(run_id):
            return None
        key = self._keys.run(run_id)
        owner, status = await self._look(lambda pipeline: pipeline.hmget(key, [TENANT.decode(), STATUS.decode()]))
        if owner is None or owner.decode() != tenant:
            return ACCEPTED if self._accepted.knows(run_id, tenant) else None
        return RUNNING if status is None else status.decode()

    def has_accepted(self, run_id: str, tenant: str) -> bool:
        """Return whether this gateway accepted the tenant's run lately: known without Redis."""
        return self._accepted.knows(run_id, tenant)

    async def _is_of(self, run_id: str, tenant: str) -> bool:
        """Return whether Redis has this run of the tenant's: one look, as long for a foreign run as for none."""
        if not _RUN_ID.fullmatch(run_id):
            return False
        key = self._keys.run(run_id)
        owner: bytes | None = await self._look(lambda pipeline: pipeline.hget(key, TENANT.decode()))
        return owner is not None and owner.decode() == tenant

    async def _size(self, run_id: str) -> int | None:
        """Return the bytes of all fields as Redis holds them; None when it does not know the run."""
        key = self._keys.run(run_id)
        found: int | None = await self._look(lambda pipeline: pipeline.memory_usage(key, samples=0))
        return found

    async def _take_room(self, size: int) -> int:
        try:
            async with asyncio.timeout(_ROOM_WITHIN_S):
                return await self._room.take(size)
        except TimeoutError as error:
            raise ReadsBusy("too many large documents are being read") from error

    async def _projected(self, run_id: str, tenant: str, *, is_large: bool = False) -> RunView | None:
        key = self._keys.run(run_id)
        if is_large:  # on a connection of its own: others do not wait for it
            fields = await self._ask(cast(Awaitable[Mapping[bytes, bytes]], self._redis.hgetall(key)), "read")
        else:
            fields = await self._look(lambda pipeline: pipeline.hgetall(key))
        if not fields:  # it went meanwhile
            return self._accepted.view(run_id, tenant)
        return RunView(status_of(fields), document(run_id, fields), is_large)

    async def status(self, run_id: str) -> str | None:
        """Return the projected status alone, or None. Raises `ReadsUnavailable`."""
        key = self._keys.run(run_id)
        found = await self._look(lambda pipeline: pipeline.hget(key, STATUS.decode()))
        return found.decode() if found else None

    async def has_ended(self, run_id: str) -> bool:
        """Return whether the run is known to have ended; not so while Redis does not answer."""
        try:
            return await self.status(run_id) in ENDED_STATUSES
        except ReadsUnavailable:
            return False

    async def remember_keys(self, hashes: Sequence[tuple[str, str]], keep_s: int) -> list["KnownKey"]:
        """Note the bodies of idempotency keys, each by its run, and return what was known of each: one round trip.

        Raises `ReadsUnavailable`.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for run_id, body_hash in hashes:
            pipeline.set(self._keys.idempotency(run_id), body_hash, nx=True, get=True, ex=keep_s)
            pipeline.hmget(self._keys.run(run_id), [BODY_HASH.decode(), STATUS.decode()])
        answers = await self._ask(pipeline.execute(), "idempotency")
        return [_known_key(noted, *of_run) for noted, of_run in zip(answers[::2], answers[1::2], strict=True)]

    async def _look(self, command: Command) -> Any:
        return await self._ask(self._asking.ask(command), "read")

    async def _ask(self, answer: Awaitable[T], use: str) -> T:
        try:
            return await answer
        except (TimeoutError, RedisError, OSError) as error:
            self._metrics.redis_failed(use)
            raise ReadsUnavailable(str(error)) from error


def _known_key(noted: bytes | None, projected: bytes | None, status: bytes | None) -> "KnownKey":
    known = noted or projected
    return KnownKey(known.decode() if known else None, status.decode() if status else None)


@dataclass(frozen=True, slots=True)
class KnownKey:
    """What Redis knows of an idempotency key: the hash of its first body, and its run's status once it is projected."""

    body_hash: str | None = None
    status: str | None = None
