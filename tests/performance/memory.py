"""What the orchestrator's memory does between run 20,000 and run 40,000, without and with idempotency keys."""

import asyncio
from typing import Final

from tests.performance.bed import Bed, bed
from tests.performance.changelog_size import disk_bytes, held
from tests.performance.processes import memory_of
from tests.performance.report import Report
from tests.performance.sizes import Sizes
from tests.performance.submitter import request
from tests.performance.throughput import DIAMOND

_IN_FLIGHT: Final = 1_000
_BATCH: Final = 250
_MIB: Final = 1024 * 1024
_TRICKLE_S: Final = 1.0  # segments are rolled when something is appended; compaction leaves the newest one alone


async def measure(sizes: Sizes) -> None:
    """Measure and report."""
    report = Report("memory")
    grown = {}
    for kind in ("without keys", "with keys"):
        async with bed() as ours:
            half, full = await _rss_at(ours, sizes.memory_runs, with_keys=kind == "with keys")
            grown[kind] = full - half
            report.row(f"{kind}: RSS MiB at run {sizes.memory_runs // 2:,}, {sizes.memory_runs:,}", _mib(half, full))
            before = disk_bytes(ours)
            await _trickle(ours, sizes.compaction_s)
            after = await held(ours)
            report.row(f"{kind}: changelog MB on disk then", f"{before / 1e6:.1f}")
            report.row(f"{kind}: changelog {sizes.compaction_s:.0f} s later", str(after))
            report.note(
                **{kind: {"rss_half": half, "rss_full": full, "disk_then": before, "disk_later": after.disk_bytes,
                          "records_later": after.records, "live_later": after.live}}
            )  # fmt: skip
    per_run = (grown["with keys"] - grown["without keys"]) / (sizes.memory_runs // 2)
    report.row("growth without keys, MiB", f"{grown['without keys'] / _MIB:.1f}", "<= 5")
    report.row("growth with keys, MiB", f"{grown['with keys'] / _MIB:.1f}")
    report.row("bytes per remembered finished run", f"{per_run:.0f}")
    report.note(growth_without_keys=grown["without keys"], growth_with_keys=grown["with keys"], bytes_per_run=per_run)
    report.finish()


async def _rss_at(ours: Bed, runs: int, *, with_keys: bool) -> tuple[int, int]:
    """Return the orchestrator's RSS when half of the runs have ended, and when all have."""
    (pid,) = ours.stack.pids("orchestrator")
    found = []
    for goal in (runs // 2, runs):
        await _run_up_to(ours, goal, with_keys=with_keys)
        await ours.processes().until_quiet(60)
        found.append(memory_of(pid).rss)
    return found[0], found[1]


async def _run_up_to(ours: Bed, goal: int, *, with_keys: bool) -> None:
    ended = ours.ends.ended
    submitted = len(ended)
    while submitted < goal:
        numbers = range(submitted, min(goal, submitted + _BATCH))
        requests = [request(DIAMOND, b'{"n":%d}' % n, key=f"run-{n}" if with_keys else None) for n in numbers]
        await ours.submitter.submit(requests)
        submitted += len(requests)
        await ours.ends.until_count(submitted - _IN_FLIGHT, 120)
    await ours.ends.until_count(goal, 120)


async def _trickle(ours: Bed, seconds: float) -> None:
    """Keep every partition's changelog written to, a little, while it is compacted."""
    async with asyncio.timeout(seconds + 60):
        for _ in range(round(seconds / _TRICKLE_S)):
            await ours.submitter.submit([request(DIAMOND, b'{"n":1}')] * 12)
            await asyncio.sleep(_TRICKLE_S)


def _mib(*values: int) -> str:
    return ", ".join(f"{value / _MIB:.1f}" for value in values)
