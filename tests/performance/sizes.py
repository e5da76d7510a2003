"""How much is measured: the figures of record, or a look that says whether a benchmark works."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Sizes:
    """The numbers of all benchmarks, and where the floor is."""

    floor: Path
    blocks: int = 5
    pipelines: int = 5_000  # of one block
    latency_samples: int = 3_000
    latency_block: int = 50
    waited_samples: int = 1_500
    waited_s: float = 20.0
    quiet_s: float = 30.0
    idle_s: float = 60.0
    active_runs: int = 5_000
    changelog_records: int = 1_000_000
    long_steps: int = 5_000
    short_steps: int = 50
    total_steps: int = 50_000
    memory_runs: int = 40_000
    compaction_s: float = 150.0
    clients: int = 1_000
    rounds: int = 4  # of each client
    recorded_runs: int = 1_000_000
    searches: int = 50  # of each kind
    backlog_events: int = 100_000
    streams: int = 1_000
    streams_s: float = 60.0
    think_s: float = 8.0  # of a client between two runs
    cost_pipelines: int = 2_000  # of one block, with metrics and without
    observed_s: float = 600.0
    observed_per_s: int = 30  # runs
    observed_pipelines: int = 100
    observed_tenants: int = 50


def a_look(floor: Path) -> Sizes:
    """Return sizes that take a minute, all benchmarks together a few."""
    return Sizes(
        floor, blocks=3, pipelines=500, latency_samples=100, latency_block=20, waited_samples=100, waited_s=3,
        quiet_s=3, idle_s=5, active_runs=200, changelog_records=10_000, long_steps=1_000, total_steps=4_000,
        memory_runs=2_000, compaction_s=5, clients=100, rounds=2, recorded_runs=20_000, searches=10,
        backlog_events=5_000, streams=100, streams_s=10, think_s=0.5,
        cost_pipelines=300, observed_s=60, observed_pipelines=10, observed_tenants=5,
    )  # fmt: skip
