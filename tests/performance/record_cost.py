"""What the record costs runs: bursts on a stack that keeps one and on a stack that keeps none, in turn."""

from statistics import median

from tests.performance.bed import bed
from tests.performance.report import Report
from tests.performance.sizes import Sizes
from tests.performance.throughput import Block, block_of, burst, diamonds

_STACK = ("kafka", "redis", "gateway", "orchestrator", "history", "simulate")


async def measure(sizes: Sizes) -> None:
    """Measure and report."""
    report = Report("record_cost")
    blocks: list[tuple[Block, Block]] = []
    async with bed() as recorded, bed(database_url="") as bare:
        for each in (recorded, bare):
            await each.run(diamonds(sizes.pipelines // 2))
        for _ in range(sizes.blocks):
            with_record, without = [
                await block_of(each.processes(), sizes.pipelines, lambda count, on=each: burst(on, count))  # type: ignore[misc]
                for each in (recorded, bare)
            ]
            blocks.append((with_record, without))
    ratio = median(with_record.per_s / without.per_s for with_record, without in blocks)
    for name, of_kind in zip(("with a record (SQLite)", "without"), zip(*blocks, strict=True), strict=True):
        rates = ", ".join(f"{block.per_s:.0f}" for block in of_kind)
        report.row(f"pipelines/s {name}", f"{median(block.per_s for block in of_kind):.0f}   ({rates})")
        cpu_ms = median(block.cpu_of(*_STACK) for block in of_kind)
        history_ms = median(block.cpu_of("history") for block in of_kind)
        report.row(f"CPU ms per pipeline {name}: all, history", f"{cpu_ms:.2f}, {history_ms:.2f}")
    report.row("ratio, median of blocks", f"{ratio:.3f}", ">= 0.85")
    report.note(ratio=ratio, per_s=[(with_record.per_s, without.per_s) for with_record, without in blocks])
    report.finish()
