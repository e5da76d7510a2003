"""What is known about runs: in Redis, else in the record, else what this gateway accepted itself.

Redis is a cache that may be emptied, away, slow or behind at any moment, and no answer may become wrong by it:

1. A run that Redis shows as ended has ended.
2. What Redis shows of a live run is the answer unless the record knows better: a Redis that was started anew from an
   old snapshot would show it for ever. That is looked up once a second at most.
3. What Redis does not know whole is read from the record, and a run that has ended is put back into Redis.
4. `accepted` is said only when both were asked, both answered, and neither knows the run.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final

from anabranch import __version__
from anabranch.services.gateway.cache import CacheUnavailable, KnownKey, RunCache
from anabranch.services.gateway.flights import Flights
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.reading import Submission
from anabranch.services.gateway.together import Together
from anabranch.shared.contracts.bounded import BoundedMemory
from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.contracts.limits import MAX_READING_BYTES, MAX_UNCOUNTED_READING_BYTES, MIB
from anabranch.shared.contracts.times import rfc3339
from anabranch.shared.record.errors import RecordUnavailable
from anabranch.shared.record.reading import Attempt, RecordedKey, RecordReader
from anabranch.shared.runtime.room import Room
from anabranch.shared.runtime.snapshots import (
    ACCEPTED,
    ENDED_STATUSES,
    Fields,
    Standing,
    accepted_fields,
    document,
    standing_of,
    status_of,
)

# Longer than history is ever behind in good health, shorter than a snapshot lives: an ended run that Redis has
# forgotten must not look accepted again.
_REMEMBERED_S: Final = 3600.0
_REMEMBERED: Final = 20_000
_REMEMBERED_BYTES: Final = 64 * MIB

_COPIES: Final = 3  # of a document while it is put together: what was sent, its fields, the document
_ROOM_WITHIN_S: Final = 10.0  # for this long a large document waits for its turn

_COMPARED_EVERY_S: Final = 1.0  # what Redis shows of a live run with what the record knows
_COMPARED_WITHIN_S: Final = 0.5  # a database that is slow holds up no read that Redis can answer
_COMPARED: Final = 20_000

_RUN_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


_KEYS_TOGETHER: Final = 256  # of one statement


class Source(Enum):
    """Where a run was found."""

    REDIS = "redis"
    RECORD = "sql"
    ACCEPTED = "accepted"
    NONE = "none"


class ReadsUnavailable(AnabranchError):
    """What would have to be asked does not answer; the text names it."""


class ReadsBusy(ReadsUnavailable):
    """Too many large documents are being read."""


class EndNotReadable(ReadsUnavailable):
    """The run has ended, Redis has lost it, and the record has not its end yet."""


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as it is known now: its status, and its whole document as JSON.

    `etag` names this state of it; `body` is empty when whoever asked has it already. `is_large`: others wait for its
    room.
    """

    status: str
    body: bytes
    etag: str
    source: Source
    is_large: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ENDED_STATUSES


def etag_of(standing: Standing) -> str:
    """Return what no other state of the run has; another version of the code may show the same state differently."""
    return f"{__version__}/{standing.created_at}/{standing.seq}"


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
        fields = accepted_fields(
            pipeline=definition.name,
            tenant=tenant,
            inputs=submission.inputs,
            labels=submission.labels,
            steps=definition.steps,
            created_at=rfc3339(at_ms),
        )
        return _view(run_id, fields, Source.ACCEPTED)


@dataclass(frozen=True, slots=True)
class _Found:
    source: Source
    standing: Standing


class RunReads:
    """Reads runs wherever they are known."""

    def __init__(
        self, cache: RunCache, record: RecordReader | None, accepted: AcceptedRuns, metrics: GatewayMetrics
    ) -> None:
        self._cache = cache
        self._record = record
        self._accepted = accepted
        self._metrics = metrics
        self._room = Room(MAX_READING_BYTES)
        self._reading: Flights[tuple[str, str], Fields | None] = Flights("read a run from the record")
        self._recorded_keys: Together[str, tuple[RecordedKey | None]] = Together(
            "ask for keys", self._keys_of, _KEYS_TOGETHER
        )
        self._compared: BoundedMemory[str, bool] = BoundedMemory(
            max_entries=_COMPARED, max_age_s=_COMPARED_EVERY_S, now_s=time.monotonic
        )

    @asynccontextmanager
    async def view(
        self, run_id: str, tenant: str, *, size: int | None = None, known: Collection[str] = ()
    ) -> AsyncIterator[RunView | None]:
        """Yield the tenant's run, or None when it has none such; a large one keeps its room until the context ends.

        Whoever was told that the tenant's run has ended says its `size` in Redis, which saves looks; 0 when that is
        not known. `known` are the states that who asks has already. Raises `ReadsUnavailable`, and of that
        `ReadsBusy` when there is no room in time, `EndNotReadable` when the end he was told of is nowhere yet.
        """
        has_ended, source = size is not None, Source.REDIS
        if not size:
            found = await self._found(run_id, tenant, has_ended=has_ended)
            if found is None:
                yield self._accepted_view(run_id, tenant)
                return
            if (etag := etag_of(found.standing)) in known:
                self._metrics.run_read(found.source.value)
                yield RunView(found.standing.status, b"", etag, found.source)
                return
            size, source = await self._size(run_id, tenant, found), found.source
        if size <= MAX_UNCOUNTED_READING_BYTES:
            yield await self._whole(run_id, tenant, source, has_ended=has_ended, is_large=False)
            return
        taken = await self._take_room(_COPIES * size)
        try:
            view = await self._whole(run_id, tenant, source, has_ended=has_ended, is_large=True)
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
        """Return the status of the tenant's run, None when it has none such. Raises `ReadsUnavailable`."""
        found = await self._found(run_id, tenant)
        if found is not None:
            return found.standing.status
        return ACCEPTED if self._accepted.knows(run_id, tenant) else None

    def has_accepted(self, run_id: str, tenant: str) -> bool:
        """Return whether this gateway accepted the tenant's run lately: known without asking anybody."""
        return self._accepted.knows(run_id, tenant)

    async def has_ended(self, run_id: str) -> bool:
        """Return whether the run is known to have ended, whosever it is; not so while nobody answers."""
        try:
            if await self._cache.status(run_id) in ENDED_STATUSES:
                return True
        except CacheUnavailable:
            pass
        return await self.recorded_status(run_id) in ENDED_STATUSES

    async def recorded_status(self, run_id: str) -> str | None:
        """Return the status that the record has, whosever the run is; None while it does not answer."""
        if self._record is None:
            return None
        try:
            return await self._record.status(run_id)
        except RecordUnavailable:
            return None

    async def recorded_key(self, run_id: str) -> RecordedKey | None:
        """Return what the record has of the run of an idempotency key. Raises `ReadsUnavailable`."""
        if self._record is None:
            return None
        try:
            (found,) = await self._recorded_keys.ask(run_id)
        except RecordUnavailable as error:
            raise _unavailable(record=error) from error
        return found

    async def _keys_of(self, run_ids: Sequence[str]) -> list[tuple[RecordedKey | None]]:
        assert self._record is not None
        return [(each,) for each in await self._record.keys(run_ids)]

    async def attempts(self, run_id: str, step: str, tenant: str) -> list[Attempt] | None:
        """Return the attempts of a step of the tenant's run as recorded, None where it has none such.

        There is a record. Raises `ReadsUnavailable`.
        """
        assert self._record is not None, "whoever asks has looked"
        if not _RUN_ID.fullmatch(run_id):
            return None
        try:
            return await self._record.attempts(run_id, step, tenant)
        except RecordUnavailable as error:
            raise _unavailable(record=error) from error

    async def remember_keys(self, hashes: Sequence[tuple[str, str]], keep_s: int) -> list[KnownKey]:
        """Note the bodies of idempotency keys, and return what was known of each. Raises `ReadsUnavailable`."""
        try:
            return await self._cache.remember_keys(hashes, keep_s)
        except CacheUnavailable as error:
            raise _unavailable(redis=error) from error

    async def _found(self, run_id: str, tenant: str, *, has_ended: bool = False) -> _Found | None:
        """Return where the tenant's run stands, None when it is known nowhere; the module says in which order."""
        if not _RUN_ID.fullmatch(run_id):
            return None
        cached, no_redis = await self._cached_standing(run_id, tenant)
        if cached is not None and (cached.has_ended or not has_ended):
            newer = await self._newer(run_id, tenant, cached)
            return _Found(Source.REDIS, cached) if newer is None else _Found(Source.RECORD, newer)
        if self._record is None:
            return None if cached is None else _Found(Source.REDIS, cached)
        recorded = await self._recorded_standing(self._record, run_id, tenant, no_redis)
        if recorded is not None and (recorded.has_ended or not has_ended):
            return _Found(Source.RECORD, recorded)
        self._refuse_to_guess(run_id, tenant, no_redis, has_ended=has_ended)
        return None

    async def _cached_standing(self, run_id: str, tenant: str) -> tuple[Standing | None, CacheUnavailable | None]:
        try:
            return await self._cache.standing(run_id, tenant), None
        except CacheUnavailable as error:
            if self._record is None:
                raise _unavailable(redis=error) from error
            return None, error

    async def _recorded_standing(
        self, record: RecordReader, run_id: str, tenant: str, no_redis: CacheUnavailable | None
    ) -> Standing | None:
        try:
            return await record.standing(run_id, tenant)
        except RecordUnavailable as error:
            raise _unavailable(redis=no_redis, record=error) from error

    async def _newer(self, run_id: str, tenant: str, cached: Standing) -> Standing | None:
        """Return where the run stands if the record knows better than Redis, as far as it answers at once."""
        if cached.has_ended or self._record is None or self._compared.get(run_id):
            return None
        try:
            async with asyncio.timeout(_COMPARED_WITHIN_S):
                recorded = await self._record.standing(run_id, tenant)
        except (RecordUnavailable, TimeoutError):
            recorded = None
        if recorded is not None and _order(recorded) > _order(cached):
            return recorded
        self._compared.put(run_id, True)
        return None

    def _refuse_to_guess(self, run_id: str, tenant: str, no_redis: CacheUnavailable | None, *, has_ended: bool) -> None:
        """Raise `ReadsUnavailable` where what was accepted here may have gone on in what does not answer."""
        if has_ended:
            raise EndNotReadable("the end of the run is not in the record yet")
        if no_redis is not None and self._accepted.knows(run_id, tenant):
            raise _unavailable(redis=no_redis) from no_redis

    async def _size(self, run_id: str, tenant: str, found: _Found) -> int:
        """Return about how many bytes the run's fields take."""
        if found.source is Source.RECORD:
            return found.standing.size
        try:
            size = await self._cache.size(run_id)
        except CacheUnavailable as error:
            if self._record is None:
                raise _unavailable(redis=error) from error
            size = None
        if size is None and self._record is not None:  # it went meanwhile
            recorded = await self._recorded_standing(self._record, run_id, tenant, None)
            size = None if recorded is None else recorded.size
        return size or 1

    async def _take_room(self, size: int) -> int:
        try:
            async with asyncio.timeout(_ROOM_WITHIN_S):
                return await self._room.take(size)
        except TimeoutError as error:
            raise ReadsBusy("too many large runs are being read") from error

    async def _whole(
        self, run_id: str, tenant: str, source: Source, *, has_ended: bool, is_large: bool
    ) -> RunView | None:
        """Return the run from where it was found, or from the record if Redis has lost it meanwhile."""
        fields, no_redis = None, None
        if source is Source.REDIS:
            fields, no_redis = await self._cached_fields(run_id, tenant, is_large=is_large)
            if fields is not None and has_ended and self._record and status_of(fields) not in ENDED_STATUSES:
                fields = None  # it was started anew from an old snapshot
        if fields is None and self._record is not None:
            source = Source.RECORD
            fields = await self._recorded_fields(run_id, tenant, no_redis)
            if fields is None or (has_ended and status_of(fields) not in ENDED_STATUSES):
                self._refuse_to_guess(run_id, tenant, no_redis, has_ended=has_ended)
        if fields is None:
            return self._accepted_view(run_id, tenant)
        self._metrics.run_read(source.value)
        return _view(run_id, fields, source, is_large=is_large)

    async def _cached_fields(
        self, run_id: str, tenant: str, *, is_large: bool
    ) -> tuple[Fields | None, CacheUnavailable | None]:
        try:
            return await self._cache.fields(run_id, tenant, is_large=is_large), None
        except CacheUnavailable as error:
            if self._record is None:
                raise _unavailable(redis=error) from error
            return None, error

    async def _recorded_fields(self, run_id: str, tenant: str, no_redis: CacheUnavailable | None) -> Fields | None:
        try:
            return await self._reading.join((run_id, tenant), lambda: self._read_record(run_id, tenant))
        except RecordUnavailable as error:
            raise _unavailable(redis=no_redis, record=error) from error

    async def _read_record(self, run_id: str, tenant: str) -> Fields | None:
        """Return the run as recorded; Redis has it again if it has ended, and of a live one only history knows all."""
        assert self._record is not None
        fields = await self._record.fields(run_id, tenant)
        if fields is not None and status_of(fields) in ENDED_STATUSES:
            with suppress(CacheUnavailable):
                await self._cache.put_back(run_id, fields)
        return fields

    def _accepted_view(self, run_id: str, tenant: str) -> RunView | None:
        view = self._accepted.view(run_id, tenant)
        self._metrics.run_read((Source.NONE if view is None else Source.ACCEPTED).value)
        return view


def _order(standing: Standing) -> tuple[str, int]:
    """Return what grows from each state of a run to the next."""
    return standing.created_at, standing.seq


def _view(run_id: str, fields: Fields, source: Source, *, is_large: bool = False) -> RunView:
    return RunView(status_of(fields), document(run_id, fields), etag_of(standing_of(fields)), source, is_large)


def _unavailable(*, redis: CacheUnavailable | None = None, record: RecordUnavailable | None = None) -> ReadsUnavailable:
    if redis is not None and record is not None:
        return ReadsUnavailable("neither Redis nor the record of runs answers")
    return ReadsUnavailable("Redis does not answer" if record is None else "the record of runs does not answer")
