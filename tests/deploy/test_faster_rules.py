"""The rules that tests/chaos/test_alerts.py has fire are ours: nothing but their times differs."""

import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from anabranch.shared.runtime.metrics import SECONDS
from tests.chaos.faults import ACTS
from tests.chaos.test_alerts import TIMES
from tests.deploy.test_prometheus import rules
from tests.support.faster_rules import faster, faster_rule, write_faster_rules
from tests.support.promtool import needs_promtool, promtool
from tests.support.queries import parts_of

RULES = rules()


def windows_s(expr: str) -> list[float]:
    """Return every window and offset of a query, as Prometheus' grammar finds them."""
    found = []
    for part in parts_of(promql_parser.parse(expr)):
        if isinstance(part, promql_parser.MatrixSelector):
            found.append(part.range.total_seconds())
        if isinstance(part, promql_parser.VectorSelector) and part.offset is not None:
            found.append(part.offset.total_seconds())
    return found


def without_times(expr: str) -> str:
    """Return the query without the numbers of times and of thresholds."""
    return re.sub(r'(?<=[\[ "])\d+(\.\d+)?(ms|[smhd])?(?=[\]\s")]|$)', "N", expr)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_every_window_is_divided_and_the_rest_is_ours(rule: dict[str, Any]) -> None:
    made = faster_rule(rule, TIMES)
    assert windows_s(made["expr"]) == [seconds / TIMES for seconds in windows_s(rule["expr"])]
    assert without_times(made["expr"]) == without_times(rule["expr"])
    assert {key: value for key, value in made.items() if key not in ("expr", "for")} == {
        key: value for key, value in rule.items() if key not in ("expr", "for")
    }


@pytest.mark.parametrize(
    ("expr", "made"),
    [
        ("max(a_seconds) > 900", "max(a_seconds) > 30"),
        ("max(lag) > 1000 and max(deriv(lag[10m])) > 0", "max(lag) > 1000 and max(deriv(lag[20000ms])) > 0"),
        ('increase(a_seconds_bucket{le="30.0"}[15m])', 'increase(a_seconds_bucket{le="1.0"}[30000ms])'),
        ('rate(a_seconds_bucket{le="0.5"}[5m])', 'rate(a_seconds_bucket{le="0.5"}[10000ms])'),
        ("histogram_quantile(0.9, rate(a_seconds_bucket[5m])) > 0.5", None),
        ("a unless a offset 15m", "a unless a offset 30000ms"),
    ],
)
def test_for_how_long_is_divided_and_how_late_is_not(expr: str, made: str | None) -> None:
    assert faster(expr, 30) == (made or expr.replace("5m", "10000ms"))


def test_a_bucket_is_still_one() -> None:
    bounds = {str(float(bound)) for bound in SECONDS}
    made = {bound for rule in RULES for bound in re.findall(r'le="([^"]+)"', faster_rule(rule, TIMES)["expr"])}
    assert made <= bounds


@needs_promtool
def test_prometheus_reads_them(tmp_path: Path) -> None:
    write_faster_rules(tmp_path / "rules", TIMES)
    promtool("check", "rules", *map(str, (tmp_path / "rules").glob("*.yml")))


def test_every_alert_has_a_fault_that_it_fires_by() -> None:
    cases = [case for act in ACTS for row in act for case in row]
    assert {name for _, names in cases for name in names} == {rule["alert"] for rule in RULES if "alert" in rule}
