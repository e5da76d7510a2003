"""Reads partitions of one topic from where it is told to, at a fraction of what `AIOKafkaConsumer` costs.

A consumer names every partition in every request and is answered for every partition, also for the empty ones: with
twelve of them that was a third of what the orchestrator did for one pipeline at a time (ADR 0005). This reader keeps an
incremental fetch session with each broker (KIP-227): a request names the partitions whose position has changed, an
answer those that have something. Connections, metadata and the record format are aiokafka's.

The next request is made when what was read has been answered, not before: it costs a tenth of a millisecond, and
somebody waits for the answer.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    CorruptRecordException,
    KafkaError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
    for_code,
)
from aiokafka.protocol.api import Request
from aiokafka.protocol.fetch import FetchRequest_v11
from aiokafka.record import MemoryRecords
from aiokafka.structs import TopicPartition
from structlog.typing import FilteringBoundLogger

from anabranch.shared.contracts.limits import MAX_FETCH_BYTES, MAX_RECORD_BYTES
from anabranch.shared.runtime.clients import new_client
from anabranch.shared.runtime.errors import KafkaUnreachable
from anabranch.shared.runtime.log import get_logger
from anabranch.shared.runtime.settings import Settings

# An idle poll ends after this. It is also how long a partition that is sought or resumed may wait: a broker answers the
# requests of a connection one after the other. Each poll without records makes the next one twice as long, as long as
# no partition waits to be resumed: an idle process costs little, and what arrives ends a poll at once.
_MAX_WAIT_MS: Final = 500
_MAX_IDLE_WAIT_MS: Final = 2_000
_BACKOFF_S: Final = 0.1

# Turns of the loop that a record takes from here into a produce request: to its partition's task, out of it into the
# outbox, to the sender, to the request. Turns in which nothing is to be done cost microseconds.
_TURNS_TO_ANSWER: Final = 8

_NO_SESSION: Final = 0
_FULL: Final = 0  # the epoch of a request that names every partition and asks for a session
_MAX_EPOCH: Final = 2**31 - 1
_READ_UNCOMMITTED: Final = 0
_CONSUMER: Final = -1  # as the replica that asks
_UNKNOWN: Final = -1


class Record(NamedTuple):
    """A record as it lies in its partition."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


Deliver = Callable[[int, Sequence[Record]], None]


def at_once(_records: int) -> float:
    """Return no rest: the next request follows as soon as what was read has been answered."""
    return 0.0


class OffsetGone(KafkaError):  # type: ignore[misc]  # aiokafka is not typed
    """The partition no longer holds the record at the offset, or never did."""

    def __init__(self, topic: str, partition: int, offset: int) -> None:
        super().__init__(f"partition {partition} of {topic} has no offset {offset}")
        self.partition = partition
        self.offset = offset


class TopicReader:
    """Hands the records of the partitions that were sought to `deliver`, in order, once, while `run` runs.

    Records of open and of aborted transactions are among them. `rest_s` says how many seconds a broker is not asked
    after it has delivered so many records: what comes meanwhile gathers there and is read at once.
    """

    def __init__(
        self, settings: Settings, topic: str, deliver: Deliver, *, rest_s: Callable[[int], float] = at_once
    ) -> None:
        self._settings = settings
        self._topic = topic
        self._deliver = deliver
        self._rest_s = rest_s
        self._log: FilteringBoundLogger = get_logger().bind(topic=topic)
        self._positions: dict[int, int] = {}  # of the partitions that are read: the offset to read next
        self._paused: dict[int, int] = {}  # of those that are not now: likewise
        self._leaders: dict[int, int] = {}  # by partition: the broker to ask
        self._failing: set[int] = set()  # brokers whose last poll failed
        self._changed = asyncio.Event()  # positions or leaders
        self._is_misled = asyncio.Event()  # a leader is another by now, or cannot be asked
        self._client: AIOKafkaClient = new_client(settings)

    async def start(self) -> None:
        """Connect; `KafkaUnreachable` when no broker answers."""
        try:
            await self._client.bootstrap()
            await self._client.set_topics([self._topic])
        except KafkaError as error:
            await self._client.close()
            raise KafkaUnreachable(f"no broker of {self._settings.kafka_bootstrap_servers} answers") from error

    async def stop(self) -> None:
        """Close the connections."""
        await self._client.close()

    def seek(self, partition: int, offset: int) -> None:
        """Read the partition from `offset` on."""
        self._paused.pop(partition, None)
        self._positions[partition] = offset
        self._say_changed()

    def pause(self, partition: int) -> None:
        """Read the partition no more for now."""
        offset = self._positions.pop(partition, None)
        if offset is not None:
            self._paused[partition] = offset

    def resume(self, partition: int) -> None:
        """Go on reading a paused partition."""
        offset = self._paused.get(partition)
        if offset is not None:
            self.seek(partition, offset)

    def leave(self, partition: int) -> None:
        """Read the partition no more, until it is sought again."""
        self._positions.pop(partition, None)
        self._paused.pop(partition, None)

    async def run(self) -> None:
        """Read until cancelled. Raises `OffsetGone`, or a `KafkaError` that asking again will not heal."""
        readers: dict[int, asyncio.Task[None]] = {}
        try:
            while True:
                self._is_misled.clear()
                all_are_led = self._find_leaders()
                for node in set(self._leaders.values()) - readers.keys():
                    readers[node] = asyncio.create_task(self._read_from(node), name=f"read {self._topic} from {node}")
                await self._until_misled(readers.values(), None if all_are_led else _BACKOFF_S)
                await self._client.force_metadata_update()
        finally:
            for reader in readers.values():
                reader.cancel()
            await asyncio.gather(*readers.values(), return_exceptions=True)

    async def _until_misled(self, readers: "Iterable[asyncio.Task[None]]", timeout_s: float | None) -> None:
        misled = asyncio.create_task(self._is_misled.wait(), name="misled")
        try:
            done, _ = await asyncio.wait([misled, *readers], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            misled.cancel()
        for each in done:
            each.result()

    def _find_leaders(self) -> bool:
        """Learn who leads which partition; return whether all have a leader."""
        cluster = self._client.cluster
        partitions = cluster.partitions_for_topic(self._topic) or ()
        leaders = {number: cluster.leader_for_partition(TopicPartition(self._topic, number)) for number in partitions}
        self._leaders = {number: leader for number, leader in leaders.items() if leader is not None and leader >= 0}
        self._say_changed()
        return bool(leaders) and len(self._leaders) == len(leaders)

    def _say_changed(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # --- one broker ---------------------------------------------------------------------------------------------------

    async def _read_from(self, node: int) -> None:
        session = FetchSession(self._topic)
        wait_ms = _MAX_WAIT_MS
        while True:
            changed = self._changed
            wanted = {number: at for number, at in self._positions.items() if self._leaders.get(number) == node}
            if not wanted:
                await changed.wait()
            elif delivered := await self._poll(node, session.request(wanted, wait_ms), session):
                wait_ms = _MAX_WAIT_MS
                await self._rest(delivered)
            else:
                wait_ms = _MAX_WAIT_MS if self._paused else min(2 * wait_ms, _MAX_IDLE_WAIT_MS)
                if self._is_misled.is_set():
                    await asyncio.sleep(_BACKOFF_S)

    async def _rest(self, delivered: int) -> None:
        rest_s = self._rest_s(delivered)
        if rest_s:
            await asyncio.sleep(rest_s)
            return
        for _ in range(_TURNS_TO_ANSWER):
            await asyncio.sleep(0)

    async def _poll(self, node: int, request: "Fetch", session: "FetchSession") -> int:
        """Ask once; return how many records were delivered."""
        try:
            response = await self._client.send(node, request)
            session.accept(response)
        except SessionLost as lost:  # as after a broker's restart; the next request begins a new one
            self._log.info("the broker does not know the session", node=node, error=str(lost))
            return 0
        except KafkaError as error:
            if node not in self._failing:  # it is asked ten times a second
                self._failing.add(node)
                self._log.info("a broker cannot be polled", node=node, error=repr(error))
            session.forget()
            self._is_misled.set()
            return 0
        if node in self._failing:
            self._failing.discard(node)
            self._log.info("the broker is polled again", node=node)
        return self._take(response, session)

    def _take(self, response: Any, session: "FetchSession") -> int:
        delivered = 0
        for _, partitions in response.topics:
            for partition, error_code, _, _, _, _, _, data in partitions:
                offset = session.told[partition]
                if self._positions.get(partition) != offset:
                    continue  # paused or sought meanwhile
                if error_code:
                    self._fails(partition, offset, error_code)
                    continue
                records, self._positions[partition] = _records_from(offset, data)
                if records:
                    self._deliver(partition, records)
                    delivered += len(records)
        return delivered

    def _fails(self, partition: int, offset: int, error_code: int) -> None:
        error = for_code(error_code)
        if error is OffsetOutOfRangeError:
            raise OffsetGone(self._topic, partition, offset)
        if error is TopicAuthorizationFailedError:
            raise error(self._topic)
        self._log.info("a partition cannot be read here", partition=partition, error=error.__name__, code=error_code)
        self._is_misled.set()


class SessionLost(KafkaError):  # type: ignore[misc]  # aiokafka is not typed
    """The broker has forgotten a fetch session, or is at another place in it."""


_SESSION_LOST: Final = frozenset({70, 71})  # FETCH_SESSION_ID_NOT_FOUND, INVALID_FETCH_SESSION_EPOCH


class FetchSession:
    """What a broker was told to send us, so that a request names only what is new (KIP-227).

    `told` has the offset last asked for, by partition.
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self.told: dict[int, int] = {}
        self.forget()

    def forget(self) -> None:
        """Begin a new one with the next request, which then names everything."""
        self._id = _NO_SESSION
        self._epoch = _FULL

    def request(self, wanted: Mapping[int, int], wait_ms: int = _MAX_WAIT_MS) -> "Fetch":
        """Return the request after which the broker knows these partitions, and no others, at these offsets.

        It is answered as soon as one of them has a record, and after `wait_ms` if none has.
        """
        told = {} if self._id == _NO_SESSION else self.told
        new = [(partition, offset) for partition, offset in wanted.items() if told.get(partition) != offset]
        gone = [partition for partition in told if partition not in wanted]
        self.told = dict(wanted)
        return Fetch(self._topic, self._id, self._epoch, new, gone, wait_ms=wait_ms)

    def accept(self, response: Any) -> None:
        """Take note of an answer. A broker that has no room for sessions gives none: every request is then a first.

        Raises `SessionLost`, or what else the broker says is wrong; the session is then forgotten.
        """
        if response.error_code:
            self.forget()
            error = SessionLost if response.error_code in _SESSION_LOST else for_code(response.error_code)
            raise error(f"the broker refuses the request: {response.error_code}")
        self._id = response.session_id
        if self._id == _NO_SESSION:
            self._epoch = _FULL
        else:
            self._epoch = 1 if self._epoch == _MAX_EPOCH else self._epoch + 1


class Fetch(Request[FetchRequest_v11]):  # type: ignore[misc]  # aiokafka is not typed
    """A fetch request within a session, in the newest version that aiokafka can read the answer of (Kafka 2.3)."""

    API_KEY = 1

    def __init__(
        self,
        topic: str,
        session: int,
        epoch: int,
        new: Sequence[tuple[int, int]],
        gone: Sequence[int],
        *,
        wait_ms: int = _MAX_WAIT_MS,
    ) -> None:
        self.session = session
        self.epoch = epoch
        self.new = new
        self.gone = gone
        self.wait_ms = wait_ms
        self._topic = topic

    def build(self, request_struct_class: type[FetchRequest_v11]) -> FetchRequest_v11:
        """Return it as it is encoded."""
        new = [(partition, _UNKNOWN, offset, _UNKNOWN, MAX_RECORD_BYTES) for partition, offset in self.new]
        return request_struct_class(
            _CONSUMER,
            self.wait_ms,
            1,  # byte is enough to answer
            MAX_FETCH_BYTES,
            _READ_UNCOMMITTED,
            self.session,
            self.epoch,
            [(self._topic, new)] if new else [],
            [(self._topic, self.gone)] if self.gone else [],
            "",  # of no rack
        )


def _records_from(offset: int, data: bytes) -> tuple[list[Record], int]:
    """Return the records from `offset` on, and the offset after them. Raises `CorruptRecordException`."""
    records: list[Record] = []
    batches = MemoryRecords(data)
    while batches.has_next():
        batch = batches.next_batch()
        if not batch.validate_crc():
            raise CorruptRecordException(f"a batch at offset {batch.base_offset} has a wrong checksum")
        if not batch.is_control_batch:
            records += [
                Record(record.offset, record.timestamp, record.key, record.value, tuple(record.headers))
                for record in batch
                if record.offset >= offset  # a batch is sent whole, also from its middle on
            ]
        offset = max(offset, batch.next_offset)
    return records, offset
