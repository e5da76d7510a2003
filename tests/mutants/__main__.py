"""`python -m tests.mutants [NAME…]`: take out one guard after the other; exit code 1 when no test notices one."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.mutants.mutant import Checkout
from tests.mutants.security import MUTANTS


def main() -> int:
    """Break a copy of the checkout in one place after the other, and print what was noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="the mutants to try; all when none is named")
    named = parser.parse_args().names
    if unknown := set(named) - {mutant.name for mutant in MUTANTS}:
        parser.error(f"there is no mutant {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in MUTANTS if not named or mutant.name in named]
    missed = []
    with tempfile.TemporaryDirectory(prefix="anabranch-mutants-") as folder:
        checkout = Checkout(Path(folder))
        tests = sorted({test for mutant in chosen for test in mutant.tests.split()})
        if not checkout.are_green(tests):
            print("the tests fail without a mutant already", file=sys.stderr)
            return 2
        for mutant in chosen:
            is_noticed = checkout.notices(mutant)
            print(
                f"{'noticed' if is_noticed else 'MISSED '}  {mutant.name:45}  {mutant.file}  by {mutant.tests}",
                flush=True,
            )
            if not is_noticed:
                missed.append(mutant.name)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} mutants are noticed", *missed, sep="\n  ")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
