"""The tables of mutants fit the code: a guard that was moved is still taken out by `make mutants-security`."""

from pathlib import Path

import pytest

from tests.mutants.mutant import ROOT, Mutant
from tests.mutants.security import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_code(mutant: Mutant) -> None:
    """What it replaces stands in its file once, its source compiles without it, and its tests exist."""
    source = (ROOT / mutant.file).read_text()
    compile(mutant.of(source), mutant.file, "exec")
    for test in mutant.tests.split():
        assert (ROOT / Path(test.partition("::")[0])).is_file(), test


def test_no_two_mutants_have_one_name() -> None:
    """A name on the command line means one of them."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
