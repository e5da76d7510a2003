"""Large events are read when there is room for them, and who does not read takes no more than his share."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from anabranch.services.gateway.feed import EventFeed
from anabranch.shared.contracts.limits import MAX_STREAMED_BYTES, MAX_STREAMED_BYTES_OF_CLIENT, MIB
from anabranch.shared.record.errors import RecordUnavailable
from anabranch.shared.record.events import Events, Question, RecordedEvent
from tests.support.one_service import eventually

GUARD_S = 30.0


class FakeEvents:
    """A record whose events are all of a MiB, or that does not answer; it notes how many it was asked for at once."""

    def __init__(self) -> None:
        self.bodies = 0
        self.batches: list[int] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.is_away = False

    async def body(self, run_id: str, tenant: str, seq: int) -> bytes:
        self.bodies += 1
        return b"x"

    async def after(self, asked: Sequence[Question]) -> list[Events]:
        self.batches.append(len(asked))
        await self.answers.wait()
        if self.is_away:
            raise RecordUnavailable("away")
        # What is asked for first fills the answer.
        return [Events([a_large_event()] if not number else [], is_all=False) for number in range(len(asked))]


def a_large_event() -> RecordedEvent:
    """Return one that is read alone."""
    return RecordedEvent("r", 1, "StepSucceeded", 0, MIB, None)


def a_feed(events: FakeEvents) -> EventFeed:
    """Return a feed of such a record."""
    parts: Any = (None, events)
    return EventFeed(*parts)


async def test_who_does_not_read_holds_only_his_share() -> None:
    """A hundred slow streams of one client are a few large events in memory, and others' are sent meanwhile."""
    events = FakeEvents()
    feed, done = a_feed(events), asyncio.Event()

    async def send(client: str) -> None:
        async with feed.whole(a_large_event(), "t", client):
            await done.wait()

    async with asyncio.timeout(GUARD_S), asyncio.TaskGroup() as streams:
        for _ in range(100):
            streams.create_task(send("slow"))
        await eventually(lambda: _is(events.bodies == MAX_STREAMED_BYTES_OF_CLIENT // (4 * MIB)))
        async with feed.whole(a_large_event(), "t", "fast") as body:
            assert body == b"x"
        for number in range(100):
            streams.create_task(send(f"slow {number}"))
        await eventually(lambda: _is(events.bodies == 1 + MAX_STREAMED_BYTES // (4 * MIB)))
        await asyncio.sleep(0)
        assert events.bodies == 1 + MAX_STREAMED_BYTES // (4 * MIB)
        done.set()
    assert events.bodies == 201


async def test_who_asks_meanwhile_asks_together_and_nobody_is_left_out() -> None:
    """A thousand questions are some dozen statements, and what did not fit into an answer is asked for again."""
    events = FakeEvents()
    feed = a_feed(events)
    async with asyncio.timeout(GUARD_S):
        answers = await asyncio.gather(*(feed.after("r", "t", number) for number in range(200)))
    assert all(len(answer.events) == 1 for answer in answers)
    assert max(events.batches) == 64


async def test_all_who_wait_hear_that_the_record_is_away() -> None:
    """At once; who comes later asks anew."""
    events = FakeEvents()
    feed = a_feed(events)
    events.is_away = True
    async with asyncio.timeout(GUARD_S):
        told = await asyncio.gather(*(feed.after("r", "t", number) for number in range(200)), return_exceptions=True)
        assert {type(each) for each in told} == {RecordUnavailable}
        assert events.batches == [64]
        events.is_away = False
        assert (await feed.after("r", "t", 0)).events


async def test_who_leaves_holds_up_nobody() -> None:
    """A stream that ends while its answer is on the way leaves the others theirs."""
    events = FakeEvents()
    feed = a_feed(events)
    events.answers.clear()
    async with asyncio.timeout(GUARD_S):
        leaving, staying = (asyncio.create_task(feed.after("r", "t", number)) for number in range(2))
        await eventually(lambda: _is(bool(events.batches)))
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        events.answers.set()
        assert (await staying).events


async def _is(condition: bool) -> bool:
    return condition
