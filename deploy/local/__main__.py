"""`python -m anabranch.deploy.local` is `anabranch up`."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from anabranch.deploy.local.stack import DEFAULT_PORT, up


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run the stack."""
    parser = argparse.ArgumentParser(prog="python -m anabranch.deploy.local", description=up.__doc__)
    parser.add_argument("--fresh", action="store_true", help="clear the data directory first")
    parser.add_argument("--orchestrators", type=_count, default=1, metavar="N")
    parser.add_argument("--workers", type=_count, default=1, metavar="N", help="of every step type")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="the gateway's; gives way when it is taken")
    parser.add_argument("--observe", action="store_true", help="add a Prometheus and a Grafana, if installed")
    parser.add_argument("--data-dir", type=Path, default=None, help="default: ANABRANCH_HOME, or .anabranch")
    return asyncio.run(up(**vars(parser.parse_args(arguments))))


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
