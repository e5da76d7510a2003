"""What the read side answers a tenant is the same whether others have runs or not, whatever he knows of them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.services.history.projection import project
from anabranch.services.history.store import RedisSnapshots
from anabranch.shared.contracts.ids import new_run_id
from anabranch.shared.runtime.redis import RedisKeys
from tests.security.test_api_keys import a_key
from tests.support.record_rows import record
from tests.unit.gateway.fakes import Bench, a_gateway
from tests.unit.history.fakes import run_ended, run_started, step_succeeded

GUARD_S = 60.0
RUN, *OTHERS = (new_run_id() for _ in range(3))
QUESTIONS = (
    "/v1/runs",
    "/v1/runs?counts=true",
    "/v1/runs?limit=1",
    "/v1/runs?label=a%3Db",
    "/v1/runs?input=n%3D1",
    "/v1/runs?pipeline=p&status=succeeded",
    "/v1/statistics?since=2026-01-01T00:00:00Z",
    "/v1/statistics?since=2026-01-01T00:00:00Z&by=step&pipeline=p",
    f"/v1/runs/{RUN}",
    f"/v1/runs/{RUN}?wait=1s",
    f"/v1/runs/{RUN.upper()}",
    f"/v1/runs/{RUN}/steps/a/attempts",
    f"/v1/runs/{RUN}/events",
    f"/v1/runs/{RUN}/events?last_event_id=3",
    f"/v1/runs/{RUN}/events?follow=false",
)


class Answer(NamedTuple):
    """What a client was told, without what differs from answer to answer."""

    status: int
    head: frozenset[str]
    body: Any


@pytest.fixture
async def gateway(redis: Redis, database: AsyncEngine) -> AsyncIterator[Bench]:
    """Yield a gateway whose tenant `acme` has runs, in Redis and in the record."""
    for run_id in (RUN, *OTHERS):
        started = run_started(run_id).model_copy(update={"tenant": "acme"})
        events = [started, step_succeeded(2, "a", run_id), run_ended(3, run_id)]
        await record(database, events)
        await RedisSnapshots(redis, RedisKeys("pipelines"), active_ttl_s=60, ended_ttl_s=60).apply(project(events))
    async with a_gateway(redis, record=database, auth="keys") as bench:  # type: ignore[arg-type]
        yield bench


async def told(gateway: Bench, question: str, key: str, etag: str = '"none"') -> Answer:
    """Return the answer to the owner of a key."""
    headers = {"X-API-Key": key, "If-None-Match": etag}
    async with asyncio.timeout(GUARD_S), gateway.client.get(question, headers=headers) as answer:
        body = await answer.json(content_type=None) if "json" in answer.content_type else await answer.text()
    if isinstance(body, dict):
        body = {name: value for name, value in body.items() if name not in ("instance", "since")}
    return Answer(answer.status, frozenset(answer.headers), body)


async def test_a_stranger_is_answered_as_if_there_were_no_runs(gateway: Bench) -> None:
    """Right after their owner has asked the same; with his cursor, the ids of his runs and the state they are in."""
    acme, evil, nobody = (a_key(gateway, tenant=tenant)[0] for tenant in ("acme", "evil", "nobody"))
    page = await told(gateway, "/v1/runs?limit=1", acme)
    async with gateway.client.get(f"/v1/runs/{RUN}", headers={"X-API-Key": acme}) as answer:
        etag = answer.headers["ETag"]
    questions = [*QUESTIONS, f"/v1/runs?cursor={page.body['next_cursor']}"]
    found = {}
    for question in questions:
        owners = await told(gateway, question, acme)
        assert owners.status in (200, 204)
        found[question] = [await told(gateway, question, evil), await told(gateway, question, evil, etag)]
        assert owners not in found[question]
    unknown = new_run_id()
    for question, answers in found.items():
        assert (await told(gateway, question, acme, etag)).status in (200, 204, 304)
        asked = question.replace(RUN, unknown).replace(RUN.upper(), unknown.upper())
        expected = await told(gateway, asked, nobody)
        expected = expected._replace(body=_renamed(expected.body, unknown))
        assert answers == [expected, expected], question
        assert expected.status == (404 if "/v1/runs/" in question else 200)


def _renamed(body: Any, unknown: str) -> Any:
    if isinstance(body, dict) and "detail" in body:
        return body | {"detail": body["detail"].replace(unknown, RUN).replace(unknown.upper(), RUN.upper())}
    return body
