"""Figures as a table for people and as JSON for later."""

import os
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from anabranch.deploy.local.home import Home, HomeError, default_home


class BarMissed(Exception):
    """A benchmark found less than it has to."""


@dataclass(slots=True)
class Report:
    """What a benchmark found: rows of what, value, and the bar it is held against."""

    name: str
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)

    def row(self, what: str, value: str, bar: str = "") -> None:
        """Add a row."""
        self.rows.append((what, value, bar))

    def note(self, **figures: Any) -> None:
        """Add figures to the JSON."""
        self.figures.update(figures)

    def require(self, what: str, holds: bool) -> None:
        """Raise `BarMissed` unless a bar is kept."""
        if not holds:
            raise BarMissed(f"{self.name}: {what}: missed")

    def finish(self) -> None:
        """Print the table and write the JSON."""
        load_after = os.getloadavg()
        self.row("load average before, after", f"{self.load_before[0]:.1f}, {load_after[0]:.1f}")
        _print(self.name, self.rows)
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        said = {
            "benchmark": self.name, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine,
            "load_before": self.load_before, "load_after": load_after, "figures": self.figures,
        }  # fmt: skip
        path = results_dir() / f"{self.name}.json"
        path.write_bytes(orjson.dumps(said, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))


def results_dir() -> Path:
    """Return `bench` in the data directory, which is marked as ours first: else `up --fresh` would not clear it."""
    home = Home(default_home())
    with suppress(HomeError):  # a stack uses it: then it is marked
        home.hold()
        home.release()
    path = home.path / "bench"
    path.mkdir(exist_ok=True)
    return path


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(percent / 100 * len(ordered)) - 1))]


def _print(title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    table = Table(title=title, title_justify="left")
    for heading in ("", "measured", "bar"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
