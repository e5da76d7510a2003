"""`python -m tests.hostile`: attack a stack for ten minutes; exit code 1 when a bar is missed.

HOSTILE_MINUTES=10 HOSTILE_SEED=0 HOSTILE_KINDS="sql bomb,misdeed" python -m tests.hostile
"""

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path

from tests.hostile.attacks import ATTACKS
from tests.hostile.battle import fight


def main() -> int:
    """Read the command line, fight, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("HOSTILE_MINUTES") or 10))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("HOSTILE_SEED") or 0))
    parser.add_argument("--kinds", default=os.environ.get("HOSTILE_KINDS") or ",".join(ATTACKS))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="anabranch-hostile-", ignore_cleanup_errors=True) as folder:
        report = asyncio.run(fight(Path(folder), chosen.minutes, chosen.seed, chosen.kinds.split(",")))
    print(report)
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
