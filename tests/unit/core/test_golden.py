"""Decisions do not depend on the process, and do not change unless the rules' version says so."""

import os
import subprocess
import sys
from pathlib import Path

from anabranch.services.orchestrator.core.decide import RULES_VERSION
from tests.golden.golden_log import decided, path_of, read

ROOT = Path(__file__).parents[3]


def test_the_golden_log_is_decided_byte_for_byte_as_it_was() -> None:
    """A log kept from each version of the rules: decided otherwise, runs under way would change with an upgrade."""
    assert path_of(RULES_VERSION).exists(), "record it: python -m tests.golden.golden_log record"
    for number, (inbox, effects) in enumerate(read(path_of(RULES_VERSION))):
        for record, (now, then) in enumerate(zip(decided(inbox), effects, strict=True)):
            assert now == then, (
                f"record {record} of life {number} is decided otherwise than under rules {RULES_VERSION}: if that is"
                " meant, raise RULES_VERSION in core/decide.py and record its log"
                " (python -m tests.golden.golden_log record)"
            )


def test_processes_with_different_hash_seeds_decide_alike() -> None:
    """No set is iterated whose order a process chooses: effects and changelog are the same bytes."""
    assert len({_digest(seed) for seed in ("1", "2", "random")}) == 1


def _digest(hash_seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.golden.golden_log", "digest"],
        cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()
