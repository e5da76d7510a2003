"""What searches and figures look like over HTTP and by the command."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from click.testing import CliRunner
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.client.cli import main
from tests.unit.gateway.fakes import Bench, a_gateway, problem

from .test_search import a_run, fill


@pytest.fixture
async def gateway(redis: Redis, database: AsyncEngine) -> AsyncIterator[Bench]:
    """Yield a gateway with a hundred runs in its record."""
    await fill(database, [a_run(number, "default") for number in range(100)])
    async with a_gateway(redis, record=database) as bench:  # type: ignore[arg-type]
        yield bench


async def asked(gateway: Bench, path: str, **query: Any) -> Any:
    """Return what is answered to a question."""
    async with gateway.client.get(path, params=query) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def test_pages_are_followed_by_their_cursors(gateway: Bench) -> None:
    """Each run once, with what a list shows of it."""
    found, query = [], {"status": "failed", "limit": "7", "counts": "true"}
    while True:
        page = await asked(gateway, "/v1/runs", **query)
        found += page["runs"]
        assert (page["counts"], page["counts_are_all"]) == ({"failed": 17}, True)
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert [run["id"] for run in found] == [f"default-{number:05}" for number in range(98, 0, -6)]
    assert found[0] == {
        "id": "default-00098", "pipeline": "p2", "revision": None, "status": "failed", "labels": {"all": "yes"},
        "created_at": "1970-01-01T00:00:01.098000Z", "started_at": "1970-01-01T00:00:01.098000Z",
        "finished_at": "1970-01-01T00:00:01.196000Z", "error_type": "HttpError",
    }  # fmt: skip


async def test_every_filter_can_be_asked_for(gateway: Bench) -> None:
    """Labels, inputs, times and words together."""
    page = await asked(
        gateway, "/v1/runs", label="all=yes", input="n=2", pipeline="p2",
        since="1970-01-01T00:00:01.020Z", until="1970-01-01T00:00:01.06Z",
        error_type="HttpError", text="WENT", status="failed",
    )  # fmt: skip
    assert [run["id"] for run in page["runs"]] == ["default-00044"]
    assert (await asked(gateway, "/v1/runs", since="1h"))["runs"] == []


async def test_figures_are_answered_by_pipeline_and_by_step(gateway: Bench) -> None:
    """With what they are of."""
    found = await asked(gateway, "/v1/statistics", since="1970-01-01T00:00:00Z", pipeline="p0")
    assert found == {
        "since": "1970-01-01T00:00:00.000000Z", "looked_at": 17, "is_all": True,
        "statistics": [
            {"pipeline": "p0", "ended": 17, "failed": 0, "failure_rate": 0.0, "p50_ms": 48, "p95_ms": 96}
        ],
    }  # fmt: skip
    by_step = await asked(gateway, "/v1/statistics", since="1970-01-01T00:00:00Z", by="step")
    assert {each["step"] for each in by_step["statistics"]} == {"s"}
    assert (await asked(gateway, "/v1/statistics"))["statistics"] == []


@pytest.mark.parametrize(
    "query",
    [
        "status=odd", "limit=0", "limit=201", "limit=x", "cursor=x", "since=yesterday", "since=2026-01-31T12:00:00",
        "until=9999999d", "label=x", "label==", "revision=-1", "revision=9999999999", "counts=1", "text=", "odd=1",
        "pipeline=a&pipeline=b", "text=" + 201 * "x", "since=", "until=", "&".join(f"label=a=b{n}" for n in range(11)),
    ],
)  # fmt: skip
async def test_what_cannot_be_asked_is_told(gateway: Bench, query: str) -> None:
    """With a 400 that says what it should be."""
    async with gateway.client.get(f"/v1/runs?{query}") as answer:
        assert (await problem(answer))["status"] == 400


@pytest.mark.parametrize("query", ["since=", "since=never", "by=", "by=run", "since=1h&since=2h", "odd=1"])
async def test_what_figures_cannot_be_asked_for_is_told(gateway: Bench, query: str) -> None:
    """What is there and empty is not what is left out."""
    async with gateway.client.get(f"/v1/statistics?{query}") as answer:
        assert (await problem(answer))["status"] == 400


async def test_without_a_record_nothing_is_found(redis: Redis) -> None:
    """And the answer says what to set."""
    async with a_gateway(redis) as gateway:  # type: ignore[arg-type]
        for path in ("/v1/runs", "/v1/statistics"):
            async with gateway.client.get(path) as answer:
                document = await problem(answer)
                assert (answer.status, "DATABASE_URL" in document["detail"]) == (503, True)


async def test_the_commands_show_what_is_found(gateway: Bench) -> None:
    """As a table, and as JSON a program may read."""

    async def said(*command: str) -> str:
        url = str(gateway.client.make_url("")).rstrip("/")
        result = await asyncio.to_thread(CliRunner().invoke, main, [*command, "--url", url])
        assert result.exit_code == 0, result.output
        return str(result.output)

    shown = await said("runs", "--status", "failed", "--label", "all=yes", "--limit", "3", "--counts")
    assert [word in shown for word in ("default-00098", "default-00086", "HttpError", "17 failed")] == [True] * 4
    assert "default-00080" not in shown
    listed = [json.loads(line) for line in (await said("runs", "--status", "failed", "--all", "--json")).splitlines()]
    assert len(listed) == 17
    figures = await said("stats", "--since", "1970-01-01T00:00:00Z", "--by", "step")
    assert [word in figures for word in ("p0", "p95", "s")] == [True] * 3
