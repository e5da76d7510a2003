"""What the stack costs when nothing happens: CPU time and memory of every process."""

import asyncio
from typing import Final

from tests.performance.bed import bed
from tests.performance.processes import DRIVER, SERVERS, differences
from tests.performance.report import Report
from tests.performance.sizes import Sizes
from tests.performance.throughput import diamonds

_RUNS_BEFORE: Final = 500  # it is a stack that has worked, not one that never did
_MIB: Final = 1024 * 1024


async def measure(sizes: Sizes) -> None:
    """Measure and report."""
    report = Report("idle")
    async with bed() as ours:
        await ours.run(diamonds(_RUNS_BEFORE))
        await asyncio.sleep(sizes.quiet_s)
        processes = ours.processes()
        before = processes.cpu_s()
        await asyncio.sleep(sizes.idle_s)
        used = differences(before, processes.cpu_s())
        memory = processes.memory()
    percent = {name: 100 * cpu_s / sizes.idle_s for name, cpu_s in used.items() if name != DRIVER}
    together = sum(share for name, share in percent.items() if name not in SERVERS)
    report.row("our Python processes together, % of a core", f"{together:.2f}", "<= 3")
    for name, share in percent.items():
        held = memory[name]
        sizes_mib = f"RSS {held.rss / _MIB:.0f}, USS {held.uss / _MIB:.0f}, PSS {held.pss / _MIB:.0f} MiB"
        report.row(f"{name}: % of a core, memory", f"{share:.2f}   {sizes_mib}")
    report.note(
        together_percent=together, percent=percent,
        memory={name: {"rss": m.rss, "uss": m.uss, "pss": m.pss} for name, m in memory.items()},
    )  # fmt: skip
    report.finish()
