"""`kill -9` of one of two orchestrators: how long its partitions stand still, and how much of that is the restore."""

import asyncio
import os
import re
import signal
import time
from pathlib import Path
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from anabranch.shared.runtime.kafka import new_consumer
from anabranch.shared.runtime.settings import Settings
from tests.performance.bed import Bed, bed
from tests.performance.changelog_size import held, written
from tests.performance.report import Report
from tests.performance.sizes import Sizes
from tests.performance.submitter import Submitter, definition_bytes, request
from tests.performance.throughput import DIAMOND
from tests.support.diamond import diamond

_IN_FLIGHT: Final = 4_000
_BATCH: Final = 500
_SLEEPING: Final = definition_bytes(diamond("simulate", sleep="1h") | {"timeout": "2h", "defaults": {"timeout": "2h"}})
_PROBE: Final = definition_bytes(
    {"name": "probe", "steps": {"a": {"uses": "transform", "with": {"value": "${{ 1 }}"}}}}
)
_PROBE_PAUSE_S: Final = 0.05
_PROBES: Final = 8  # 160 runs a second: a partition decides one every 75 ms
_FAILOVER_WITHIN_S: Final = 60.0
_RESTORED: Final = re.compile(r"partition restored.*?\brecords=(\d+).*?\bruns=(\d+).*?\bseconds=([\d.]+)")
_ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")


class Decisions:
    """When the last run event of each partition was read, and the first one after a moment."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.last: dict[int, float] = {}
        self.first_after: dict[int, float] = {}
        self.last_before: dict[int, float] = {}
        self._moment: float | None = None

    async def follow(self) -> None:
        """Read for ever."""
        topics = self._settings.topics
        consumer: AIOKafkaConsumer = new_consumer(self._settings)
        await consumer.start()
        try:
            partitions = [TopicPartition(topics.run_events, number) for number in range(topics.runs)]
            consumer.assign(partitions)
            await consumer.seek_to_end(*partitions)
            while True:
                for partition in await consumer.getmany(timeout_ms=200):
                    self._saw(partition.partition, time.perf_counter())
        finally:
            await consumer.stop()

    def _saw(self, partition: int, now: float) -> None:
        self.last[partition] = now
        if self._moment is not None and partition not in self.first_after and now > self._moment:
            self.first_after[partition] = now

    def begin(self, after_s: float) -> None:
        """From so many seconds from now on, a partition's first event ends its stall."""
        self.last_before = dict(self.last)
        self._moment = time.perf_counter() + after_s


async def measure(sizes: Sizes) -> None:
    """Measure and report."""
    report = Report("failover")
    async with bed(orchestrators=2, restart=False) as ours:
        count = await _fill_changelog(ours, sizes.changelog_records)
        report.row("changelog records written by real runs", f"{count:,}", f">= {sizes.changelog_records:,}")
        await ours.submitter.submit([request(_SLEEPING, b'{"n":1}')] * sizes.active_runs)
        await ours.processes().until_quiet(120)
        before = await held(ours)
        report.row("the changelog at the kill", str(before))
        report.note(written=count, records=before.records, live=before.live, disk_bytes=before.disk_bytes)
        await _kill_one(ours, report)
        await asyncio.sleep(sizes.compaction_s)
        after = await held(ours)
        report.row(f"the changelog {sizes.compaction_s:.0f} s later", str(after))
        report.note(records_later=after.records, live_later=after.live, disk_bytes_later=after.disk_bytes)
        report.note(active_runs=sizes.active_runs)
        ours.stack.kill()  # its workers sleep for an hour
    report.finish()


async def _fill_changelog(ours: Bed, goal: int) -> int:
    """Run diamonds, each with an idempotency key, until so many records were written; return how many."""
    submitted = 0
    while (count := await written(ours)) < goal:
        requests = [request(DIAMOND, b'{"n":1}', key=f"fill-{submitted + n}") for n in range(_BATCH)]
        await ours.submitter.submit(requests)
        submitted += len(requests)
        await ours.ends.until_count(submitted - _IN_FLIGHT, 120)
    await ours.ends.until_count(submitted, 120)
    return count


async def _kill_one(ours: Bed, report: Report) -> None:
    decisions = Decisions(ours.settings)
    async with Submitter(ours.stack.gateway_url, connections=_PROBES) as submitter:
        tasks = [asyncio.create_task(decisions.follow()), asyncio.create_task(_probe(submitter))]
        try:
            await asyncio.sleep(5)
            dead, survivor = ours.stack.names("orchestrator")
            log = ours.stack.home.path / "logs" / f"{survivor}.log"
            said = len(log.read_bytes())
            owned = ours.settings.topics.runs - _assigned(log)
            pid = ours.stack.service(dead).pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            decisions.begin(after_s=0.5)  # what it appended last may still be on its way to us
            await _until_all_decide(decisions, ours.settings.topics.runs)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    _tell(report, decisions, owned, _lines(log, said))


async def _probe(submitter: Submitter) -> None:
    while True:
        await submitter.submit([request(_PROBE)] * _PROBES)
        await asyncio.sleep(_PROBE_PAUSE_S)


async def _until_all_decide(decisions: Decisions, partitions: int) -> None:
    async with asyncio.timeout(_FAILOVER_WITHIN_S):
        while len(decisions.first_after) < partitions or _longest(decisions) < 1.0:
            await asyncio.sleep(0.1)
        await asyncio.sleep(2)


def _longest(decisions: Decisions) -> float:
    return max(_stalls(decisions))


def _stalls(decisions: Decisions) -> list[float]:
    return sorted(after - decisions.last_before[p] for p, after in decisions.first_after.items())


def _tell(report: Report, decisions: Decisions, owned: int, lines: list[str]) -> None:
    stalls = _stalls(decisions)[-owned:]
    restores = [(int(m[1]), int(m[2]), float(m[3])) for line in lines if (m := _RESTORED.search(line))]
    slowest = max(seconds for _, _, seconds in restores)
    report.row(f"stall of the dead one's {owned} partitions, s", f"{min(stalls):.2f} to {max(stalls):.2f}")
    report.row("partitions, runs and live records restored", _restored(restores))
    report.row("restore of the slowest partition, s", f"{slowest:.3f}", "<= 3")
    report.note(stalls_s=stalls, restores=restores, slowest_restore_s=slowest)


def _restored(restores: list[tuple[int, int, float]]) -> str:
    return f"{len(restores)}, {sum(runs for _, runs, _ in restores):,}, {sum(records for records, *_ in restores):,}"


def _assigned(log: Path) -> int:
    """Return how many partitions the log's last assignment names."""
    lines = [line for line in _lines(log, 0) if re.search(r"\bassigned\b.*partitions=\[", line)]
    return len(re.findall(r"\d+", lines[-1].split("partitions=[")[1].split("]")[0]))


def _lines(log: Path, begin: int) -> list[Any]:
    return [_ANSI.sub("", line) for line in log.read_bytes()[begin:].decode(errors="replace").splitlines()]
