"""`python -m tests.simulation SEED [--trace] [--restoring]`: replay one seed."""

import argparse
import sys

from .runner import replay


def main() -> int:
    """Replay a seed and print what is wrong with it; exit code 1 if something is."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--trace", action="store_true", help="print every record and every line that processes log")
    parser.add_argument("--restoring", action="store_true", help="restore after every record")
    parser.add_argument("--without", metavar="RULE", help="with this rule of the architecture switched off")
    chosen = parser.parse_args()
    return replay(chosen.seed, trace=chosen.trace, restoring=chosen.restoring, without=chosen.without)


if __name__ == "__main__":
    sys.exit(main())
