"""Whatever befalls the processes, the guarantees hold; and each rule of the design is needed for that."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.simulation.rules import RULES
from tests.simulation.runner import first_failure, is_restoring, new_pool, run_many
from tests.simulation.workload import ODD

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "2000"))
FIRST = int(os.environ.get("SIMULATION_FIRST_SEED", "0"))

ALWAYS_DRAWN = (
    "crashes of an orchestrator",
    "crashes of a worker",
    "handlers that died with their worker",
    "workers that a step took down",
    "zombies that were frozen",
    "zombies that went on",
    "fences",
    "phantom producers",
    "repeats",
    "late repeats of a command",
    "delays",
    "rejected appends",
    "unknown outcomes of appends",
    "failed transactions",
    "unknown outcomes of transactions",
    "requests lost with their process",
    "outages of a partition",
    "unwritable command topics",
    "command topics that seemed to be gone",
    "refused commands",
    "swallowed listener errors",
    "rebalance listeners that raised",
    "stale records served",
    "stale records dropped",
    "steps of broker time",
    "outages of Redis",
    "losses of Redis",
    "workers added and removed",
    "rebalances",
    "series of hand-overs",
    "graceful stops",
    "poison messages",
    "decisions that raised",
    "runs that could not even be failed",
    "costly evaluations",
    "turns that go on",
    *(f"odd values: {odd}" for odd in ODD),
    "failed restores",
    "harmed changelogs: step",
    "harmed changelogs: unknown step",
    "harmed changelogs: definition",
    "harmed changelogs: submission",
    "harmed changelogs: head",
    "processes ended by an error",
    "restores",
    "restores after a record",
    "leases",
    "lapsed leases",
    "repeated commands dropped: in_hand",
    "repeated commands dropped: lately",
    "repeated commands dropped: result",
    "repeated commands dropped: lease",
)
"""What many seeds must have drawn, or they prove nothing."""


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with new_pool() as processes:
        yield processes


def test_the_guarantees_hold_whatever_befalls_the_processes(
    pool: ProcessPoolExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every run ends, decided once, its handlers run once while their workers live; nothing is left behind."""
    tally = run_many(pool, range(FIRST, FIRST + SEEDS))
    with capsys.disabled():
        per_seed_ms = 1000 * tally.cpu_s / tally.seeds
        print(f"\nsimulation: {tally.seeds} seeds in {tally.seconds:.1f} s, {per_seed_ms:.1f} ms of CPU each; drew")
        print("\n".join(f"  {tally.drew[name]:>7} {name}" for name in sorted(tally.drew)))
    for outcome in tally.failed[:5]:
        print(f"seed {outcome.seed}: {outcome.faults[:5]}")
        print(f"  replay with: .venv/bin/python -m tests.simulation {outcome.seed} --trace")
    assert not tally.failed, f"{len(tally.failed)} seeds failed: {[o.seed for o in tally.failed[:20]]}"
    assert not [name for name in ALWAYS_DRAWN if not tally.drew[name]], "not drawn once"


@pytest.mark.parametrize("rule", RULES)
def test_without_this_rule_the_simulation_fails(
    pool: ProcessPoolExecutor, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the rule is idle, or the simulation has no teeth."""
    outcome = first_failure(pool, rule, range(2000))
    assert outcome is not None, f"nothing goes wrong without: {rule}"
    with capsys.disabled():
        print(f"\n  without {rule}: seed {outcome.seed}: {outcome.faults[0]}")


def test_a_seed_is_replayed_exactly_in_any_process() -> None:
    """Two processes that hash texts differently append the same records in the same order."""
    said = [_replayed(seed, hash_seed) for seed in ("3", "7") for hash_seed in ("1", "2")]
    assert said[0] == said[1]
    assert said[2] == said[3]
    assert is_restoring(7)


def _replayed(seed: str, hash_seed: str) -> str:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.simulation", seed]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True).stdout
