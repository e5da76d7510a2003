"""What has to hold before the first test.

Hypothesis is imported: its plugin would import it after the last test, for its summary. By then CPython 3.11's parser
may have lost count of its recursion (`SystemError: AST constructor recursion depth mismatch`, cpython#106905), and
pytest ends with a traceback although every test has passed.

SIGINT is not ignored: a shell ignores it for a job in the background, as CI may start one, and every process the tests
start would inherit that and never hear of its Ctrl-C.

What a test does to the process's logging ends with it: a later one would miss the lines that it looks for.

The gateways that tests start count nobody: tests send more than a client may. Tests of the limits set their own.
"""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import hypothesis  # noqa: F401
import pytest
import structlog

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

for _limit in ("ANABRANCH_RATE_LIMIT", "ANABRANCH_READ_RATE_LIMIT"):
    os.environ.setdefault(_limit, "0")

_DEADLINE_S: Final = {"chaos": 900}
"""Seconds for each test of a folder, where pyproject's 600 do not do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test of these folders its deadline, unless it has one of its own."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in _DEADLINE_S and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_DEADLINE_S[folder]))


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what a test does to structlog and to the root logger."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    is_configured, before = structlog.is_configured(), structlog.get_config()
    yield
    root.setLevel(level)
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    if is_configured:
        structlog.configure(**before)
    else:
        structlog.reset_defaults()
