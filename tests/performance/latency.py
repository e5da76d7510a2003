"""One diamond at a time, from sending its request until its terminal event is read, against the floor's."""

import time

from tests.performance.bed import Bed, bed
from tests.performance.floor import Floor
from tests.performance.report import Report, percentile
from tests.performance.sizes import Sizes
from tests.performance.throughput import diamonds

_WARM_UP_SHARE = 10


async def measure(sizes: Sizes) -> None:
    """Measure and report."""
    report = Report("latency")
    ours_ms: list[float] = []
    floors_ms: list[float] = []
    async with bed() as ours, Floor(sizes.floor, ours.stack.bootstrap) as floor:
        await ours.run(diamonds(sizes.latency_samples))  # as much for the JVM to compile as a busy stack has
        await floor.burst(sizes.latency_samples)
        for _ in range(sizes.latency_samples // _WARM_UP_SHARE):
            await one(ours)
            await floor.one()
        while len(ours_ms) < sizes.latency_samples:
            floors_ms += [1000 * await floor.one() for _ in range(sizes.latency_block)]
            ours_ms += [1000 * await one(ours) for _ in range(sizes.latency_block)]
    _tell(report, ours_ms, floors_ms)


async def one(ours: Bed) -> float:
    """Return the seconds from before a diamond's request is sent until its terminal event is read."""
    (request,) = diamonds(1)
    ours.ends.ended.clear()
    started = time.perf_counter()
    run_ids = await ours.submitter.submit([request])
    await ours.ends.until(run_ids, 60)
    return time.perf_counter() - started


def _tell(report: Report, ours_ms: list[float], floors_ms: list[float]) -> None:
    report.row("samples", f"{len(ours_ms)} and {len(floors_ms)}")
    for percent, bar in ((50, "<= 1.5"), (95, ""), (99, "<= 2.5")):
        mine, theirs = percentile(ours_ms, percent), percentile(floors_ms, percent)
        report.row(f"p{percent} ms: ours, the floor's, ratio", f"{mine:.2f}  {theirs:.2f}  {mine / theirs:.2f}", bar)
        report.note(**{f"p{percent}_ms": mine, f"floor_p{percent}_ms": theirs, f"p{percent}_ratio": mine / theirs})
    report.finish()
