"""What a step costs in a run of 5,000 steps, over what it costs in a run of 50: as many steps, as many in flight."""

from collections.abc import Callable
from typing import Any, Final

from tests.performance.bed import Bed, bed
from tests.performance.processes import differences
from tests.performance.report import Report
from tests.performance.sizes import Sizes
from tests.performance.submitter import definition_bytes, request

_ENGINE: Final = ("orchestrator", "simulate")
_WARM_UP_STEPS: Final = 5_000
_CHAINS_AT_ONCE: Final = 10
_FANS_AT_ONCE: Final = 2  # of 5,000 steps: their windows are full
_WITHIN_S: Final = 900.0

Shape = Callable[[int], dict[str, Any]]


def chain(steps: int) -> dict[str, Any]:
    """Return a pipeline of so many steps one after the other."""
    definition = {f"s{n}": {"uses": "simulate", "needs": [f"s{n - 1}"] if n else []} for n in range(steps)}
    return {"name": "chain", "timeout": "1h", "steps": definition}


def fan(steps: int) -> dict[str, Any]:
    """Return a pipeline of steps side by side after one, and one that joins them."""
    middle = [f"s{n}" for n in range(steps - 2)]
    first, last = {"uses": "simulate"}, {"uses": "simulate", "needs": middle}
    return {
        "name": "fan",
        "timeout": "1h",
        "steps": {"first": first, **{s: {"uses": "simulate", "needs": ["first"]} for s in middle}, "last": last},
    }


async def measure(sizes: Sizes) -> None:
    """Measure and report."""
    report = Report("scaling")
    async with bed() as ours:
        await _cpu_us_per_step(ours, fan, sizes.short_steps, _WARM_UP_STEPS, 10)
        for name, shape, long_at_once, short_at_once in (
            ("fan-out with a join", fan, _FANS_AT_ONCE, _FANS_AT_ONCE * 256 // (sizes.short_steps - 2)),
            ("chain", chain, _CHAINS_AT_ONCE, _CHAINS_AT_ONCE),
        ):
            short = await _cpu_us_per_step(ours, shape, sizes.short_steps, sizes.total_steps, short_at_once)
            long = await _cpu_us_per_step(ours, shape, sizes.long_steps, sizes.total_steps, long_at_once)
            _tell(report, name, sizes, short, long)
    report.finish()


async def _cpu_us_per_step(ours: Bed, shape: Shape, steps: int, total: int, at_once: int) -> dict[str, float]:
    """Run as many runs as make `total` steps, `at_once` of them at a time; return the CPU µs per step by process."""
    definition = definition_bytes(shape(steps))
    processes = ours.processes()
    await processes.until_quiet(120)
    before = processes.cpu_s()
    runs = max(at_once, total // steps)
    await _keep_in_flight(ours, request(definition), runs, at_once)
    await processes.until_quiet(120)
    used = differences(before, processes.cpu_s())
    return {name: 1e6 * cpu_s / (runs * steps) for name, cpu_s in used.items()}


async def _keep_in_flight(ours: Bed, submission: bytes, runs: int, at_once: int) -> None:
    ours.ends.ended.clear()
    submitted: list[str] = []
    while len(submitted) < runs:
        missing = min(runs - len(submitted), at_once - (len(submitted) - len(ours.ends.ended)))
        submitted += await ours.submitter.submit([submission] * missing) if missing else []
        await ours.ends.until_count(len(submitted) - at_once + 1, _WITHIN_S)
    await ours.ends.until(submitted, _WITHIN_S)


def _tell(report: Report, name: str, sizes: Sizes, short: dict[str, float], long: dict[str, float]) -> None:
    for process in _ENGINE:
        ratio = long[process] / short[process]
        said = f"{short[process]:.0f}, {long[process]:.0f}, {ratio:.2f}"
        report.row(f"{name}: {process}, CPU µs per step, {sizes.short_steps} and {sizes.long_steps} steps, ratio", said)
    together = sum(long[p] for p in _ENGINE) / sum(short[p] for p in _ENGINE)
    report.row(f"{name}: orchestrator + worker, ratio", f"{together:.2f}", "<= 1.3")
    report.note(**{name: {"short_us": short, "long_us": long, "ratio": together}})
