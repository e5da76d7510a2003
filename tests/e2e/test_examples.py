"""The two examples on the real stack, on the data that `make demo` reads."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from anabranch.client import AnabranchClient, Run
from anabranch.deploy.local.stack import LocalStack

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))  # the examples are scripts, not a package

from serve import documented_modules, served  # noqa: E402

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AnabranchClient]:
    async with LocalStack(tmp_path_factory.mktemp("stack")) as stack, AnabranchClient(stack.gateway_url) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site() -> AsyncIterator[str]:
    async with served() as url:
        yield url


async def run_of(client: AnabranchClient, file: str, **inputs: object) -> Run:
    accepted = await client.submit((EXAMPLES / file).read_text(), inputs=inputs)
    return [run async for run in client.watch(accepted.id)][-1]


async def test_airports_are_profiled(client: AnabranchClient, site: str) -> None:
    run = await run_of(client, "data-pipeline/airports.yaml", url=f"{site}/airports.csv", top=5)
    assert run.succeeded, run
    report = (run.outputs or {})["report"]
    assert report["airports"] > 25_000
    assert report["countries"] > 200
    assert report["top"][0]["country"] == "US"
    assert len(report["top"]) == 5
    aggregations = [run.steps[name] for name in ("by_country", "by_elevation", "by_time_zone")]
    assert max(step.queued_at for step in aggregations) <= min(step.finished_at for step in aggregations), "in parallel"


async def test_table_that_is_not_whole_fails_before_it_is_aggregated(client: AnabranchClient, site: str) -> None:
    run = await run_of(client, "data-pipeline/airports.yaml", url=f"{site}/airports.csv", min_rows=1_000_000)
    assert run.status == "failed"
    assert run.steps["validate"].error is not None
    assert "airports" in run.steps["validate"].error.message
    assert {run.steps[name].status for name in ("by_country", "profile", "report")} <= {"skipped", "cancelled"}


async def test_audit_finds_the_links_to_pages_that_nobody_wrote(client: AnabranchClient, site: str) -> None:
    run = await run_of(client, "site-audit/audit.yaml", site=f"{site}/docs/")
    assert run.succeeded, run
    audit = (run.outputs or {})["audit"]
    broken = {row["page"] for row in audit["broken"]}
    assert {"builtins.html", "re.html"} <= broken
    assert broken.isdisjoint(f"{module}.html" for module in documented_modules())
    assert audit["score"] == 100 * (audit["checked"] - len(broken)) // audit["checked"]
    assert audit["unlisted"] == ["."]
    assert run.steps["sitemap"].attempt == 3, "it answers 503 twice"
