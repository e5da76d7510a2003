"""Appends to topics that may not be there: a record that its topic does not take is refused, and harms no other.

The outbox (`outbox.py`) ends its process when a record is lost, since records behind it were decided on the assumption
that it exists. A command topic belongs to somebody else: it may be missing, forbidden, without a leader or enough
replicas, or made for smaller records, for as long as it pleases its owner. So commands go another way:

1. A record waits for what its topic's metadata say: how many partitions there are, who leads them.
2. The records of a partition go out in batches, one of each partition at a time, in one request to each broker.
3. What the broker answers settles them: acknowledged, refused, or tried again for as long as patience lasts.
4. A lane that has refused is closed for a while: what is appended to it is refused at once; then it is tried, once. So
   nothing waits for long, and whoever waits for acknowledgements waits for as long as patience at most.

The producer is not idempotent: its sequence numbers leave no gap for a batch that is given up. A batch whose answer was
lost is sent again and may be there twice, in order (ADR 0006). Connections and the record format are aiokafka's.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, NoReturn

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from anabranch.shared.contracts.codec import Headers
from anabranch.shared.contracts.limits import MAX_UNACKNOWLEDGED_BYTES, MIB
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.runtime.batch import BATCH_BYTES
from anabranch.shared.runtime.clients import new_client
from anabranch.shared.runtime.errors import KafkaUnreachable
from anabranch.shared.runtime.settings import Settings

# How long a record is tried. A topic that is said not to exist may be in the making; a partition without a leader or
# enough replicas, in the middle of an election or of a broker's restart (some 20 s); a broker that does not answer at
# all, in an outage, which concerns everything and not this topic.
_ABSENT_PATIENCE_S: Final = 2.0
_PATIENCE_S: Final = 25.0
_SILENCE_PATIENCE_S: Final = 60.0

# A closed lane is tried again after this, then after twice as long, up to the last.
_CLOSED_S: Final = 0.5
_CLOSED_AT_MOST_S: Final = 8.0

_AGAIN_S: Final = 0.1  # between two tries of a batch, and two questions for metadata
# After this all topics in use are looked at again: partitions may be added, and a service waits for longer than this
# before it makes its deleted topic again, so that nobody misses that what it held is gone.
_METADATA_S: Final = 2.0
_ANSWER_WITHIN_MS: Final = 10_000  # what the broker may take to have the replicas acknowledge
_REQUEST_BYTES: Final = 12 * MIB  # as in the outbox

# Of one lane that is failing, and of all lanes together: what comes on top for a failing one is refused at once. So
# those that fail never take up all that a process may have on its way.
_MAX_WAITING: Final = 2_000
_MAX_WAITING_BYTES: Final = MAX_UNACKNOWLEDGED_BYTES // 2

_TOPICS_KEPT: Final = 1_000  # names come from definitions: those that have nothing under way are forgotten

_ALL: Final = -1  # acknowledgements
_NO_PARTITION: Final = -1
_HOPELESS: Final = frozenset({TopicAuthorizationFailedError, InvalidTopicError})
_TOO_LARGE: Final = frozenset({MessageSizeTooLargeError, RecordListTooLargeError})


class Refusal(NamedTuple):
    """Why a record was not taken. `too_large`: nor will it ever be."""

    reason: str
    too_large: bool = False


Refused = Callable[[Refusal], None]


@dataclass(slots=True, eq=False)
class _Record:
    key: bytes
    value: bytes
    headers: Headers
    refused: Refused
    number: int
    is_settled: bool = False


@dataclass(slots=True, eq=False)
class _Lane:
    """One partition of a topic, or all that waits to learn which partitions its topic has."""

    topic: "_Topic"
    partition: int
    waiting: deque[_Record] = field(default_factory=deque)
    sent: tuple[_Record, ...] = ()  # and not answered
    failing_since: float | None = None
    why: str = ""
    again_at: float = 0.0
    closed_until: float = 0.0
    closed_times: int = 0
    one_by_one: bool = False  # a batch was too large for the topic


@dataclass(slots=True, eq=False)
class _Topic:
    name: str
    partitions: int = 0  # none: not known
    leaders: dict[int, int] = field(default_factory=dict)
    lanes: dict[int, _Lane] = field(default_factory=dict)
    was_there: bool = False
    is_closed: bool = False


class LaneWatcher:
    """Is told of topics that cannot be written. The default does not care."""

    def closed(self, topic: str, reason: str) -> None:
        """The topic does not take a record, for the first time since it last did."""

    def opened(self, topic: str) -> None:
        """It does again."""

    def refused(self, topic: str) -> None:
        """A record was refused."""

    def gone(self, topic: str) -> None:
        """A topic that was there is not any more: what it held is lost."""


class Lanes:
    """Appends records to topics of others; make it inside the running loop.

    `unacknowledged` records are appended, and neither acknowledged nor refused; `refusals` counts the refused.
    """

    def __init__(self, settings: Settings, watcher: LaneWatcher | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._watcher = watcher or LaneWatcher()
        self._client: AIOKafkaClient = new_client(settings)
        self._topics: dict[str, _Topic] = {}
        self._with_records: dict[_Lane, None] = {}  # lanes that have something to send, in order
        self._recount: asyncio.TimerHandle | None = None
        self._busy: set[int] = set()  # brokers that have a request of ours
        self._tasks: set[asyncio.Task[None]] = set()
        self._pump_at: asyncio.Handle | None = None
        self._is_pumped_next = False  # in the next turn of the loop
        self._asked_at = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._appended = 0
        self._unsettled: deque[_Record] = deque()  # as they were appended, settled ones between others
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._is_stopped = False
        self.unacknowledged = 0
        self.unacknowledged_bytes = 0
        self.refusals = 0
        self.failed: asyncio.Future[NoReturn] = self._loop.create_future()

    async def start(self) -> None:
        """Connect; `KafkaUnreachable` when no broker answers."""
        try:
            await self._client.bootstrap()
        except KafkaError as error:
            await self._client.close()
            raise KafkaUnreachable(f"no broker of {self._settings.kafka_bootstrap_servers} answers") from error
        self._recount = self._loop.call_later(_METADATA_S, self._count_again)

    async def stop(self) -> None:
        """Close the connections; what is not settled by now is neither acknowledged nor refused."""
        self._is_stopped = True
        for timer in (self._pump_at, self._recount):
            if timer is not None:
                timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()

    def append(self, topic: str, key: bytes, value: bytes, headers: Headers, refused: Refused) -> None:
        """Append a record to the partition of its key: never blocks. `refused` may be called at once, or later."""
        lane = _lane_of(self._topics.get(topic) or self._new_topic(topic), key)
        self._appended += 1
        record = _Record(key, value, headers, refused, self._appended)
        self._unsettled.append(record)
        self.unacknowledged += 1
        self.unacknowledged_bytes += len(value)
        if lane.why and self._takes_no_more(lane):
            self._refuse(lane, record, Refusal(lane.why))
            return
        self._wait(lane, record)
        if lane.topic.leaders.get(lane.partition) not in self._busy:  # else its answer looks for more
            self._pump_soon()

    def acknowledged(self) -> "asyncio.Future[None]":
        """Return a future that is done when everything appended so far is acknowledged or refused."""
        done: asyncio.Future[None] = self._loop.create_future()
        if self.unacknowledged:
            self._waiters.append((self._appended, done))
        else:
            done.set_result(None)
        return done

    def _takes_no_more(self, lane: _Lane) -> bool:
        is_full = len(lane.waiting) >= _MAX_WAITING or self.unacknowledged_bytes >= _MAX_WAITING_BYTES
        return is_full or self._loop.time() < lane.closed_until

    def _wait(self, lane: _Lane, record: _Record) -> None:
        lane.waiting.append(record)
        self._with_records[lane] = None

    def _new_topic(self, name: str) -> _Topic:
        if len(self._topics) >= _TOPICS_KEPT:
            self._topics = {name: topic for name, topic in self._topics.items() if _is_under_way(topic)}
        topic = self._topics[name] = _Topic(name)
        return topic

    # 1. Metadata.

    def _count_again(self) -> None:
        """Learn of partitions that were added, and of topics that are gone, without a record that needs it."""
        self._ask_for(list(self._topics.values()))
        self._recount = self._loop.call_later(_METADATA_S, self._count_again)

    def _ask_for(self, wanted: list[_Topic]) -> None:
        now = self._loop.time()
        if wanted and self._asking is None and now >= self._asked_at + _AGAIN_S:
            self._asked_at = now
            self._asking = self._spawn(self._ask(wanted), "ask for command topics")

    async def _ask(self, wanted: list[_Topic]) -> None:
        try:
            answer = await self._metadata([topic.name for topic in wanted])
        except KafkaError as error:
            self._misses(wanted, f"no broker answers: {error!r}", _SILENCE_PATIENCE_S)
        else:
            self._learn(wanted, answer)
        finally:
            self._asking = None
            self._pump_soon()

    async def _metadata(self, names: list[str]) -> Mapping[str, tuple[int, Any]]:
        node = self._client.get_random_node()
        try:
            response = await self._client.send(node, MetadataRequest(names, allow_auto_topic_creation=False))
        except KafkaError:
            self._client.force_metadata_update()
            raise
        if {broker[0] for broker in response.brokers} - {broker.nodeId for broker in self._client.cluster.brokers()}:
            await self._client.force_metadata_update()  # their addresses
        return {entry[1]: (entry[0], entry[-1]) for entry in response.topics}

    def _learn(self, wanted: Iterable[_Topic], answer: Mapping[str, tuple[int, Any]]) -> None:
        for topic in wanted:
            code, partitions = answer.get(topic.name, (UnknownTopicOrPartitionError.errno, ()))
            if not code and partitions:
                topic.leaders = {number: leader for _, number, leader, *_ in partitions if leader >= 0}
                topic.was_there = True
                if topic.partitions != len(partitions):
                    self._resize(topic, len(partitions))
                continue
            self._is_not_there(topic, for_code(code))

    def _is_not_there(self, topic: _Topic, error: type[KafkaError]) -> None:
        topic.leaders = {}
        absent = error is UnknownTopicOrPartitionError
        patience_s = 0.0 if error in _HOPELESS else _ABSENT_PATIENCE_S if absent else _PATIENCE_S
        self._misses([topic], _words(topic, error), patience_s)
        if absent:
            self._is_gone(topic)
        if absent and topic.partitions and not _is_under_way(topic):
            self._resize(topic, 0)

    def _is_gone(self, topic: _Topic) -> None:
        if topic.was_there:
            topic.was_there = False
            self._watcher.gone(topic.name)

    def _misses(self, topics: Iterable[_Topic], why: str, patience_s: float) -> None:
        for topic in topics:
            for lane in topic.lanes.values():
                if lane.waiting and lane.partition not in topic.leaders:
                    self._fails(lane, why, patience_s)

    def _resize(self, topic: _Topic, partitions: int) -> None:
        """The topic has another number of partitions by now: what waits is placed anew."""
        topic.partitions = partitions
        lanes, topic.lanes = topic.lanes, {}
        for lane in lanes.values():
            for record in lane.waiting:
                self._wait(_lane_of(topic, record.key), record)
            lane.waiting = deque()

    # 2. Out.

    def _pump_soon(self, after_s: float = 0.0) -> None:
        if self._is_stopped or self._is_pumped_next:
            return
        if self._pump_at is not None:
            if after_s:
                return
            self._pump_at.cancel()
        self._is_pumped_next = not after_s
        self._pump_at = self._loop.call_later(after_s, self._pump) if after_s else self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_at, self._is_pumped_next = None, False
        now = self._loop.time()
        requests: dict[int, list[_Lane]] = {}
        unled: dict[str, _Topic] = {}
        waits = False
        for lane in [*self._with_records]:
            leader = lane.topic.leaders.get(lane.partition)
            if not lane.waiting:
                del self._with_records[lane]
            elif leader is None:
                unled[lane.topic.name] = lane.topic
            elif lane.again_at > now:
                waits = True
            elif not lane.sent and leader not in self._busy:
                requests.setdefault(leader, []).append(lane)
        for node, lanes in requests.items():
            self._request(node, lanes)
        self._ask_for([*unled.values()])
        if waits or unled:
            self._pump_soon(_AGAIN_S)

    def _request(self, node: int, lanes: list[_Lane]) -> None:
        batches: dict[tuple[str, int], _Lane] = {}
        topics: dict[str, list[tuple[int, bytes]]] = {}
        left = _REQUEST_BYTES
        for lane in lanes:
            if left <= 0:
                break
            data = _batch(lane)
            left -= len(data)
            batches[lane.topic.name, lane.partition] = lane
            topics.setdefault(lane.topic.name, []).append((lane.partition, data))
        self._busy.add(node)
        request = ProduceRequest(None, _ALL, _ANSWER_WITHIN_MS, list(topics.items()))
        self._spawn(self._send(node, request, batches), f"commands to broker {node}")

    async def _send(self, node: int, request: ProduceRequest, batches: dict[tuple[str, int], _Lane]) -> None:
        try:
            response = await self._client.send(node, request)
        except KafkaError as error:
            self._client.force_metadata_update()
            for lane in batches.values():
                self._takes_back(lane, f"broker {node} does not answer: {error!r}", _SILENCE_PATIENCE_S)
        else:
            for name, partitions in response.topics:
                for partition, code, *_ in partitions:
                    self._answered(batches.pop((name, partition)), for_code(code))
        finally:
            self._busy.discard(node)
            self._pump_soon()

    # 3. Answers.

    def _answered(self, lane: _Lane, error: type[KafkaError]) -> None:
        if not error.errno:
            self._acknowledge(lane)
        elif error in _TOO_LARGE:
            self._is_too_large(lane, error)
        elif error in _HOPELESS or not error.retriable:
            self._takes_back(lane, _words(lane.topic, error), 0.0)
        else:
            absent = error is UnknownTopicOrPartitionError
            if absent:
                self._is_gone(lane.topic)
            lane.topic.leaders.pop(lane.partition, None)  # it may be another by now: ask
            self._takes_back(lane, _words(lane.topic, error), _ABSENT_PATIENCE_S if absent else _PATIENCE_S)

    def _acknowledge(self, lane: _Lane) -> None:
        settled, lane.sent = lane.sent, ()
        lane.failing_since, lane.closed_times, lane.closed_until, lane.why = None, 0, 0.0, ""
        topic = lane.topic
        if topic.is_closed and not any(other.closed_times for other in topic.lanes.values()):
            topic.is_closed = False
            self._watcher.opened(topic.name)
        self._settle(settled)

    def _is_too_large(self, lane: _Lane, error: type[KafkaError]) -> None:
        if len(lane.sent) > 1:  # the limit is a batch's: each record alone may fit
            lane.one_by_one = True
            self._return(lane)
            return
        (record,), lane.sent = lane.sent, ()
        words = f"the command takes {len(record.value)} bytes, more than its topic {lane.topic.name} allows"
        self._refuse(lane, record, Refusal(f"{words} (max.message.bytes)", too_large=True))

    def _takes_back(self, lane: _Lane, why: str, patience_s: float) -> None:
        self._return(lane)
        self._fails(lane, why, patience_s)

    def _return(self, lane: _Lane) -> None:
        sent, lane.sent = lane.sent, ()
        if lane.topic.lanes.get(lane.partition) is lane:
            lane.waiting.extendleft(reversed(sent))
            self._with_records[lane] = None
        else:  # the topic was counted anew meanwhile
            for record in sent:
                self._wait(_lane_of(lane.topic, record.key), record)

    def _fails(self, lane: _Lane, why: str, patience_s: float) -> None:
        now = self._loop.time()
        lane.why = why
        lane.again_at = now + _AGAIN_S
        if lane.failing_since is None:
            lane.failing_since = now
        if lane.closed_times or now - lane.failing_since >= patience_s:
            self._close(lane)

    # 4. Closed.

    def _close(self, lane: _Lane) -> None:
        pause_s = min(_CLOSED_S * 2**lane.closed_times, _CLOSED_AT_MOST_S)
        lane.closed_times = min(lane.closed_times + 1, 10)
        lane.closed_until = self._loop.time() + pause_s
        lane.failing_since = None
        if not lane.topic.is_closed:
            lane.topic.is_closed = True
            self._watcher.closed(lane.topic.name, lane.why)
        refused, lane.waiting = lane.waiting, deque()
        for record in refused:
            self._refuse(lane, record, Refusal(lane.why))

    def _refuse(self, lane: _Lane, record: _Record, why: Refusal) -> None:
        self.refusals += 1
        self._watcher.refused(lane.topic.name)
        record.refused(why)
        self._settle((record,))

    def _settle(self, records: tuple[_Record, ...]) -> None:
        for record in records:
            record.is_settled = True
            self.unacknowledged_bytes -= len(record.value)
        self.unacknowledged -= len(records)
        while self._unsettled and self._unsettled[0].is_settled:
            self._unsettled.popleft()
        oldest = self._unsettled[0].number if self._unsettled else self._appended + 1
        while self._waiters and self._waiters[0][0] < oldest:
            waiter = self._waiters.popleft()[1]
            if not waiter.done():
                waiter.set_result(None)

    def _spawn(self, work: Any, name: str) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self.failed.done():
            self.failed.set_exception(error)  # a bug: what it had in hand is never settled


def _lane_of(topic: _Topic, key: bytes) -> _Lane:
    partition = partition_of(key, topic.partitions) if topic.partitions else _NO_PARTITION
    lane = topic.lanes.get(partition)
    if lane is None:
        lane = topic.lanes[partition] = _Lane(topic, partition)
    return lane


def _is_under_way(topic: _Topic) -> bool:
    return any(lane.waiting or lane.sent for lane in topic.lanes.values())


def _batch(lane: _Lane) -> bytes:
    """Take the next records of a lane, and return them as a batch."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=False, producer_id=-1, producer_epoch=-1, base_sequence=-1,
        batch_size=BATCH_BYTES,
    )  # fmt: skip
    sent: list[_Record] = []
    while lane.waiting and not (sent and lane.one_by_one):
        record = lane.waiting[0]
        if builder.append(len(sent), None, record.key, record.value, list(record.headers)) is None:
            break
        sent.append(lane.waiting.popleft())
    lane.sent = tuple(sent)
    return bytes(builder.build())


def _words(topic: _Topic, error: type[KafkaError]) -> str:
    return f"{topic.name}: {_REASONS.get(error, error.__name__)}"


_REASONS: Final[Mapping[type[KafkaError], str]] = {
    UnknownTopicOrPartitionError: "the topic does not exist",
    TopicAuthorizationFailedError: "the orchestrator may not write to it",
    InvalidTopicError: "Kafka does not allow such a name",
}
