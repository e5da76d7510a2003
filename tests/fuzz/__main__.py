"""`python -m tests.fuzz`: draw cases for every target in turn, for an hour; exit code 1 when something was found.

    FUZZ_MINUTES=60 FUZZ_SEED=0 FUZZ_TARGETS=bodies,inbox python -m tests.fuzz
    python -m tests.fuzz --replay .fuzz/found/inbox-1a2b3c.case

Each target runs in slices, in a process of its own that may die. What was interesting is kept in `.fuzz/`, and is where
the next hunt begins.
"""

import argparse
import asyncio
import json
import os
import pickle
import sys
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.hunt import FOLDER, Hunt, replay
from tests.fuzz.targets import TARGETS

SLICE_S = 20.0


def main() -> int:
    """Read the command line and hunt."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("FUZZ_MINUTES") or 60))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("FUZZ_SEED") or 0))
    parser.add_argument("--targets", default=os.environ.get("FUZZ_TARGETS") or ",".join(TARGETS))
    parser.add_argument("--replay", type=Path, metavar="CASE", help="do again what was found")
    parser.add_argument("--slice", nargs=3, metavar=("TARGET", "SEED", "SECONDS"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.replay:
        replay(chosen.replay)
        return 0
    if chosen.slice:
        name, seed, seconds = chosen.slice
        print(json.dumps(Hunt(name, int(seed)).run(float(seconds))), flush=True)
        return 0
    return asyncio.run(hunt(chosen.targets.split(","), chosen.seed, chosen.minutes))


async def hunt(names: list[str], seed: int, minutes: float) -> int:
    """Give each target its slices in turn; return the exit code."""
    until = time.monotonic() + 60 * minutes
    tries: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    found: dict[str, str] = {}
    number = 0
    while time.monotonic() < until:
        for name in names:
            length = min(SLICE_S, until - time.monotonic())
            if length <= 0:
                break
            started = time.monotonic()
            said = await _slice(name, seed + number, length)
            number += 1
            tries[name] += said["tries"]
            seconds[name] += time.monotonic() - started
            for where, what in said["found"].items():
                if where not in found:
                    found[where] = what
                    print(f"FOUND {name}: {what}\n  python -m tests.fuzz --replay {where}", flush=True)
        _print_rates(names, tries, seconds, len(found))
    print(f"{sum(tries.values())} cases, seed {seed}, {len(found)} findings")
    for where, what in found.items():
        print(f"  {where}: {what}")
    return 1 if found else 0


async def _slice(name: str, seed: int, seconds: float) -> dict[str, dict[str, str] | int]:  # type: ignore[misc]
    current = FOLDER / "current" / f"{name}.case"
    command = (sys.executable, "-m", "tests.fuzz", "--slice", name, str(seed), str(seconds))
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, complained = await process.communicate()
    last = said.decode().strip().rpartition("\n")[2]
    if process.returncode == 0 and last:
        return json.loads(last)
    how = f"the process ended with {process.returncode}"
    if not current.exists():
        raise SystemExit(f"{name}: {how} before its first case\n{complained.decode(errors='replace')[-3000:]}")
    tried, case = pickle.loads(current.read_bytes())
    kept = Hunt(name, seed).keep(case, how, complained.decode(errors="replace")[-20_000:])
    return {"tries": tried, "found": {kept: how}}


def _print_rates(names: list[str], tries: Counter[str], seconds: Counter[str], found: int) -> None:
    rates = "  ".join(f"{name} {tries[name]} ({60 * tries[name] / max(1, seconds[name]):.0f}/min)" for name in names)
    print(f"{rates}  found {found}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
