"""docs/logs.md lists what is logged."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_logs_page_is_true() -> None:
    page = runpy.run_path(str(DOCS / "generate_logs.py"))["page"]
    assert (DOCS / "logs.md").read_text() == page(), "run: python docs/generate_logs.py"


def test_an_event_is_a_fixed_text() -> None:
    """Whoever looks for an event can: what differs from line to line is a value beside it."""
    for said in runpy.run_path(str(DOCS / "generate_logs.py"))["said"]():
        assert "{" not in said.event
        assert said.event == said.event.strip()


def test_a_known_line_is_found() -> None:
    """So that an empty page cannot be true."""
    found = list(runpy.run_path(str(DOCS / "generate_logs.py"))["said"]())
    assert len(found) > 50
    assert ("partition restored", "info") in {(each.event, each.level) for each in found}
