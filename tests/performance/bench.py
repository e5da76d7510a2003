"""`python -m tests.performance.bench [NAME...]`: measure, print tables, write JSON to `.anabranch/bench/`.

What is measured how, and the figures of record: docs/benchmarks.md.
"""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import uvloop

from tests.performance import (
    accepting,
    catchup,
    crowd,
    failover,
    idle,
    latency,
    memory,
    metrics_cost,
    observed,
    record_cost,
    recording,
    scaling,
    search,
    streams,
    throughput,
    waited,
)
from tests.performance.floor import DEFAULT_PATH, FloorMissing, load_floor
from tests.performance.report import BarMissed
from tests.performance.sizes import Sizes, a_look

BENCHMARKS: Final[Mapping[str, Callable[[Sizes], Awaitable[None]]]] = {
    "throughput": throughput.measure,
    "latency": latency.measure,
    "idle": idle.measure,
    "failover": failover.measure,
    "scaling": scaling.measure,
    "memory": memory.measure,
    "accepting": accepting.measure,
    "waited": waited.measure,
    "crowd": crowd.measure,
    "recording": recording.measure,
    "record_cost": record_cost.measure,
    "search": search.measure,
    "catchup": catchup.measure,
    "streams": streams.measure,
    "observed": observed.measure,
    "metrics_cost": metrics_cost.measure,
}
_NEED_FLOOR: Final = frozenset({"throughput", "latency"})
_BY_DEFAULT: Final = ("throughput", "latency", "waited", "idle")  # the others take minutes each: name them, or `all`


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.performance.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}, or all")
    parser.add_argument("--floor", type=Path, default=DEFAULT_PATH, help="kafka_floor.py (default: %(default)s)")
    parser.add_argument("--look", action="store_true", help="small sizes: does it work? The figures say little")
    arguments = parser.parse_args()
    names = [*BENCHMARKS] if "all" in arguments.names else arguments.names or _BY_DEFAULT
    if unknown := sorted(set(names) - BENCHMARKS.keys()):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    sizes = a_look(arguments.floor) if arguments.look else Sizes(arguments.floor)
    try:
        if not _NEED_FLOOR.isdisjoint(names):
            load_floor(arguments.floor)
    except FloorMissing as error:
        print(error, file=sys.stderr)
        return 2
    missed = False
    for name in names:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_awaited(BENCHMARKS[name](sizes)))
        except BarMissed as error:
            print(error, file=sys.stderr)
            missed = True
    return int(missed)


async def _awaited(measuring: Awaitable[None]) -> None:
    await measuring


if __name__ == "__main__":
    sys.exit(main())
