"""Rules and alerts: they ask for metrics that exist, each alert is tested and has its heading in the runbook."""

import re
from typing import Any

import pytest
import yaml

from tests.support.promtool import ROOT, needs_promtool, promtool
from tests.support.queries import faults_of, series

DEPLOY = ROOT / "deploy" / "prometheus"
RULES = sorted((DEPLOY / "rules").glob("*.yml"))
CASES = DEPLOY / "tests" / "alerts.yml"


def rules() -> list[dict[str, Any]]:
    """Return every rule of every file."""
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = [rule for rule in rules() if "alert" in rule]


def known_series() -> dict[str, set[str]]:
    """Return the series of the services, and those that recording rules make."""
    return series() | {rule["record"]: set() for rule in rules() if "record" in rule}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_what_exists(rule: dict[str, Any]) -> None:
    assert faults_of(rule["expr"], known_series()) == []


@pytest.mark.parametrize(
    ("query", "faults"),
    [
        ("sum(rate(api_request_total[5m]))", ["no metric is called api_request_total"]),
        ('api_requests_total{code="500"}', ["api_requests_total has no label code"]),
        ("sum by (tenant) (active_pipelines)", ["nothing under `by (tenant)` has a label tenant"]),
        ('max(sum by (le) (rate(pipeline_duration_seconds_bucket{status="failed"}[5m])))', []),
    ],
)
def test_a_wrong_query_is_found(query: str, faults: list[str]) -> None:
    """So that the test above can fail."""
    assert faults_of(query, series()) == faults


def test_buckets_that_rules_name_exist() -> None:
    """An objective that is no bucket's bound would be a query without data."""
    from anabranch.shared.runtime.metrics import SECONDS

    bounds = {str(float(bound)) for bound in SECONDS}
    named = {bound for rule in rules() for bound in re.findall(r'le="([^"]+)"', rule["expr"])}
    assert named
    assert named <= bounds


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    assert alert["labels"]["severity"] in {"page", "ticket"}
    assert alert["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
    section = (ROOT / "docs" / "runbook.md").read_text().split(f"\n## {name}\n")[1].split("\n## ")[0]
    assert "- Look: " in section
    assert "- Do: " in section


def test_the_runbook_has_no_heading_without_an_alert() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert headings == [alert["alert"] for alert in ALERTS]


def test_every_metric_that_the_runbook_names_exists() -> None:
    named = set(
        re.findall(
            r"\banabranch_(?:gateway|orchestrator|steps|history|process)_\w+",
            (ROOT / "docs" / "runbook.md").read_text(),
        )
    )
    known = set(series()) | {name.rsplit("_", 1)[0] for name in series() if name.endswith("_bucket")}
    assert named
    assert named - known == set()


def test_every_alert_fires_in_a_case_of_promtool() -> None:
    cases = yaml.safe_load(CASES.read_text())["tests"]
    fired = {sample["labels"] for case in cases for test in case["promql_expr_test"] for sample in test["exp_samples"]}
    assert fired == {f'{{alertname="{alert["alert"]}"}}' for alert in ALERTS}
    for case in cases:
        for given in case["input_series"]:
            assert faults_of(given["series"], series()) == [], case["name"]


@needs_promtool
def test_promtool_finds_nothing_wrong() -> None:
    promtool("check", "rules", *map(str, RULES))
    promtool("check", "config", "--syntax-only", str(DEPLOY / "prometheus.yml"))


@needs_promtool
def test_every_fault_fires_its_alert_and_no_other() -> None:
    """A healthy stack fires none: what each case expects is the whole list."""
    promtool("test", "rules", str(CASES))
