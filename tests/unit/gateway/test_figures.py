"""Every reason, use and source that the gateway counts is declared: none of its own is counted as `other`."""

import ast
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry

from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.reads import Source
from anabranch.services.gateway.route_classes import RouteClass

GATEWAY = Path(__file__).parents[3] / "services" / "gateway"
COUNTED = {"run_refused", "redis_failed", "turned_away", "issuer_asked"}


def literals() -> Iterator[tuple[str, str]]:
    """Yield each method of the metrics that is called with a text, and the text; what `_ask` is for, too."""
    for path in sorted(GATEWAY.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            last = node.args[-1]
            if isinstance(last, ast.Constant) and isinstance(last.value, str):
                name = "redis_failed" if path.name == "cache.py" and node.func.attr == "_ask" else node.func.attr
                if name in COUNTED:
                    yield name, last.value


def test_what_the_gateway_counts_is_declared() -> None:
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    found = set(literals())
    assert {name for name, _ in found} == COUNTED
    for name, value in found:
        getattr(metrics, name)(value)
    for source in Source:
        metrics.run_read(source.value)
    for each in RouteClass:
        metrics.rate_limited(each.value)
    values = {value for family in registry.collect() for sample in family.samples for value in sample.labels.values()}
    assert "other" not in values
