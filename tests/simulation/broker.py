"""Kafka in memory: partitions with broker time, a transactional changelog, an idempotent producer per process.

A request is on its way, takes effect at the broker, and its answer is on its way back; whoever sent it may freeze or
die at each of these points. What has left a process arrives, unless the weather loses it with its process.
"""

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import Any, NamedTuple, TypeVar

from anabranch.services.orchestrator.core.changelog import Change
from anabranch.shared.contracts.codec import Headers
from anabranch.shared.contracts.limits import MAX_RECORD_BYTES
from anabranch.shared.contracts.topics import TopicNames

from .virtual import Host, VirtualLoop
from .weather import Fate, Weather

T = TypeVar("T")
EPOCH_MS = 1_800_000_000_000  # what every clock says at loop time 0


class Record(NamedTuple):
    """A record where it stands in its partition."""

    offset: int
    at_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Log:
    """One partition of a topic."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._watchers: list[asyncio.Future[None]] = []

    @property
    def end(self) -> int:
        """The offset that the next record will have."""
        return len(self.records)

    def append(self, at_ms: int, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """Append a record and wake whoever waits for one."""
        self.records.append(Record(len(self.records), at_ms, key, value, headers))
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            wake(watcher)

    def watch(self, watcher: "asyncio.Future[None]") -> None:
        """Wake this future at the next append."""
        self._watchers.append(watcher)


def wake(future: "asyncio.Future[None]") -> None:
    """Finish a future that may be finished."""
    if not future.done():
        future.set_result(None)


class ProducerIsFenced(Exception):
    """The producer's epoch is not the newest of its transactional id."""


class Txn(Enum):
    """Where a transaction stands."""

    OPEN = auto()
    COMMITTED = auto()
    ABORTED = auto()


@dataclass(slots=True, eq=False)
class Transaction:
    """Records of the changelog that become visible together."""

    changes: Sequence[Change]
    status: Txn = Txn.OPEN


@dataclass(slots=True)
class Changelog:
    """One partition of the changelog, and the epoch of the transactional id that writes to it."""

    epoch: int = 0
    transactions: list[Transaction] = field(default_factory=list)
    base: dict[bytes, bytes] = field(default_factory=dict)  # of compacted transactions
    fences: bool = True

    def start_producer(self) -> int:
        """Return the newest epoch: the predecessor's open transaction is aborted, and it can write no more."""
        self.epoch += 1
        if self.fences:
            for transaction in self.transactions:
                if transaction.status is Txn.OPEN:
                    transaction.status = Txn.ABORTED
        return self.epoch

    def write(self, epoch: int, changes: Sequence[Change]) -> Transaction:
        """Begin a transaction with these records. Raises `ProducerIsFenced`."""
        self._check(epoch)
        transaction = Transaction(changes)
        self.transactions.append(transaction)
        return transaction

    def end(self, epoch: int, transaction: Transaction, *, commits: bool) -> None:
        """Commit or abort. Raises `ProducerIsFenced`."""
        self._check(epoch)
        transaction.status = Txn.COMMITTED if commits else Txn.ABORTED

    def spoil(self, change: Change) -> None:
        """Have a record be another one, as no producer wrote it."""
        self.transactions.append(Transaction([change], Txn.COMMITTED))

    def live(self, *, committed_only: bool = True) -> dict[bytes, bytes]:
        """Return the last value of every key."""
        self._compact()
        live = dict(self.base)
        for transaction in self.transactions:
            if transaction.status is Txn.COMMITTED or not committed_only:
                _apply(live, transaction.changes)
        return live

    def _compact(self) -> None:
        while self.transactions and (self.transactions[0].status is Txn.COMMITTED or len(self.transactions) > 50):
            transaction = self.transactions.pop(0)
            if transaction.status is Txn.COMMITTED:
                _apply(self.base, transaction.changes)

    def _check(self, epoch: int) -> None:
        if self.fences and epoch != self.epoch:
            raise ProducerIsFenced


def _apply(live: dict[bytes, bytes], changes: Sequence[Change]) -> None:
    for key, value in changes:
        if value is None:
            live.pop(key, None)
        else:
            live[key] = value


class Broker:
    """Topics, the changelog, and broker time."""

    def __init__(self, loop: VirtualLoop, weather: Weather, topics: TopicNames) -> None:
        self.loop = loop
        self.weather = weather
        self.topics = topics
        self.skew_ms = 0
        self.changelogs = [Changelog() for _ in range(topics.runs)]
        self.on_append: Callable[[str, int, Record], None] = lambda *_: None
        self.unwritable: dict[str, float] = {}  # topics that refuse every record, until when
        self.leaderless: dict[tuple[str, int], float] = {}  # partitions that take no appends, until when
        self._logs: dict[tuple[str, int], Log] = {}

    def log(self, topic: str, partition: int) -> Log:
        """Return a partition of a topic."""
        return self._logs.setdefault((topic, partition), Log())

    def time_ms(self) -> int:
        """Return broker time, which may step back."""
        return EPOCH_MS + round(1000 * self.loop.now) + self.skew_ms

    def append(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """Append a record now; LogAppendTime."""
        log = self.log(topic, partition)
        log.append(self.time_ms(), key, value, headers)
        self.on_append(topic, partition, log.records[-1])

    async def call(self, host: Host | None, effect: Callable[..., T], *args: Any) -> T:
        """Have a request take effect at the broker, and return its answer."""
        return await request(self.loop, host, self.weather, self.weather.latency_s, partial(effect, *args))


async def request(
    loop: VirtualLoop, host: Host | None, weather: Weather, latency_s: Callable[[], float], effect: Callable[[], T]
) -> T:
    """Have a request take effect somewhere else, and return its answer."""
    answer: asyncio.Future[T] = loop.create_future()

    def take_effect() -> None:
        if host is not None and not host.is_alive and weather.loses_request():
            return
        try:
            result = effect()
        except Exception as error:  # noqa: BLE001  # it is the answer
            loop.later(latency_s(), _answer_error, answer, error)
        else:
            loop.later(latency_s(), _answer, answer, result)

    loop.later(latency_s(), take_effect)
    return await answer


def _answer(answer: "asyncio.Future[T]", result: T) -> None:
    if not answer.done():
        answer.set_result(result)


def _answer_error(answer: "asyncio.Future[Any]", error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)


class AppendRefused(Exception):
    """A batch was not accepted, or nobody knows whether it was."""


class _Appended(NamedTuple):
    number: int
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(slots=True, eq=False)
class _Lane:
    topic: str
    partition: int
    waiting: list[_Appended] = field(default_factory=list)
    is_busy: bool = False


class Producer:
    """The one idempotent producer of a process: order is kept within a partition, one batch of each is on its way.

    Acknowledgements of different partitions overtake one another. After one batch is lost nothing more is taken.
    """

    def __init__(self, broker: Broker, host: Host | None, on_failure: Callable[[Exception], None]) -> None:
        self._broker = broker
        self._loop = broker.loop
        self._host = host
        self._on_failure = on_failure
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._numbers: list[int] = []  # appended and not acknowledged, ascending
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._appended = 0
        self.unacknowledged_bytes = 0
        self.failure: AppendRefused | None = None

    @property
    def unacknowledged(self) -> int:
        """How many records are appended and not yet acknowledged."""
        return len(self._numbers)

    def append(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """Append without waiting. Raises `AppendRefused` once a batch was lost."""
        if self.failure is not None:
            raise AppendRefused(str(self.failure))
        if len(value or b"") > MAX_RECORD_BYTES:
            self._fail(f"a record of {len(value or b'')} bytes for {topic}")
            raise AppendRefused(str(self.failure))
        lane = self._lanes.get((topic, partition))
        if lane is None:
            lane = self._lanes[topic, partition] = _Lane(topic, partition)
        self._appended += 1
        self._numbers.append(self._appended)
        self.unacknowledged_bytes += len(value or b"")
        lane.waiting.append(_Appended(self._appended, key, value, headers))
        if not lane.is_busy:
            lane.is_busy = True
            self._loop.call_later(self._broker.weather.latency_s() / 4, self._send, lane)

    def acknowledged(self) -> "asyncio.Future[None]":
        """Return a future that is done when everything appended so far is acknowledged."""
        done: asyncio.Future[None] = self._loop.create_future()
        if self.failure is not None:
            done.set_exception(AppendRefused(str(self.failure)))
        elif not self._numbers:
            done.set_result(None)
        else:
            self._waiters.append((self._appended, done))
        return done

    def _send(self, lane: _Lane) -> None:
        if self.failure is not None:
            return
        batch, lane.waiting = lane.waiting, []
        self._request(lane, batch)

    def _request(self, lane: _Lane, batch: list[_Appended]) -> None:
        until_s = self._broker.leaderless.get((lane.topic, lane.partition), 0.0)
        if until_s > self._loop.now:  # the client tries again
            self._loop.call_at(until_s, self._request, lane, batch)
        else:
            self._loop.later(self._broker.weather.latency_s(), self._arrive, lane, batch)

    def _arrive(self, lane: _Lane, batch: list[_Appended]) -> None:
        weather = self._broker.weather
        if self._host is not None and not self._host.is_alive and weather.loses_request():
            return
        fate = weather.batch_fate()
        if fate is not Fate.REFUSED:
            self._write(lane, batch)
        answer = self._acknowledge if fate is Fate.WELL else self._lose
        context = self._loop.world if self._host is None else self._host.context
        self._loop.call_at(self._loop.now + weather.latency_s(), answer, lane, batch, context=context)

    def _write(self, lane: _Lane, batch: list[_Appended]) -> None:
        broker = self._broker
        for record in batch:
            where = (lane.topic, lane.partition, record.key, record.value, record.headers)
            broker.append(*where)
            again_s = broker.weather.repeat_after_s() if _may_repeat(record.headers) else None
            if again_s is not None:
                self._loop.later(again_s, broker.append, *where)

    def _acknowledge(self, lane: _Lane, batch: list[_Appended]) -> None:
        for record in batch:
            del self._numbers[bisect_left(self._numbers, record.number)]
            self.unacknowledged_bytes -= len(record.value or b"")
        oldest = self._numbers[0] if self._numbers else self._appended + 1
        while self._waiters and self._waiters[0][0] < oldest:
            wake(self._waiters.popleft()[1])
        if lane.waiting:
            self._send(lane)
        else:
            lane.is_busy = False

    def _lose(self, lane: _Lane, batch: list[_Appended]) -> None:
        self._fail(f"{len(batch)} records for {lane.topic}-{lane.partition} are lost")

    def _fail(self, why: str) -> None:
        self.failure = AppendRefused(why)
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(self.failure)
                waiter.exception()  # it counts as seen: `on_failure` is told, not everybody awaits their future
        self._on_failure(self.failure)


class Lanes(Producer):
    """Appends commands: a batch that is not accepted is refused, and nothing else suffers (`shared/runtime/lanes.py`).

    A refusal may be wrong: the batch is in its topic, and only the answer was lost.
    """

    def __init__(self, broker: Broker, host: Host | None) -> None:
        super().__init__(broker, host, _nothing)
        self._refused: dict[int, Callable[[str], None]] = {}
        self.refusals = 0

    def append_or_refuse(
        self, topic: str, partition: int, key: bytes, value: bytes, headers: Headers, refused: Callable[[str], None]
    ) -> None:
        """Append without waiting; `refused` may be called at once, or later."""
        if self._broker.unwritable.get(topic, 0.0) > self._loop.now and self._broker.weather.random.random() < 0.5:
            self._refuse(refused)
            return
        self._refused[self._appended + 1] = refused
        self.append(topic, partition, key, value, headers)

    def _arrive(self, lane: _Lane, batch: list[_Appended]) -> None:
        if self._broker.unwritable.get(lane.topic, 0.0) > self._loop.now:
            context = self._loop.world if self._host is None else self._host.context
            at_s = self._loop.now + self._broker.weather.latency_s()
            self._loop.call_at(at_s, self._lose, lane, batch, context=context)
        else:
            super()._arrive(lane, batch)

    def _acknowledge(self, lane: _Lane, batch: list[_Appended]) -> None:
        for record in batch:
            self._refused.pop(record.number, None)
        super()._acknowledge(lane, batch)

    def _lose(self, lane: _Lane, batch: list[_Appended]) -> None:
        for record in batch:
            self._refuse(self._refused.pop(record.number))
        super()._acknowledge(lane, batch)

    def _refuse(self, refused: Callable[[str], None]) -> None:
        self.refusals += 1
        self._broker.weather.count("refused commands")
        refused("it is not there")


def _nothing(_: Exception) -> None:
    """No failure of a lane is one of its process."""


def _may_repeat(headers: Headers) -> bool:
    """Whether a second copy is within the guarantees: a start without a key promises nothing for repeats."""
    return dict(headers).get("ce_type") != b"SubmitRun"
