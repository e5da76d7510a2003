"""Live events (server-sent events, WHATWG HTML §9.2): of one run until its end, and of all runs of a tenant.

Both read the record, which has every event once and in order, and say with each how a client goes on after it:
`id:` is the event's number in its run, or for all runs how far the record was read in each partition. What Redis tells
is only when to look again; without it a stream looks every second.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple

from aiohttp import web
from aiohttp_sse import EventSourceResponse

from anabranch.services.gateway import keys
from anabranch.services.gateway.body import ClientLeft
from anabranch.services.gateway.client import client_of, is_heard, tenant_of
from anabranch.services.gateway.feed import EventFeed
from anabranch.services.gateway.followers import Follower
from anabranch.services.gateway.problems import Kind, ProblemError, unavailable
from anabranch.services.gateway.reads import ReadsUnavailable
from anabranch.services.gateway.requests import follows, last_event_id_of, refuse_query_but
from anabranch.shared.contracts.limits import MAX_INTEGER, MAX_RECORDED_NUMBER
from anabranch.shared.contracts.messages import RUN_ENDED_TYPES
from anabranch.shared.record.errors import RecordUnavailable
from anabranch.shared.record.events import RecordedEvent
from anabranch.shared.runtime.snapshots import ENDED_STATUSES

_LOOK_S: Final = 1.0  # how late an event is at worst: what Redis tells may be lost
_PING_S: Final = 15.0  # proxies close what is silent for a minute
_SEND_S: Final = 30.0  # for a client that does not read
_OFFSETS_AT_A_TIME: Final = 1_000  # of one partition, whosever the events there are
_MOST_DIGITS: Final = 19
_APART_S: Final = 0.1  # between two looks for all runs: each asks for every partition that has something new


async def run_events(request: web.Request) -> web.StreamResponse:
    """`GET /v1/runs/{id}/events`: its events from the first, or after `Last-Event-ID`; ends after the last one.

    With `?follow=false` it ends after what there is by now. Who has seen the last event is answered 204 (WHATWG HTML
    §9.2.3): by itself an `EventSource` would come again after the end, for ever.
    """
    refuse_query_but(request, "last_event_id", "follow")
    feed, is_followed = _feed_of(request), follows(request)
    run_id, tenant = request.match_info["id"].lower(), tenant_of(request)
    after = _number(last_event_id_of(request) or "0")
    if not await _may_have_more(request, run_id, after):
        return web.Response(status=204)  # an `EventSource` comes again after any other answer
    request[keys.RUN_ID] = run_id
    async with _stream(request, run_id) as (stream, follower):
        while _goes_on(request, stream, follower):
            is_all, is_answered = True, False
            with suppress(RecordUnavailable):  # the stream goes on when it answers again
                events, is_all = await feed.after(run_id, tenant, after)
                for event in events:
                    await _send(request, stream, event, str(event.seq))
                    after = event.seq
                    if event.type in RUN_ENDED_TYPES:
                        return stream
                is_answered = True
            if is_all:
                if is_answered and not is_followed:
                    break
                await follower.until_changed(_LOOK_S)
        return stream


async def _may_have_more(request: web.Request, run_id: str, after: int) -> bool:
    """Return whether the tenant's run has events after this number, or may get some. Raises a 404 problem."""
    record, tenant = request.app[keys.RECORD_READER], tenant_of(request)
    assert record is not None, "there is a feed of it"
    try:
        status = await request.app[keys.READS].status_of(run_id, tenant)
        if status is None:
            raise ProblemError(Kind.NOT_FOUND, f"No run {run_id[:64]!r} is known.")
        if not after or status not in ENDED_STATUSES:
            return True
        standing = await record.standing(run_id, tenant)
    except (ReadsUnavailable, RecordUnavailable) as error:
        raise _not_readable(error) from error
    return standing is None or not standing.has_ended or standing.seq > after


async def all_events(request: web.Request) -> web.StreamResponse:
    """`GET /v1/events`: the events of all runs of the tenant from now on, or after `Last-Event-ID`; has no end."""
    refuse_query_but(request, "last_event_id")
    feed, tenant = _feed_of(request), tenant_of(request)
    given = last_event_id_of(request)
    try:
        place = (
            _Place(await feed.progress())
            if given is None
            else _Place.of(given, request.app[keys.SETTINGS].run_partitions)
        )
    except RecordUnavailable as error:
        raise _not_readable(error) from error
    async with _stream(request, "") as (stream, follower):
        while _goes_on(request, stream, follower):
            is_all = True
            with suppress(RecordUnavailable):  # as above
                for part in _parts(await feed.progress(), place):
                    events, is_whole = await feed.at(part.partition, tenant, begin=part.begin, end=part.end)
                    for event in events:
                        await _send(request, stream, event, str(place := place.at(part.partition, event.offset + 1)))
                    is_all = is_all and is_whole and part.is_last
                    if is_whole:
                        place = place.at(part.partition, part.end)
            if is_all:
                await asyncio.sleep(_APART_S)
                await follower.until_changed(_LOOK_S)
        return stream


class _Part(NamedTuple):
    """Offsets of a partition, from one to before another; `is_last` when there are no more."""

    partition: int
    begin: int
    end: int
    is_last: bool


class _Place(NamedTuple):
    """How far the record was read: the next offset of each partition, as text `0:17,3:5`."""

    offsets: Mapping[int, int]

    @classmethod
    def of(cls, text: str, partitions: int) -> "_Place":
        """Return the place that a text names. Raises a 400 problem."""
        offsets: dict[int, int] = {}
        for part in text.split(",") if text else ():
            given, colon, offset = part.partition(":")
            partition = _number(given)
            if not colon or partition >= partitions or partition in offsets:
                raise _no_such_place()
            offsets[partition] = _number(offset, MAX_INTEGER)
        return cls(offsets)

    def at(self, partition: int, offset: int) -> "_Place":
        """Return the same but for one partition."""
        return _Place({**self.offsets, partition: offset})

    def __str__(self) -> str:
        return ",".join(f"{partition}:{offset}" for partition, offset in sorted(self.offsets.items()))


def _parts(ends: Mapping[int, int], place: _Place) -> list[_Part]:
    """Return what is new in each partition, as much as is read at once."""
    begins = {partition: place.offsets.get(partition, 0) for partition in ends}
    parts = ((each, begins[each], min(end, begins[each] + _OFFSETS_AT_A_TIME)) for each, end in sorted(ends.items()))
    return [_Part(each, begin, until, until == ends[each]) for each, begin, until in parts if begin < until]


@asynccontextmanager
async def _stream(request: web.Request, run_id: str) -> AsyncIterator[tuple[EventSourceResponse, Follower]]:
    """Yield a stream that has begun. Raises a 429 problem where there are too many."""
    followers, client = request.app[keys.FOLLOWERS], client_of(request)
    if followers.full_for(client):
        raise ProblemError(Kind.TOO_MANY, "Too many streams of events are open.", retry_after_s=1)
    with followers.following(run_id, client) as follower:
        stream = EventSourceResponse(ping_interval=_PING_S, send_timeout=_SEND_S, sep="\n")
        await stream.prepare(request)
        try:
            async with stream:
                yield stream, follower
        except (ConnectionError, TimeoutError) as error:
            raise ClientLeft from error


def _goes_on(request: web.Request, stream: EventSourceResponse, follower: Follower) -> bool:
    return stream.is_connected() and is_heard(request) and not follower.closed


async def _send(request: web.Request, stream: EventSourceResponse, event: RecordedEvent, place: str) -> None:
    async with _feed_of(request).whole(event, tenant_of(request), client_of(request)) as body:
        await stream.send(body.decode(errors="replace"), id=place, event=event.type)


def _feed_of(request: web.Request) -> EventFeed:
    feed = request.app[keys.FEED]
    if feed is None:
        raise unavailable("No record of events is kept here: DATABASE_URL is not set.", retry_after_s=None)
    return feed


def _not_readable(error: Exception) -> ProblemError:
    return unavailable(f"Events cannot be read now: {error}.", retry_after_s=1)


def _number(text: str, most: int = MAX_RECORDED_NUMBER) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS and int(text) <= most):
        raise _no_such_place()
    return int(text)


def _no_such_place() -> ProblemError:
    return ProblemError(Kind.BAD_REQUEST, "Last-Event-ID is the `id` of an event that was sent here before.")
