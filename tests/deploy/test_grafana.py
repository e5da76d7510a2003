"""The dashboards: what the generator makes is what is committed, and every query asks for what exists."""

import re
from pathlib import Path

import orjson
import pytest
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard as Model

from anabranch.deploy.grafana import generate
from anabranch.deploy.grafana.panels import ALL, Dashboard, Panel
from tests.deploy.test_prometheus import ALERTS, known_series
from tests.support.prometheus import asked_as_of_grafana
from tests.support.promtool import needs_promtool, promtool
from tests.support.queries import faults_of

PANELS = [(shown, panel) for shown in ALL for panels in shown.rows.values() for panel in panels]
UNITS = {"s", "short", "cps", "bytes", "Bps", "percentunit"}  # of Grafana's own
ids = [f"{shown.uid}: {panel.title}" for shown, panel in PANELS]


@pytest.mark.parametrize("shown", ALL, ids=lambda shown: shown.uid)
def test_the_committed_json_is_what_the_generator_makes(shown: Dashboard) -> None:
    committed = (generate.DASHBOARDS / f"{shown.uid}.json").read_text()
    assert committed == generate.dashboard(shown), "run: python -m anabranch.deploy.grafana.generate"


@pytest.mark.parametrize("shown", ALL, ids=lambda shown: shown.uid)
def test_the_json_is_a_dashboard_by_the_schema_of_the_sdk(shown: Dashboard) -> None:
    """It reads back, with every panel and every query of it."""
    register_default_plugins()
    read = Model.from_json(orjson.loads((generate.DASHBOARDS / f"{shown.uid}.json").read_bytes()))
    panels = [panel for panel in read.panels or [] if panel.type_val != "row"]
    assert [panel.title for panel in panels] == [panel.title for row in shown.rows.values() for panel in row]
    asked = [target.expr for panel in panels for target in panel.targets]
    assert asked == [query.expr for row in shown.rows.values() for panel in row for query in panel.queries]


def test_no_dashboard_is_left_over() -> None:
    assert {path.stem for path in generate.DASHBOARDS.iterdir()} == {shown.uid for shown in ALL}


def test_the_page_is_true() -> None:
    assert generate.PAGE.read_text() == generate.page(), "run: python -m anabranch.deploy.grafana.generate"


def test_every_query_had_samples_after_the_load_test() -> None:
    """A query that was changed is to be asked again: make quiet-alerts."""
    samples = orjson.loads(generate.SAMPLES.read_bytes())["samples"]
    asked = {query.expr for _, panel in PANELS for query in panel.queries}
    assert samples.keys() == asked
    assert [query for query in asked if not samples[query] > 0] == []


@pytest.mark.parametrize(("shown", "panel"), PANELS, ids=ids)
def test_a_panel_asks_for_what_exists(shown: Dashboard, panel: Panel) -> None:
    for query in panel.queries:
        assert faults_of(asked_as_of_grafana(query.expr), known_series()) == []
    assert panel.unit in UNITS
    assert not panel.runbook or panel.runbook in {alert["alert"] for alert in ALERTS}


@pytest.mark.parametrize(("shown", "panel"), PANELS, ids=ids)
def test_a_legend_names_labels_that_its_query_keeps(shown: Dashboard, panel: Panel) -> None:
    """Otherwise Grafana shows the braces."""
    for query in panel.queries:
        for label in re.findall(r"{{(\w+)}}", query.legend):
            kept = re.findall(r"by \(([^)]*)\)", query.expr)
            assert label in kept[0] if kept else label == "instance"


@needs_promtool
def test_promtool_parses_every_query(tmp_path: Path) -> None:
    """As rules, since it has no other way to be given many of them."""
    rules = [
        {"record": f"query:{number}", "expr": asked_as_of_grafana(query.expr)}
        for number, query in enumerate(query for _, panel in PANELS for query in panel.queries)
    ]
    asked = tmp_path / "queries.yml"
    asked.write_bytes(orjson.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    said = promtool("check", "rules", str(asked))
    assert f"{len(rules)} rules found" in said
