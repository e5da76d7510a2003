"""What a client waits that submits and waits: request sent to answer read, over the time to the run's end in Kafka."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tests.performance.bed import Bed, bed
from tests.performance.latency import one as until_end
from tests.performance.report import Report, percentile
from tests.performance.sizes import Sizes
from tests.performance.submitter import Submitter
from tests.performance.throughput import Block, block_of, burst, diamonds

_WAIT: Final = b"?wait=30s"
_WARM_UP_SHARE: Final = 10
_BARS: Final = {64: (0.6, 120), 256: (0.75, 350)}  # connections: of the burst's rate, and p99 in milliseconds


@dataclass(frozen=True, slots=True)
class Crowd:
    """So many connections that submit and wait: what they got, and how long each answer took."""

    block: Block
    took_ms: list[float]


async def measure(sizes: Sizes) -> None:
    """Measure and report."""
    report = Report("waited")
    async with bed() as ours:
        await ours.run(diamonds(sizes.pipelines))  # as much for the JVM to compile as a busy stack has
        _tell_one(report, *await _one_at_a_time(ours, sizes))
        bursts = await block_of(ours.processes(), sizes.pipelines, lambda count: burst(ours, count))
        report.row("burst, pipelines/s", f"{bursts.per_s:.0f}")
        for connections in _BARS:
            _tell_crowd(report, connections, bursts, await _crowd(ours, connections, sizes, bursts.per_s))
    report.finish()


async def _one_at_a_time(ours: Bed, sizes: Sizes) -> tuple[list[float], list[float]]:
    """Return the milliseconds to the answer, and those to the end in Kafka of as many others, in turn."""
    answered_ms: list[float] = []
    ended_ms: list[float] = []
    async with Submitter(ours.stack.gateway_url, connections=1) as client:
        for _ in range(sizes.waited_samples // _WARM_UP_SHARE):
            await client.submit(diamonds(1, _WAIT))
        while len(answered_ms) < sizes.waited_samples:
            for request in diamonds(sizes.latency_block, _WAIT):
                await client.submit([request])
                answered_ms += [1000 * took for took in client.took_s]
            await ours.ends.until(client.accepted, 60)
            ended_ms += [1000 * await until_end(ours) for _ in range(sizes.latency_block)]
    return answered_ms, ended_ms


async def _crowd(ours: Bed, connections: int, sizes: Sizes, expected_per_s: float) -> Crowd:
    count = int(sizes.waited_s * expected_per_s / 2)
    async with Submitter(ours.stack.gateway_url, connections=connections) as clients:
        await clients.submit(diamonds(10 * connections, _WAIT))

        async def waited(count: int) -> float:
            started = time.perf_counter()
            await clients.submit(diamonds(count, _WAIT))
            return time.perf_counter() - started

        block = await block_of(ours.processes(), count, waited)
        return Crowd(block, [1000 * took for took in clients.took_s])


def _tell_one(report: Report, answered_ms: list[float], ended_ms: list[float]) -> None:
    for percent, bar in ((50, "<= 1.25"), (99, "<= 1.5")):
        answer, end = percentile(answered_ms, percent), percentile(ended_ms, percent)
        report.row(
            f"p{percent} ms: to the answer, to the end in Kafka", f"{answer:.2f}  {end:.2f}  {answer / end:.2f}", bar
        )
        report.note(**{f"p{percent}_ms": answer, f"end_p{percent}_ms": end, f"p{percent}_ratio": answer / end})


def _tell_crowd(report: Report, connections: int, bursts: Block, crowd: Crowd) -> None:
    share, most_ms = _BARS[connections]
    ratio = crowd.block.per_s / bursts.per_s
    p99_ms = percentile(crowd.took_ms, 99)
    report.row(
        f"{connections} connections, pipelines/s, of the burst", f"{crowd.block.per_s:.0f}  {ratio:.2f}", f">= {share}"
    )
    report.row(
        f"{connections} connections, p50 and p99 ms",
        f"{percentile(crowd.took_ms, 50):.0f}  {p99_ms:.0f}",
        f"p99 <= {most_ms}",
    )
    report.row(f"{connections} connections, CPU ms per pipeline", _each(crowd.block.cpu_ms))
    report.note(
        **{f"per_s_{connections}": crowd.block.per_s, f"ratio_{connections}": ratio, f"p99_ms_{connections}": p99_ms}
    )


def _each(cpu_ms: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {spent:.2f}" for name, spent in cpu_ms.items() if spent >= 0.01)
