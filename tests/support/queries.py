"""What a PromQL query asks for, by the metric declarations: every name and label must be one of ours."""

import runpy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import promql_parser

from anabranch.shared.runtime.metrics import Declared

ROOT = Path(__file__).parents[2]
_PARTS = ("lhs", "rhs", "expr", "args", "param", "vector_selector")
_OF_TARGETS = {"instance", "role", "job"}
_OF_PROCESSES = {
    "process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds",
    "process_start_time_seconds", "up", "ALERTS",
}  # fmt: skip
_OF_ALERTS = {"alertname", "alertstate", "severity"}


def declared() -> Iterator[Declared]:
    """Return every metric that the services declare."""
    containers = runpy.run_path(str(ROOT / "docs" / "generate_metrics.py"))["containers"]
    for _, metrics in containers():
        yield from metrics.declared


def series() -> dict[str, set[str]]:
    """Return the labels of every series that the services have, by name; those of the target come with the scrape."""
    found = {name: set(_OF_TARGETS) | (_OF_ALERTS if name == "ALERTS" else set()) for name in _OF_PROCESSES}
    for metric in declared():
        labels = set(metric.labels) | _OF_TARGETS
        if metric.kind == "histogram":
            found |= {f"{metric.name}_count": labels, f"{metric.name}_sum": labels}
            found[f"{metric.name}_bucket"] = labels | {"le"}
        else:
            found[metric.name] = labels
    return found


def faults_of(query: str, known: Mapping[str, set[str]]) -> list[str]:
    """Return what a query asks for that does not exist: series, or labels of them."""
    faults = []
    tree = promql_parser.parse(query)
    for part in parts_of(tree):
        if isinstance(part, promql_parser.VectorSelector):
            if part.name not in known:
                faults.append(f"no metric is called {part.name}")
                continue
            asked = {matcher.name for matcher in part.matchers.matchers}
            faults += [f"{part.name} has no label {name}" for name in sorted(asked - known[part.name])]
        if isinstance(part, promql_parser.AggregateExpr) and part.modifier is not None:
            labels: set[str] = set().union(*(known.get(each.name, set()) for each in _selectors(part.expr)))
            wanted = set(part.modifier.labels)
            if "label_replace" not in str(part.expr):
                faults += [f"nothing under `{part.modifier}` has a label {name}" for name in sorted(wanted - labels)]
    return faults


def _selectors(tree: Any) -> Iterator[Any]:
    return (part for part in parts_of(tree) if isinstance(part, promql_parser.VectorSelector))


def parts_of(tree: Any) -> Iterator[Any]:
    """Return a query's tree, part by part."""
    yield tree
    for name in _PARTS:
        found = getattr(tree, name, None)
        for part in found if isinstance(found, Sequence) and not isinstance(found, str) else [found]:
            if part is not None:
                yield from parts_of(part)
