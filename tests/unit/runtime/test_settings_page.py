"""docs/settings.md says what the settings classes say."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_settings_page_is_true() -> None:
    page = runpy.run_path(str(DOCS / "generate_settings.py"))["page"]
    assert (DOCS / "settings.md").read_text() == page(), "run: python docs/generate_settings.py"


def test_every_setting_says_what_it_means() -> None:
    page = (DOCS / "settings.md").read_text()
    assert [line for line in page.splitlines() if line.endswith("|  |")] == []
