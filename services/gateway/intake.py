"""Submissions into the inbox: a run is accepted when Kafka has acknowledged it, and not before."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Protocol, TypeVar

import orjson
from aiokafka.structs import RecordMetadata

from anabranch.services.gateway.cache import KnownKey
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.problems import Kind, ProblemError, unavailable
from anabranch.services.gateway.reading import Definition, Submission
from anabranch.services.gateway.reads import AcceptedRuns, ReadsUnavailable, RunReads
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.shared.contracts.bounded import BoundedMemory
from anabranch.shared.contracts.codec import Encoded, Headers, encode
from anabranch.shared.contracts.ids import cancel_id, trace_id_of_run
from anabranch.shared.contracts.limits import MAX_MESSAGE_BYTES
from anabranch.shared.contracts.messages import CancelRun, SubmitRun
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.contracts.traces import TraceContext
from anabranch.shared.runtime.errors import AppendFailed, RecordTooLarge
from anabranch.shared.runtime.snapshots import ACCEPTED
from anabranch.shared.runtime.time_limit import TimeLimit

_KEYS_REMEMBERED: Final = 50_000  # some 20 MB
_DEFINITIONS_HASHED: Final = 2_000  # some 1 MB
_TURN: Final = 50  # submissions of a batch that are hashed, encoded or looked up at once: some milliseconds
_KNOWN_WITHIN_S: Final = 0.5  # the write path needs Kafka only: neither Redis nor the record may hold it up
_PAUSE_S: Final = 1.0  # after a failure, so that not every submission waits for what is away


# By the hash of its canonical text; nothing here depends on which gateway of the process asks.
_hashed_definitions: Final[BoundedMemory[str, blake2b]] = BoundedMemory(max_entries=_DEFINITIONS_HASHED)


T = TypeVar("T")


class Log(Protocol):
    """The one way into Kafka."""

    def append_and_wait(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers
    ) -> "asyncio.Future[RecordMetadata]":
        """Append a record; the future is done when it is acknowledged."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """A submission and what came with it; `run_id` is derived from `key` when there is one."""

    run_id: str
    submission: Submission
    tenant: str
    key: str | None = None
    trace: TraceContext | None = None  # that the run goes on in


@dataclass(frozen=True, slots=True)
class Accepted:
    """The run's status as far as it is known; `repeated`: its key was accepted before."""

    status: str = ACCEPTED
    repeated: bool = False


@dataclass(slots=True)
class _Key:
    body_hash: str
    accepted: bool = False


class Intake:
    """Appends submissions, each key's first body only."""

    def __init__(
        self,
        log: Log,
        reads: RunReads,
        accepted: AcceptedRuns,
        settings: GatewaySettings,
        metrics: GatewayMetrics,
        *,
        now_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._reads = reads
        self._accepted = accepted
        self._settings = settings
        self._metrics = metrics
        self._now_s = now_s
        self._monotonic_s = monotonic_s
        self._topic = settings.topics.inbox
        self._in_time = TimeLimit(settings.append_timeout_s)
        self._stamped = settings.stamped()
        self._source = f"gateway/{settings.instance}"
        self._keys: BoundedMemory[str, _Key] = BoundedMemory(
            max_entries=_KEYS_REMEMBERED, max_age_s=settings.idempotency_keep_s, now_s=monotonic_s
        )
        self._no_redis_until_s = 0.0
        self._no_record_until_s = 0.0

    async def accept(self, request: Request) -> Accepted:
        """Return when the run is accepted. Raises `ProblemError`, also when the outcome is unknown."""
        if request.key is None:
            await self._append(request, body_hash="", keep_s=0)
            return Accepted()
        body_hash, key = self._noted(request)
        [known] = await self._known([(request.run_id, key.body_hash)])
        return await self._accept_keyed(request, body_hash, key, known)

    async def accept_all(
        self, requests: Sequence[Request], refuse_if_high: Callable[[], None]
    ) -> list[Accepted | ProblemError]:
        """Append submissions together and return what became of each. `refuse_if_high` is asked before each."""
        notes = {}
        async for request in _in_turns([each for each in requests if each.key is not None]):
            notes[id(request)] = self._noted(request)
        hashes = [(each.run_id, notes[id(each)][1].body_hash) for each in requests if each.key is not None]
        known: dict[str, KnownKey] = {}
        for start in range(0, len(hashes), _TURN):
            part = hashes[start : start + _TURN]
            known |= zip((run_id for run_id, _ in part), await self._known(part), strict=True)
        works = []
        async with asyncio.TaskGroup() as tasks:
            async for request in _in_turns(requests):
                note = notes.get(id(request))
                outcome = self._outcome(request, note, known.get(request.run_id, KnownKey()), refuse_if_high)
                works.append(tasks.create_task(outcome))
        return [work.result() for work in works]

    async def _outcome(
        self, request: Request, note: tuple[str, _Key] | None, known: KnownKey, refuse_if_high: Callable[[], None]
    ) -> Accepted | ProblemError:
        try:
            refuse_if_high()
            if note is None:
                return await self.accept(request)
            return await self._accept_keyed(request, *note, known)
        except ProblemError as problem:
            return problem

    def _noted(self, request: Request) -> tuple[str, _Key]:
        """Return the hash of what came with a key, and what is known of the key here."""
        body_hash = content_hash(request.submission)
        key = self._keys.get(request.run_id)
        if key is None:
            key = _Key(body_hash)
            self._keys.put(request.run_id, key)  # before anything is awaited: two bodies at once are noticed here
        return body_hash, key

    async def _accept_keyed(self, request: Request, body_hash: str, key: _Key, known: KnownKey) -> Accepted:
        if known.body_hash is not None:
            key.body_hash = known.body_hash
        if key.body_hash != body_hash:
            raise ProblemError(
                Kind.KEY_REUSED,
                "This Idempotency-Key came with another body before; take a new key for a new submission.",
                members={"id": request.run_id},
            )
        if key.accepted or known.status is not None:
            self._metrics.run_repeated()
            return Accepted(known.status or ACCEPTED, repeated=True)
        await self._append(request, body_hash=body_hash, keep_s=self._settings.idempotency_keep_s)
        key.accepted = True
        return Accepted()

    async def _known(self, hashes: Sequence[tuple[str, str]]) -> list[KnownKey]:
        """Return what is known of the keys, each by its run, with the hash of the body that came now.

        The record is asked first: Redis may have lost what came first, and would note what comes now in its place. What
        does not answer knows nothing, since the core drops repeats anyway.
        """
        recorded = await asyncio.gather(*(self._recorded(run_id) for run_id, _ in hashes))
        noted = await self._noted_in_redis(
            [(run_id, known.body_hash or given) for (run_id, given), known in zip(hashes, recorded, strict=True)]
        )
        return [
            KnownKey(known.body_hash or each.body_hash, each.status or known.status)
            for known, each in zip(recorded, noted, strict=True)
        ]

    async def _recorded(self, run_id: str) -> KnownKey:
        """Return what the record has of a key that is still promised."""
        if self._monotonic_s() < self._no_record_until_s:
            return KnownKey()
        try:
            async with asyncio.timeout(_KNOWN_WITHIN_S):
                found = await self._reads.recorded_key(run_id)
        except (ReadsUnavailable, TimeoutError):
            self._no_record_until_s = self._monotonic_s() + _PAUSE_S
            return KnownKey()
        if found is None or not found.body_hash:
            return KnownKey()
        if (
            found.finished_at is not None
            and found.finished_at / 1000 + self._settings.idempotency_keep_s < self._now_s()
        ):
            return KnownKey()  # the next run with this key is another one
        return KnownKey(found.body_hash, found.status)

    async def _noted_in_redis(self, hashes: Sequence[tuple[str, str]]) -> list[KnownKey]:
        """Note the bodies of keys in Redis, and return what it knew of them."""
        if self._monotonic_s() < self._no_redis_until_s:
            return [KnownKey()] * len(hashes)
        try:
            async with asyncio.timeout(_KNOWN_WITHIN_S):
                return await self._reads.remember_keys(hashes, self._settings.idempotency_keep_s)
        except (ReadsUnavailable, TimeoutError):
            self._no_redis_until_s = self._monotonic_s() + _PAUSE_S
            return [KnownKey()] * len(hashes)

    async def _append(self, request: Request, *, body_hash: str, keep_s: int) -> None:
        run_id, submission = request.run_id, request.submission
        trace = request.trace or TraceContext(trace_id_of_run(run_id))
        message = SubmitRun(
            run_id=run_id,
            tenant=request.tenant,
            definition=submission.definition.canonical,
            inputs=submission.inputs,
            labels=submission.labels,
            body_hash=body_hash,
            keep_s=keep_s,
            trace_id=trace.trace_id,
            parent_span=trace.span_id or None,
            sampled=None if trace.is_sampled else False,
            settings=self._stamped,
        )
        now_ms = int(self._now_s() * 1000)
        record = encode(
            message, message_id=run_id, source=self._source, at_ms=now_ms, trace_id=trace.trace_id,
            is_sampled=trace.is_sampled,
        )  # fmt: skip
        if len(record.value) > MAX_MESSAGE_BYTES:
            raise _too_large(len(record.value))
        try:
            where = await self._appended(run_id, record)
        except RecordTooLarge as error:
            raise _too_large(len(record.value)) from error
        except (AppendFailed, TimeoutError) as error:
            self._metrics.append_unknown()
            raise _unknown(request) from error
        at_ms = where.timestamp if where.timestamp > 0 else now_ms
        self._accepted.remember(run_id, submission, request.tenant, at_ms)
        self._metrics.run_accepted()

    async def cancel(self, run_id: str, trace: TraceContext | None) -> None:
        """Return when Kafka has the wish to cancel a run. Raises `ProblemError`; asking again does no harm."""
        trace = trace or TraceContext(trace_id_of_run(run_id))
        record = encode(
            CancelRun(run_id=run_id),
            message_id=cancel_id(run_id),
            source=self._source,
            at_ms=int(self._now_s() * 1000),
            trace_id=trace.trace_id,
            is_sampled=trace.is_sampled,
        )
        try:
            await self._appended(run_id, record)
        except (AppendFailed, TimeoutError) as error:
            self._metrics.append_unknown()
            words = "Kafka did not acknowledge the cancellation in time, and may have it nevertheless; ask again."
            raise unavailable(words, retry_after_s=1) from error
        self._metrics.cancel_accepted()

    async def _appended(self, run_id: str, record: Encoded) -> RecordMetadata:
        """Append to the run's partition. Raises `RecordTooLarge`, `AppendFailed`, `TimeoutError`."""
        key = run_id.encode()
        partition = partition_of(key, self._settings.run_partitions)
        return await self._in_time.give(
            self._log.append_and_wait(self._topic, partition, key, record.value, record.headers)
        )


async def _in_turns(items: Sequence[T]) -> AsyncIterator[T]:
    """Yield the items, so many before others of the process have their turn."""
    for number, item in enumerate(items):
        if number and number % _TURN == 0:
            await asyncio.sleep(0)
        yield item


def content_hash(submission: Submission) -> str:
    """Return what two bodies with the same content share, in whatever spacing, order, encoding or language.

    Absent inputs count as their defaults, and the author's order of steps, which is kept in the run, does not count.
    """
    hashed = _definition_hashed(submission.definition).copy()
    for name, part in (("inputs", submission.inputs), ("labels", submission.labels)):
        hashed.update(b',"%b":%b' % (name.encode(), orjson.dumps(part, option=orjson.OPT_SORT_KEYS)))
    hashed.update(b"}")
    return hashed.hexdigest()


def _definition_hashed(definition: Definition) -> blake2b:
    """Return the state of the hash behind a definition, which is the costly part of a body and often comes again."""
    known = _hashed_definitions.get(definition.content_hash)
    if known is None:
        in_order = orjson.dumps(orjson.loads(definition.canonical), option=orjson.OPT_SORT_KEYS)
        known = blake2b(b'{"definition":' + in_order, digest_size=16)
        _hashed_definitions.put(definition.content_hash, known)
    return known


def _too_large(size: int) -> ProblemError:
    return ProblemError(
        Kind.TOO_LARGE, f"As a message the submission has {size} bytes; {MAX_MESSAGE_BYTES} are possible."
    )


def _unknown(request: Request) -> ProblemError:
    if request.key is None:
        advice = "without an Idempotency-Key a retry may start a second run: look at this one first"
    else:
        advice = "a retry with the same key is safe"
    return ProblemError(
        Kind.OUTCOME_UNKNOWN,
        f"Kafka did not acknowledge the run in time, and may have it nevertheless; {advice}.",
        retry_after_s=1,
        headers={"Location": f"/v1/runs/{request.run_id}"},
        members={"id": request.run_id},
    )
