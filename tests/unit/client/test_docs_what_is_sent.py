"""docs/what-is-sent.md names, for each of its 22 points, tests that there are."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "what-is-sent.md").read_text()
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def functions_of(file: Path) -> set[str]:
    """Return the names of a module's functions; none when there is no such file."""
    if not file.is_file():
        return set()
    tree = ast.parse(file.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_each_test_that_is_named_is_there() -> None:
    """Whoever renames a test has to say so there."""
    named = set(NAMED.findall(PAGE))
    assert len(named) > 50, "the page is read"
    there = {file: functions_of(ROOT / "tests" / file) for file, _ in named}
    assert {(file, name) for file, name in named if name not in there[file]} == set()


def test_each_point_has_its_row_and_each_row_a_test() -> None:
    """From 1 to 22, in order."""
    rows = re.findall(r"^\| (\d+) \|(.*)$", PAGE, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 23))
    assert [number for number, row in rows if not NAMED.search(row)] == []
