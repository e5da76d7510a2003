"""The contract of `PartitionLog`. The simulation stands on the in-memory log: it is worth what this suite is worth."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

import pytest

from anabranch.services.orchestrator.core.changelog import Change
from anabranch.services.orchestrator.core.effects import Append, Channel
from anabranch.services.orchestrator.ports import AppendLost, Fenced, InboxGone, InboxRecord, PartitionLog
from anabranch.shared.contracts.codec import Headers
from anabranch.shared.contracts.limits import MAX_RECORD_BYTES
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.contracts.topics import TopicNames

TypedRecord = tuple[bytes | None, bytes | None, Headers]


class LogBench(Protocol):
    """One process, the partitions it owns, and what others do to the topics."""

    topics: TopicNames

    def log(self, partition: int, assignment: int) -> PartitionLog:
        """Return the log of a partition under an assignment, in this process."""

    async def arrive(self, partition: int, value: bytes) -> None:
        """Have a record with key `key` and header `h` arrive in the inbox."""

    async def leave_open(self, partition: int, changes: Sequence[Change]) -> None:
        """Have a predecessor write to the changelog and vanish before it commits."""

    async def read(self, topic: str, partition: int) -> Sequence[TypedRecord]:
        """Return everything in a partition of a topic."""


async def opened(bench: LogBench, partition: int = 0, assignment: int = 1, offset: int | None = None) -> PartitionLog:
    """Return a log that has taken its partition over."""
    log = bench.log(partition, assignment)
    await log.start_producer()
    await log.read_changelog()
    await log.seek(offset)
    return log


async def taken(log: PartitionLog, count: int) -> list[InboxRecord]:
    """Take until so many records have come."""
    records: list[InboxRecord] = []
    async with asyncio.timeout(60):
        while len(records) < count:
            records += await log.take(1.0)
    return records


def an_output(channel: Channel, value: bytes, key: str = "run") -> Append:
    return Append(channel, key, value, (("h", b"1"),), "work" if channel is Channel.COMMANDS else "")


class LogContract:
    """What a log does, whatever it is made of. A subclass gives the fixture `bench`."""

    # --- the changelog ----------------------------------------------------------------------------------------------

    async def test_a_partition_without_checkpoint_is_empty(self, bench: LogBench) -> None:
        """Nothing in the changelog, and the inbox from its first record."""
        await bench.arrive(0, b"first")
        log = bench.log(0, 1)
        await log.start_producer()
        assert await log.read_changelog() == {}
        await log.seek(None)
        assert [(r.offset, r.value) for r in await taken(log, 1)] == [(0, b"first")]
        await log.close()

    async def test_what_was_checkpointed_is_what_the_next_owner_reads(self, bench: LogBench) -> None:
        """The last value of every key; a deleted key is gone."""
        log = await opened(bench)
        await log.checkpoint([(b"a", b"1"), (b"b", b"1"), (b"c", b"1")])
        await log.checkpoint([(b"a", b"2"), (b"b", None)])
        await log.close()
        assert await self._restored(bench, assignment=2) == {b"a": b"2", b"c": b"1"}

    async def test_a_partition_has_a_changelog_of_its_own(self, bench: LogBench) -> None:
        """What one partition checkpoints, another does not read."""
        log = await opened(bench, partition=1)
        await log.checkpoint([(b"a", b"1")])
        await log.close()
        assert await self._restored(bench, partition=0) == {}
        assert await self._restored(bench, partition=1, assignment=2) == {b"a": b"1"}

    async def test_what_a_predecessor_did_not_commit_is_never_read(self, bench: LogBench) -> None:
        """Not when it is open, and starting the producer has aborted it for good."""
        log = await opened(bench)
        await log.checkpoint([(b"a", b"committed")])
        await log.close()
        await bench.leave_open(0, [(b"a", b"not committed"), (b"b", b"neither")])
        assert await self._restored(bench, assignment=2) == {b"a": b"committed"}

    async def test_a_predecessor_is_fenced_and_its_checkpoint_leaves_nothing(self, bench: LogBench) -> None:
        """From the moment the successor's producer has started."""
        zombie = await opened(bench)
        await zombie.checkpoint([(b"a", b"1")])
        successor = await opened(bench, assignment=2)
        with pytest.raises(Fenced):
            await zombie.checkpoint([(b"a", b"of the zombie")])
        await successor.checkpoint([(b"b", b"2")])
        await successor.start_producer()
        assert await successor.read_changelog() == {b"a": b"1", b"b": b"2"}
        await zombie.close()
        await successor.close()

    async def test_a_log_can_start_its_producer_again(self, bench: LogBench) -> None:
        """That is how a partition is restored after a failed checkpoint."""
        log = await opened(bench)
        await log.checkpoint([(b"a", b"1")])
        await log.start_producer()
        assert await log.read_changelog() == {b"a": b"1"}
        await log.seek(0)
        await log.checkpoint([(b"a", b"2")])
        await log.start_producer()
        assert await log.read_changelog() == {b"a": b"2"}
        await log.close()

    async def test_an_empty_checkpoint_changes_nothing(self, bench: LogBench) -> None:
        """It is allowed."""
        log = await opened(bench)
        await log.checkpoint([(b"a", b"1")])
        await log.checkpoint([])
        await log.start_producer()
        assert await log.read_changelog() == {b"a": b"1"}
        await log.close()

    async def _restored(self, bench: LogBench, partition: int = 0, assignment: int = 1) -> Mapping[bytes, bytes]:
        log = bench.log(partition, assignment)
        await log.start_producer()
        live = await log.read_changelog()
        await log.close()
        return live

    # --- take -------------------------------------------------------------------------------------------------------

    async def test_records_come_in_order_and_say_what_they_are(self, bench: LogBench) -> None:
        """Offset, broker time, key, value, headers, and the assignment they were fetched under."""
        log = await opened(bench, assignment=7)
        for number in range(5):
            await bench.arrive(0, b"%d" % number)
        records = await taken(log, 5)
        assert [(r.offset, r.key, r.value, r.headers, r.assignment) for r in records] == [
            (number, b"key", b"%d" % number, (("h", b"1"),), 7) for number in range(5)
        ]
        assert all(record.at_ms > 1_600_000_000_000 for record in records)
        await log.close()

    async def test_records_are_taken_from_the_offset_that_is_sought(self, bench: LogBench) -> None:
        """Also backwards, as often as is wanted."""
        for number in range(4):
            await bench.arrive(0, b"%d" % number)
        log = await opened(bench, offset=2)
        assert [r.offset for r in await taken(log, 2)] == [2, 3]
        await log.start_producer()
        await log.seek(1)
        assert [r.offset for r in await taken(log, 3)] == [1, 2, 3]
        await log.close()

    async def test_partitions_of_one_process_do_not_mix(self, bench: LogBench) -> None:
        """Also when one is taken over while another is read."""
        zero = await opened(bench, partition=0)
        await bench.arrive(0, b"zero")
        one = await opened(bench, partition=1)
        await bench.arrive(1, b"one")
        assert [r.value for r in await taken(zero, 1)] == [b"zero"]
        assert [r.value for r in await taken(one, 1)] == [b"one"]
        await bench.arrive(0, b"more")
        assert [r.value for r in await taken(zero, 1)] == [b"more"]
        await zero.close()
        await one.close()

    async def test_a_newer_assignment_takes_from_its_own_offset(self, bench: LogBench) -> None:
        """Whatever the older one of this process had fetched."""
        for number in range(3):
            await bench.arrive(0, b"%d" % number)
        older = await opened(bench, assignment=1)
        await taken(older, 3)
        await older.close()
        newer = await opened(bench, assignment=2, offset=1)
        records = [r for r in await taken(newer, 2) if r.assignment == 2]
        assert [r.offset for r in records] == [1, 2]
        await newer.close()

    async def test_taking_nothing_ends_after_the_wait(self, bench: LogBench) -> None:
        """With nothing."""
        log = await opened(bench)
        began = asyncio.get_running_loop().time()
        assert list(await log.take(0.3)) == []
        assert asyncio.get_running_loop().time() - began >= 0.29
        await log.close()

    async def test_an_interrupt_ends_the_take_under_way_or_the_next(self, bench: LogBench) -> None:
        """At once: that is how a task learns that a checkpoint is written, or that it is to stop."""
        log = await opened(bench)
        under_way = asyncio.ensure_future(log.take(60))
        await asyncio.sleep(0)  # the take begins
        log.interrupt()
        async with asyncio.timeout(60):
            assert list(await under_way) == []
            log.interrupt()
            assert list(await log.take(60)) == []
        await log.close()

    async def test_an_offset_that_is_gone_stops_loudly(self, bench: LogBench) -> None:
        """Else records would be skipped in silence."""
        await bench.arrive(0, b"only")
        log = await opened(bench, offset=100)
        with pytest.raises(InboxGone):
            async with asyncio.timeout(60):
                while True:
                    await log.take(1.0)
        await log.close()

    # --- append -----------------------------------------------------------------------------------------------------

    async def test_every_channel_has_its_topic_and_partition(self, bench: LogBench) -> None:
        """The partition's own, the only one, or the key's."""
        log, topics = await opened(bench, partition=1), bench.topics
        for channel in Channel:
            log.append(an_output(channel, channel.value.encode(), key="run/step"))
        await log.acknowledged()
        expected = {
            (topics.inbox, 1): b"inbox",
            (topics.steps("work"), partition_of(b"run/step", topics.steps_partitions)): b"commands",
            (topics.control, 0): b"control",
            (topics.run_events, 1): b"run_events",
            (topics.dead_letters, partition_of(b"run/step", topics.runs)): b"dead_letters",
        }
        for (topic, partition), value in expected.items():
            assert list(await bench.read(topic, partition)) == [(b"run/step", value, (("h", b"1"),))]
        await log.close()

    async def test_appends_are_in_the_order_of_calls_and_there_when_acknowledged(self, bench: LogBench) -> None:
        """All that was appended before `acknowledged` was called."""
        log = await opened(bench)
        for number in range(200):
            log.append(an_output(Channel.RUN_EVENTS, b"%d" % number))
        assert log.unacknowledged == 200
        await log.acknowledged()
        assert log.unacknowledged == 0
        values = [value for _, value, _ in await bench.read(bench.topics.run_events, 0)]
        assert values == [b"%d" % number for number in range(200)]
        await log.close()

    async def test_nothing_appended_is_acknowledged_at_once(self, bench: LogBench) -> None:
        """So a checkpoint without outputs waits for nobody."""
        log = await opened(bench)
        async with asyncio.timeout(60):
            await log.acknowledged()
        await log.close()

    async def test_after_an_append_is_lost_nothing_more_is_taken(self, bench: LogBench) -> None:
        """What follows was decided on the assumption that it got out."""
        log = await opened(bench)
        log.append(an_output(Channel.RUN_EVENTS, b"before"))
        await log.acknowledged()
        with pytest.raises(AppendLost):
            log.append(an_output(Channel.RUN_EVENTS, b"x" * (MAX_RECORD_BYTES + 1)))
            await log.acknowledged()
        with pytest.raises(AppendLost):
            log.append(an_output(Channel.RUN_EVENTS, b"after"))
        with pytest.raises(AppendLost):
            await log.acknowledged()
        assert [value for _, value, _ in await bench.read(bench.topics.run_events, 0)] == [b"before"]
        await log.close()
