"""A thousand streams of events on one gateway while their runs go on, many of them cut and gone on with.

Each client submits a diamond whose steps sleep, follows its events to the end, and takes the next one. One run in three
is cut off without a word after some event, and followed on from there on a new connection (`Last-Event-ID`). One client
more follows all runs (`GET /v1/events`), and is cut every 500 events. An event is late by the time from the record that
caused it (its `at`, or the moment the stream was opened, if that is later) until the client has read it.
"""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import orjson

from anabranch.client.events import Event, events_in
from anabranch.shared.contracts.messages import RUN_ENDED_TYPES
from anabranch.shared.contracts.times import milliseconds
from anabranch.shared.runtime.descriptors import allow_descriptors
from tests.performance.bed import bed
from tests.performance.processes import differences
from tests.performance.report import Report, percentile
from tests.performance.sizes import Sizes
from tests.performance.throughput import diamonds
from tests.support.diamond import diamond

_SLEEPY: Final = orjson.dumps({"definition": diamond("simulate", sleep="5s"), "inputs": {"n": 1}})
_ALL: Final = "/v1/events"
_CUT_SHARE: Final = 1 / 3
_CUT_WITHIN: Final = 6  # events
_ALL_CUT_EVERY: Final = 500
_LOOK_S: Final = 0.5
_SPREAD_S: Final = 10.0  # over which the clients come
_WITHIN_S: Final = 120.0  # a run that takes longer does not end
_WHOLE_WITHIN_S: Final = 30.0
_MIB: Final = 1024 * 1024
_LINE_BYTES: Final = 2 * _MIB
_OTHER_DESCRIPTORS: Final = 512  # of this process
_ROLES: Final = {
    "gateway": {
        "ANABRANCH_MAX_STREAMS_OF_CLIENT": "4000",
        "ANABRANCH_MAX_REQUESTS_OF_CLIENT": "12000",
        "ANABRANCH_MAX_CONNECTIONS_OF_CLIENT": "15000",  # all come from one address
    },
    "simulate": {"ANABRANCH_CONCURRENCY": "4000"},  # every step sleeps at the same time
}


@dataclass(slots=True)
class Tally:
    """What the clients saw."""

    late_ms: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})  # of all runs, or of one
    followed: dict[str, int] = field(default_factory=dict)  # runs, each with the number of its events
    cuts: int = 0
    open: int = 0
    most_open: int = 0
    wrong: list[str] = field(default_factory=list)


class Clients:
    """All who follow, each stream on a connection of its own."""

    def __init__(self, url: str, session: aiohttp.ClientSession, chance: random.Random) -> None:
        self._url = url
        self._session = session
        self._chance = chance
        self.seen = Tally()

    async def follow_runs(self, until_s: float) -> None:
        """Follow one run after the other, each to its end."""
        await asyncio.sleep(self._chance.uniform(0, _SPREAD_S))
        while time.perf_counter() < until_s:
            async with asyncio.timeout(_WITHIN_S):
                await self._follow(await self._submitted())

    async def follow_all(self, numbers: dict[str, list[int]]) -> None:
        """Follow all runs for ever; note the numbers of the events of each, as they come."""
        place = ""
        while True:
            async with aclosing(self._stream(_ALL, place)) as stream:
                count = 0
                async for event in stream:
                    place = event.place
                    numbers[event.document["run_id"]].append(event.document["seq"])
                    count += 1
                    if count == _ALL_CUT_EVERY:
                        self.seen.cuts += 1
                        break

    async def _submitted(self) -> str:
        headers = {"Content-Type": "application/json"}
        async with self._session.post(f"{self._url}/v1/runs", data=_SLEEPY, headers=headers) as answer:
            answer.raise_for_status()
            run_id: str = orjson.loads(await answer.read())["id"]
            return run_id

    async def _follow(self, run_id: str) -> None:
        cut_after = self._chance.randint(1, _CUT_WITHIN) if self._chance.random() < _CUT_SHARE else 0
        places: list[str] = []
        last = ""
        while last not in RUN_ENDED_TYPES:
            before = len(places)
            async with aclosing(self._stream(f"/v1/runs/{run_id}/events", places[-1] if places else "")) as stream:
                async for event in stream:
                    places.append(event.place)
                    last = event.type
                    if len(places) == cut_after:
                        self.seen.cuts += 1
                        break
            if len(places) == before:
                self.seen.wrong.append(f"{run_id}: a stream after event {before} ended and had none")
                return
        if places != [str(number) for number in range(1, len(places) + 1)]:
            self.seen.wrong.append(f"{run_id}: {places}")
        self.seen.followed[run_id] = len(places)

    async def _stream(self, path: str, place: str) -> AsyncIterator[Event]:
        headers = {"Last-Event-ID": place} if place else {}
        async with self._session.get(self._url + path, headers=headers, read_bufsize=_LINE_BYTES) as answer:
            answer.raise_for_status()
            late_ms = self.seen.late_ms[path == _ALL]
            opened_ms = 1000 * time.time()
            self.seen.open += 1
            self.seen.most_open = max(self.seen.most_open, self.seen.open)
            try:
                async for event in events_in(answer.content):
                    late_ms.append(1000 * time.time() - max(milliseconds(event.document["at"]), opened_ms))
                    yield event
            finally:
                self.seen.open -= 1
                answer.close()


async def measure(sizes: Sizes) -> None:
    """Measure and report. Raises `BarMissed`."""
    report = Report("streams")
    allow_descriptors(sizes.streams + _OTHER_DESCRIPTORS)
    numbers: dict[str, list[int]] = defaultdict(list)
    async with AsyncExitStack() as open_:
        ours = await open_.enter_async_context(bed(role_env=_ROLES))
        await ours.run(diamonds(sizes.pipelines // 5))  # warms up
        session = await open_.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None))
        )
        clients = Clients(ours.stack.gateway_url, session, random.Random(0))
        processes = ours.processes()
        before, began_s, cpu_s = processes.memory(), time.perf_counter(), processes.cpu_s()
        everything = asyncio.create_task(clients.follow_all(numbers), name="follow all runs")
        async with asyncio.TaskGroup() as following:
            for _ in range(sizes.streams):
                following.create_task(clients.follow_runs(began_s + sizes.streams_s), name="follow runs")
            await asyncio.sleep(max(_SPREAD_S, sizes.streams_s / 2))
            during = processes.memory()
        seconds, used = time.perf_counter() - began_s, differences(cpu_s, processes.cpu_s())
        await _until_whole(clients, numbers)
        everything.cancel()
        await asyncio.gather(everything, return_exceptions=True)
    seen = clients.seen
    report.row("streams open at once, at most", str(seen.most_open), f"> {sizes.streams}")
    events = sum(map(len, seen.late_ms.values()))
    report.row("runs followed, cuts", f"{len(seen.followed)}, {seen.cuts}")
    report.row("events read, a second", f"{events}, {events / seconds:.0f}")
    for of_all, late_ms in seen.late_ms.items():
        late = [percentile(late_ms, percent) for percent in (50, 95, 99, 100)]
        words = "all runs'" if of_all else "a run's"
        report.row(f"{words} events late, ms p50, p95, p99, most", ", ".join(f"{each:.0f}" for each in late))
        report.note(**{f"{words} late_ms": late})
    report.row("gaps, repeats and ends too early", str(len(seen.wrong)), "0")
    rss = [each["gateway"].rss / _MIB for each in (before, during)]
    each_kib = 1024 * (rss[1] - rss[0]) / sizes.streams
    report.row("gateway RSS MiB: before, with all streams; KiB each", f"{rss[0]:.0f}, {rss[1]:.0f}; {each_kib:.0f}")
    for name, spent_s in used.items():
        report.row(f"share of a core, {name}", f"{spent_s / seconds:.2f}")
    for words in seen.wrong[:3]:
        report.row("went wrong", words)
    report.note(
        streams=seen.most_open, runs=len(seen.followed), cuts=seen.cuts, events=events, rss_mib=rss,
        wrong=seen.wrong[:10],
    )  # fmt: skip
    report.finish()
    report.require("no stream has a gap or a repeat", not seen.wrong)
    report.require("all streams are open at once", seen.most_open > sizes.streams)


async def _until_whole(clients: Clients, numbers: dict[str, list[int]]) -> None:
    """Wait until who follows all runs has seen as much of each as who follows it alone, or the time is up; compare."""
    seen = clients.seen
    with suppress(TimeoutError):
        async with asyncio.timeout(_WHOLE_WITHIN_S):
            while any(len(numbers[run_id]) < count for run_id, count in seen.followed.items()):
                await asyncio.sleep(_LOOK_S)
    for run_id, count in seen.followed.items():
        if numbers[run_id] != list(range(1, count + 1)):
            seen.wrong.append(f"{run_id}, among all: {numbers[run_id]} of {count}")
