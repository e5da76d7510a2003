"""docs/security.md names tests that there are."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_each_test_that_the_threat_model_names_is_there() -> None:
    """Each file below `tests/` in the table of threats."""
    page = (ROOT / "docs" / "security.md").read_text()
    named = set(re.findall(r"`((?:security|unit|e2e|chaos)/[\w/]+\.py)`", page))
    assert len(named) > 15, "the table is read"
    assert {name for name in named if not (ROOT / "tests" / name).is_file()} == set()
