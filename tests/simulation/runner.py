"""Runs seeds: one with a trace, or very many on all cores."""

import gc
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from . import rules
from .simulation import Outcome, Product, simulate
from .tracing import NO_LOG, loud

PROCESSES = 2
_CHUNK = 25


def is_restoring(seed: int) -> bool:
    """Whether a seed is run in the mode that restores after every record: every eighth is."""
    return seed % 8 == 7


@dataclass(slots=True)
class Tally:
    """What many seeds came to."""

    seeds: int = 0
    drew: Counter[str] = field(default_factory=Counter)
    failed: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0
    cpu_s: float = 0.0

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Take up the outcomes of some seeds."""
        for outcome in outcomes:
            self.seeds += 1
            self.drew += outcome.drew
            self.cpu_s += outcome.cpu_s
            if outcome.faults:
                self.failed.append(outcome)


def run_chunk(seeds: Sequence[int], without: str | None = None) -> list[Outcome]:
    """Run some seeds in this process, one after the other; without a rule, until one of them fails."""
    _expect_the_dead()
    outcomes = []
    for seed in seeds:
        with rules.product_without(without) as product:
            outcomes.append(simulate(seed, product=product, restoring=is_restoring(seed)))
        if without is not None and outcomes[-1].faults:
            break
    gc.collect()
    return outcomes


def _expect_the_dead() -> None:
    """Be silent about tasks of killed processes: they are collected in the middle of their work."""
    sys.unraisablehook = lambda _: None
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)


def new_pool() -> ProcessPoolExecutor:
    """Return processes that run seeds, each with an interpreter of its own."""
    return ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn"))


def run_many(pool: ProcessPoolExecutor, seeds: Sequence[int]) -> Tally:
    """Run seeds on all processes."""
    tally, began = Tally(), time.perf_counter()
    chunks = [seeds[i : i + _CHUNK] for i in range(0, len(seeds), _CHUNK)]
    for outcomes in pool.map(run_chunk, chunks):
        tally.add(outcomes)
    tally.seconds = time.perf_counter() - began
    return tally


def first_failure(pool: ProcessPoolExecutor, rule: str, seeds: Sequence[int]) -> Outcome | None:
    """Return the first of the seeds, as far as any was run, that fails without the rule."""
    chunks = [list(seeds[i : i + _CHUNK]) for i in range(0, len(seeds), _CHUNK)]
    for at in range(0, len(chunks), PROCESSES):
        running = [pool.submit(run_chunk, chunk, rule) for chunk in chunks[at : at + PROCESSES]]
        failed = [outcome for run in running for outcome in run.result() if outcome.faults]
        if failed:
            return failed[0]
    return None


def replay(seed: int, *, trace: bool, restoring: bool, without: str | None) -> int:
    """Run one seed and print what is wrong with it."""
    _expect_the_dead()
    with rules.product_without(without) as product:
        outcome = simulate(
            seed, product=product, restoring=restoring or is_restoring(seed), logger=loud(print) if trace else NO_LOG
        )
    print(f"seed {seed}: {outcome.virtual_s:.0f} s, {outcome.callbacks} callbacks, digest {outcome.digest}")
    print(", ".join(f"{count} {name}" for name, count in sorted(outcome.drew.items())))
    for fault in outcome.faults:
        print(f"WRONG: {fault}")
    return 1 if outcome.faults else 0


__all__ = ["Product", "Tally", "is_restoring", "replay", "run_chunk", "run_many"]
