"""A real Prometheus scrapes a real stack under load: it has every panel's metrics, and no alert fires."""

import asyncio
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from anabranch.deploy.grafana.panels import ALL
from anabranch.deploy.local.ports import free_port
from anabranch.deploy.local.prometheus import LocalPrometheus, binary
from anabranch.deploy.local.services import STEP_TYPES, anabranch_services
from anabranch.deploy.local.stack import LocalStack
from tests.performance.submitter import Submitter
from tests.performance.throughput import diamonds

WITHIN_S = 120.0
# Nothing of the kind happens on a healthy stack: their series come with the first of its kind, or a quantile has none.
NOTHING_TO_SHOW = {
    "Dead letters", "Commands refused by their topic", "Restore", "Not HTTP as it should be",
    "Without or with wrong credentials", "Messages ignored, by reason",
}  # fmt: skip

needs_prometheus = pytest.mark.skipif(
    binary() is None, reason="Prometheus is not installed: run deploy/prometheus/install.sh"
)


async def ask(session: aiohttp.ClientSession, url: str, query: str) -> list[Any]:
    """Return the samples of a query."""
    async with session.get(f"{url}/api/v1/query", params={"query": query}) as answer:
        said = await answer.json()
    assert said["status"] == "success", said
    found: list[Any] = said["data"]["result"]
    return found


def queries() -> list[tuple[str, str]]:
    """Return every panel's title, with a query as Grafana asks it."""
    panels = [panel for shown in ALL for row in shown.rows.values() for panel in row]
    return [
        (panel.title, re.sub(r"\$(uses|instance)\b", ".*", query.expr.replace("$__rate_interval", "1m")))
        for panel in panels
        for query in panel.queries
    ]


@needs_prometheus
async def test_every_panel_has_data_under_load_and_no_alert_fires(tmp_path: Path) -> None:
    """Every process is scraped, runs are submitted and read until the last query has samples."""
    expected = {"gateway", "orchestrator", "history", *STEP_TYPES}
    async with (
        asyncio.timeout(3 * WITHIN_S),
        LocalStack(tmp_path, services=anabranch_services(), port=free_port()) as stack,
        LocalPrometheus(tmp_path, interval_s=1.0) as prometheus,
        aiohttp.ClientSession() as session,
        Submitter(stack.gateway_url) as submitter,
    ):
        deadline = asyncio.get_running_loop().time() + WITHIN_S
        while True:
            await submitter.submit(diamonds(20, b"?wait=30s"))
            for run_id in submitter.accepted[-20:]:
                async with session.get(f"{stack.gateway_url}/v1/runs/{run_id}") as answer:
                    assert answer.status == 200
            up = {each["metric"]["instance"] for each in await ask(session, prometheus.url, "up == 1")}
            empty = [(title, asked) for title, asked in queries() if not await ask(session, prometheus.url, asked)]
            if up == expected and {title for title, _ in empty} <= NOTHING_TO_SHOW:
                break
            if asyncio.get_running_loop().time() > deadline:
                pytest.fail(f"scraped: {sorted(up)}; without data: {empty}")
        assert await ask(session, prometheus.url, 'ALERTS{alertstate="firing"}') == []
        samples = await ask(session, prometheus.url, "sum(scrape_samples_scraped)")
        print("series of the whole stack:", samples[0]["value"][1], "panels without data:", sorted(dict(empty)))
