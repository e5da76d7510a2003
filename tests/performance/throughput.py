"""Five-step diamonds over HTTP against the floor on the same Kafka: closed bursts, interleaved, medians of blocks."""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Final

from tests.performance.bed import Bed, bed
from tests.performance.floor import Floor
from tests.performance.processes import Processes, differences
from tests.performance.report import Report
from tests.performance.sizes import Sizes
from tests.performance.submitter import definition_bytes, request
from tests.support.diamond import diamond

DIAMOND: Final = definition_bytes(diamond("simulate"))
_OURS: Final = ("orchestrator", "simulate")
_FLOORS: Final = ("floor orchestrator", "floor worker")


@dataclass(frozen=True, slots=True)
class Block:
    """One burst: pipelines per second, and the CPU milliseconds per pipeline of every process."""

    per_s: float
    cpu_ms: Mapping[str, float]

    def cpu_of(self, *names: str) -> float:
        """Return the CPU milliseconds per pipeline of some processes together."""
        return sum(self.cpu_ms[name] for name in names)


def diamonds(count: int, query: bytes = b"") -> list[bytes]:
    """Return so many submissions, each with an input of its own."""
    return [request(DIAMOND, b'{"n":%d}' % number, query=query) for number in range(count)]


async def measure(sizes: Sizes) -> None:
    """Measure and report."""
    report = Report("throughput")
    async with bed() as ours, Floor(sizes.floor, ours.stack.bootstrap) as floor:
        processes = ours.processes(floor.pids)
        await _warm_up(ours, floor, sizes)
        blocks: list[tuple[Block, Block]] = []
        for _ in range(sizes.blocks):
            theirs = await block_of(processes, sizes.pipelines, floor.burst)
            blocks.append((theirs, await block_of(processes, sizes.pipelines, lambda count: burst(ours, count))))
        refused = ours.submitter.refused
    _tell(report, blocks, refused)


async def _warm_up(ours: Bed, floor: Floor, sizes: Sizes) -> None:
    """Use every partition, and let the JVM compile its hot paths."""
    await ours.run(diamonds(sizes.pipelines // 2))
    await floor.burst(sizes.pipelines // 2)


async def burst(ours: Bed, count: int) -> float:
    """Submit so many, wait for their ends in Kafka; return the seconds."""
    requests = diamonds(count)
    started = time.perf_counter()
    await ours.run(requests)
    return time.perf_counter() - started


async def block_of(processes: Processes, pipelines: int, measured: Callable[[int], Awaitable[float]]) -> Block:
    """Measure one burst; what it left to do in the background counts to its CPU time, not to its duration."""
    await processes.until_quiet()
    before = processes.cpu_s()
    seconds = await measured(pipelines)
    await processes.until_quiet()
    used = differences(before, processes.cpu_s())
    return Block(pipelines / seconds, {name: 1000 * cpu_s / pipelines for name, cpu_s in used.items()})


def _tell(report: Report, blocks: list[tuple[Block, Block]], refused: int) -> None:
    floors, ours = [theirs for theirs, _ in blocks], [mine for _, mine in blocks]
    report.row("pipelines/s", _median_and_all([block.per_s for block in ours]))
    report.row("pipelines/s of the floor", _median_and_all([block.per_s for block in floors]))
    ratio = median(mine.per_s / theirs.per_s for theirs, mine in blocks)
    report.row("ratio, median of blocks", f"{ratio:.3f}", ">= 0.3, aim 0.5")
    engine = median(block.cpu_of(*_OURS) for block in ours)
    floor_engine = median(block.cpu_of(*_FLOORS) for block in floors)
    report.row("orchestrator + worker, CPU ms per pipeline", f"{engine:.3f}")
    report.row("the floor's", f"{floor_engine:.3f}")
    report.row("CPU ratio", f"{engine / floor_engine:.2f}", "<= 2.5")
    cpu = {name: median(block.cpu_ms[name] for block in ours) for name in ours[0].cpu_ms}
    floor_cpu = {name: median(block.cpu_ms[name] for block in floors) for name in floors[0].cpu_ms}
    for name, spent in cpu.items():
        report.row(f"CPU ms per pipeline: {name}", f"{spent:.3f}   (in the floor's blocks {floor_cpu[name]:.3f})")
    report.row("submissions sent away with 503", str(refused))
    report.note(
        per_s=[b.per_s for b in ours], floor_per_s=[b.per_s for b in floors], ratio=ratio, cpu_ms=cpu,
        floor_cpu_ms=floor_cpu, cpu_ratio=engine / floor_engine, refused=refused,
    )  # fmt: skip
    report.finish()


def _median_and_all(values: list[float]) -> str:
    return f"{median(values):.0f}   ({', '.join(f'{value:.0f}' for value in values)})"
