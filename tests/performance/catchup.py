"""History stopped: what that does to runs, and how fast it catches up, with SQLite and with PostgreSQL.

1. One diamond at a time until its terminal event is in Kafka, history running and stopped in turn. What a read says
   while it is stopped is shown.
2. Bursts of diamonds while history is stopped: so many events a second one orchestrator produces.
3. History is started on that backlog. The rate counts from its exec until snapshots and record have every event.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiokafka import TopicPartition
from redis.asyncio import Redis

from anabranch.deploy.local.services import anabranch_services
from anabranch.shared.record.database import open_database
from anabranch.shared.record.reading import RecordReader
from anabranch.shared.runtime.kafka import new_consumer
from anabranch.shared.runtime.redis import RedisKeys
from tests.performance.bed import UNLIMITED, Bed, bed
from tests.performance.latency import one
from tests.performance.processes import Processes, differences
from tests.performance.report import Report, percentile
from tests.performance.sizes import Sizes
from tests.performance.throughput import burst, diamonds
from tests.support.databases import a_database, a_postgres
from tests.support.one_service import OneService

_BAR: Final = 5.0
_BURST: Final = 5_000  # diamonds
_LOOK_S: Final = 0.1
_WITHIN_S: Final = 600.0
_STALE_AFTER_S: Final = 3.0
_TURNS: Final = 3
_PROJECTIONS: Final = ("snapshots", "record")

Offsets = Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Caught:
    """How long it took, in seconds from its exec, until the snapshots had everything, and the record."""

    events: int
    snapshots_s: float
    record_s: float
    cpu_s: Mapping[str, float]

    @property
    def per_s(self) -> float:
        """Events a second until both had all."""
        return self.events / max(self.snapshots_s, self.record_s)


class Stand:
    """A stack whose history is a process of its own, and how far that is."""

    def __init__(self, ours: Bed, history: OneService, redis: Redis, record: RecordReader) -> None:
        self.ours = ours
        self.history = history
        self._redis = redis
        self._record = record
        self._key = RedisKeys(ours.settings.topic_prefix).progress()

    async def ends(self) -> Offsets:
        """Return the ends of the run events."""
        topics = self.ours.settings.topics
        consumer = new_consumer(self.ours.settings)
        await consumer.start()
        try:
            partitions = [TopicPartition(topics.run_events, number) for number in range(topics.runs)]
            return {each.partition: end for each, end in (await consumer.end_offsets(partitions)).items() if end}
        finally:
            await consumer.stop()

    async def snapshots(self) -> Offsets:
        """Return how far Redis is."""
        return {int(partition): int(offset) for partition, offset in (await self._redis.hgetall(self._key)).items()}

    async def record(self) -> Offsets:
        """Return how far the record is."""
        return {partition: each.next_offset for partition, each in (await self._record.progress()).items()}

    async def until_caught_up(self) -> None:
        """Wait until both have everything."""
        ends = await self.ends()
        async with asyncio.timeout(_WITHIN_S):
            while not (_has(await self.snapshots(), ends) and _has(await self.record(), ends)):
                await asyncio.sleep(_LOOK_S)

    async def caught_up(self) -> Caught:
        """Start history, and measure."""
        ends, before = await self.ends(), await self.record()
        events = sum(ends.values()) - sum(before.values())
        others = self.ours.processes()
        cpu_s, began_s = others.cpu_s(), time.perf_counter()
        await self.history.start()
        at_s: dict[str, float] = {}
        async with asyncio.timeout(_WITHIN_S):
            while len(at_s) < len(_PROJECTIONS):
                for name, reached in (("snapshots", self.snapshots), ("record", self.record)):
                    if name not in at_s and _has(await reached(), ends):
                        at_s[name] = time.perf_counter() - began_s
                await asyncio.sleep(_LOOK_S)
        used = differences(cpu_s, others.cpu_s())
        used["history"] = Processes({"history": self.history.pid}).cpu_s()["history"]
        return Caught(events, at_s["snapshots"], at_s["record"], used)


async def measure(sizes: Sizes) -> None:
    """Measure and report. Raises `BarMissed`."""
    report = Report("catchup")
    ratios = {}
    with a_postgres() as server, tempfile.TemporaryDirectory(prefix="anabranch-bench-") as folder:
        async with a_database(server) as url:
            for name, each in {"SQLite": f"sqlite:///{Path(folder)}/record.db", "PostgreSQL": url}.items():
                async with _stand(each, Path(folder)) as stand:
                    ratios[name] = await _measure(report, name, stand, sizes)
    report.finish()
    report.require("history catches up five times as fast as events are produced", min(ratios.values()) >= _BAR)


async def _measure(report: Report, name: str, stand: Stand, sizes: Sizes) -> float:
    ours = stand.ours
    await ours.run(diamonds(sizes.pipelines))  # as much for the JVM to compile as a busy stack has
    await stand.until_caught_up()
    running_ms, stopped_ms, said = await _latencies(stand, sizes)
    for percent in (50, 95, 99):
        running, stopped = percentile(running_ms, percent), percentile(stopped_ms, percent)
        row = f"{running:.2f}  {stopped:.2f}  {stopped / running:.2f}"
        report.row(f"{name}: p{percent} ms to the end, history running, stopped", row, "~ 1" if percent < 99 else "")
    report.row(f"{name}: a read of an ended run while it is stopped", said)
    await stand.history.stop()
    events, seconds = ours.ends.events, 0.0
    while (produced := ours.ends.events - events) < sizes.backlog_events:
        seconds += await burst(ours, min(_BURST, sizes.pipelines))
    rate = produced / seconds
    caught = await stand.caught_up()
    ratio = caught.per_s / rate
    report.row(f"{name}: events/s produced, history stopped", f"{rate:.0f}   ({produced:,} events)")
    report.row(f"{name}: events/s caught up", f"{caught.per_s:.0f}   ({caught.events:,} events)")
    at = f"{caught.snapshots_s:.1f}, {caught.record_s:.1f}"
    report.row(f"{name}: s from exec: snapshots, record", at)
    report.row(f"{name}: ratio", f"{ratio:.2f}", f">= {_BAR:.0f}")
    cpu = ", ".join(f"{each} {spent:.1f}" for each, spent in caught.cpu_s.items() if spent >= 0.1)
    report.row(f"{name}: CPU s meanwhile", cpu)
    figures = {
        "running_ms": [percentile(running_ms, each) for each in (50, 95, 99)],
        "stopped_ms": [percentile(stopped_ms, each) for each in (50, 95, 99)],
        "produced_per_s": rate, "caught_per_s": caught.per_s, "ratio": ratio, "snapshots_s": caught.snapshots_s,
        "record_s": caught.record_s, "cpu_s": dict(caught.cpu_s),
    }  # fmt: skip
    report.note(**{name: figures})
    return ratio


async def _latencies(stand: Stand, sizes: Sizes) -> tuple[list[float], list[float], str]:
    """Return the milliseconds of single diamonds with history and without, in turn, and what a read says without."""
    took: dict[bool, list[float]] = {True: [], False: []}
    said = ""
    for _ in range(_TURNS):
        for is_running in (True, False):
            if is_running:
                await stand.until_caught_up()
            else:
                await stand.history.stop()
            await one(stand.ours)
            took[is_running] += [1000 * await one(stand.ours) for _ in range(sizes.latency_samples // 10)]
        (run_id,) = stand.ours.submitter.accepted
        await asyncio.sleep(_STALE_AFTER_S)
        said = await _read(stand.ours.stack.gateway_url, run_id)
        await stand.history.start()
    await stand.until_caught_up()
    return took[True], took[False], said


async def _read(url: str, run_id: str) -> str:
    async with aiohttp.ClientSession(url) as http, http.get(f"/v1/runs/{run_id}") as answer:
        document: dict[str, Any] = await answer.json()
        return f"{answer.status} {document['status']}, Anabranch-Stale: {answer.headers.get('Anabranch-Stale')}"


def _has(reached: Offsets, ends: Offsets) -> bool:
    return all(reached.get(partition, 0) >= end for partition, end in ends.items())


@asynccontextmanager
async def _stand(database_url: str, folder: Path) -> AsyncIterator[Stand]:
    services = [each for each in anabranch_services() if each.role != "history"]
    async with AsyncExitStack() as open_:
        ours = await open_.enter_async_context(bed(services=services, database_url=database_url))
        env = UNLIMITED | {
            "KAFKA_BOOTSTRAP_SERVERS": ours.stack.bootstrap, "REDIS_URL": ours.stack.redis_url,
            "DATABASE_URL": database_url,
        }  # fmt: skip
        service = OneService("history", folder / "history.log", waits_for_ready=False, **env)
        history = await open_.enter_async_context(service)
        redis = Redis.from_url(ours.stack.redis_url)
        open_.push_async_callback(redis.aclose)
        database = open_database(database_url, name="bench", connections=1)
        open_.push_async_callback(database.dispose)
        yield Stand(ours, history, redis, RecordReader(database))
