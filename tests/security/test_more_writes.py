"""Part 8: what else changes something is guarded like a submission."""

import asyncio
from io import BytesIO
from typing import Any

import orjson

from anabranch.shared.contracts.ids import new_run_id, run_id_for_key
from tests.security.test_api_keys import a_key
from tests.unit.gateway.fakes import Bench, a_gateway, problem


def a_running_run(gateway: Bench, tenant: str) -> str:
    run_id = new_run_id()
    gateway.redis.hashes[gateway.keys.run(run_id)] = {
        b"seq": b"1", b"status": b"running", b"tenant": tenant.encode()
    }  # fmt: skip
    return run_id


async def test_cancelling_needs_the_scope_operate() -> None:
    """Who may submit and read may not stop what others of the tenant started."""
    async with a_gateway(auth="keys") as gateway:
        run_id = a_running_run(gateway, "acme")
        statuses = {}
        for scope in ("submit", "read", "operate", "admin"):
            key, _ = a_key(gateway, scope)
            answer = await gateway.client.post(f"/v1/runs/{run_id}/cancel", headers={"X-API-Key": key})
            statuses[scope] = answer.status
        nobody = await gateway.client.post(f"/v1/runs/{run_id}/cancel")
    assert statuses == {"submit": 403, "read": 403, "operate": 202, "admin": 202}
    assert nobody.status == 401
    assert len(gateway.log.records) == 2


async def test_a_foreign_run_is_cancelled_by_nobody_and_answered_like_an_unknown_one() -> None:
    """In words and in what Redis is asked: accepted, running, ended; also while Redis is away."""
    async with a_gateway(auth="keys") as gateway:
        ours = {"X-API-Key": a_key(gateway, "submit", "operate")[0]}
        theirs = {"X-API-Key": a_key(gateway, "operate", tenant="evil")[0]}
        accepted = (await (await gateway.submit(headers=ours)).json())["id"]
        ended = a_running_run(gateway, "acme")
        gateway.redis.hashes[gateway.keys.run(ended)][b"status"] = b"succeeded"
        for down, expected in ((False, 404), (True, 503)):
            gateway.redis.down = down
            told = set()
            for run_id in (accepted, a_running_run(gateway, "acme"), ended, new_run_id()):
                before = gateway.redis.calls
                answer = await gateway.client.post(f"/v1/runs/{run_id}/cancel", headers=theirs)
                words = (await problem(answer))["detail"].replace(run_id, "ID")
                told.add((answer.status, words, gateway.redis.calls - before, frozenset(answer.headers)))
            assert len(told) == 1
            assert next(iter(told))[0] == expected
        assert len(gateway.log.records) == 1


async def test_a_page_of_another_site_cancels_nothing() -> None:
    """As it submits nothing."""
    async with a_gateway() as gateway:
        run_id = a_running_run(gateway, "default")
        answer = await gateway.client.post(f"/v1/runs/{run_id}/cancel", headers={"Sec-Fetch-Site": "cross-site"})
        assert answer.status == 403
        assert gateway.log.records == []


async def test_cancelling_counts_as_a_change() -> None:
    """A flood of cancellations is bounded like one of submissions."""
    async with a_gateway(rate_limit=2) as gateway:
        run_id = a_running_run(gateway, "default")
        statuses = [(await gateway.client.post(f"/v1/runs/{run_id}/cancel")).status for _ in range(3)]
    assert statuses == [202, 202, 429]


RUN: dict[str, Any] = {"definition": {"name": "p", "steps": {"a": {"uses": "simulate"}}}}


async def send(gateway: Bench, *runs: Any, **headers: str) -> Any:
    sent = {"Content-Type": "application/json", **headers}
    return await gateway.client.post("/v1/runs:batch", data=BytesIO(orjson.dumps({"runs": list(runs)})), headers=sent)


async def statuses_of(response: Any) -> list[int]:
    return [result["status"] for result in (await response.json())["results"]]


async def test_a_batch_needs_the_scope_submit_and_is_its_tenants() -> None:
    """Keys of its runs are the tenant's own."""
    async with a_gateway(auth="keys") as gateway:
        for scope, expected in (("read", 403), ("operate", 403), ("submit", 200)):
            key, _ = a_key(gateway, scope)
            answer = await send(gateway, RUN | {"idempotency_key": "k"}, **{"X-API-Key": key})
            assert answer.status == expected
        other, _ = a_key(gateway, "submit", tenant="evil")
        answer = await send(gateway, RUN | {"idempotency_key": "k", "labels": {"a": "b"}}, **{"X-API-Key": other})
        assert await statuses_of(answer) == [202]
        assert (await send(gateway, RUN)).status == 401
    submitted = [(message.tenant, message.run_id) for message in gateway.log.submitted]
    assert submitted == [("acme", run_id_for_key("acme", "k")), ("evil", run_id_for_key("evil", "k"))]


async def test_each_run_of_a_batch_counts_as_a_submission() -> None:
    """Those over the limit are 429 and say when to come back; what was refused as wrong takes nobody's place."""
    async with a_gateway(rate_limit=10) as gateway:
        first = await send(gateway, RUN, RUN, {}, RUN, RUN)
        assert await statuses_of(first) == [202, 202, 422, 202, 202]
        assert first.headers["RateLimit"].startswith('"change";r=6;t=')
        second = await send(gateway, *[RUN] * 5, {}, *[RUN] * 3)
        assert await statuses_of(second) == [202, 202, 202, 202, 202, 422, 202, 429, 429]
        results = (await second.json())["results"]
        assert 1 <= results[-1]["retry_after"] <= 60
        assert results[-1]["problem"]["type"] == "urn:anabranch:problem:too-many-requests"
        assert second.headers["RateLimit"].startswith('"change";r=0;t=')
        assert gateway.count("rate_limited_total", **{"class": "change"}) == 2
        assert (await send(gateway, RUN)).status == 429
        assert (await gateway.submit()).status == 429
        assert len(gateway.log.records) == 10


async def test_a_batch_over_the_whole_limit_passes_as_far_as_the_limit_goes() -> None:
    """In its order; also while Redis is away, and nothing is refused without limits."""
    for down in (False, True):
        async with a_gateway(rate_limit=60) as gateway:
            gateway.redis.down = down
            assert await statuses_of(await send(gateway, *[RUN] * 100)) == [202] * 60 + [429] * 40
    async with a_gateway() as gateway:
        assert await statuses_of(await send(gateway, *[RUN] * 100)) == [202] * 100


async def test_batches_at_once_share_the_limit() -> None:
    """However they meet, no more runs than the limit are accepted."""
    async with a_gateway(rate_limit=60) as gateway:
        await asyncio.gather(*(send(gateway, *[RUN] * 25) for _ in range(4)))
        assert 50 <= len(gateway.log.records) <= 60


async def test_a_page_of_another_site_submits_no_batch() -> None:
    """As it submits no run."""
    async with a_gateway() as gateway:
        assert (await send(gateway, RUN, **{"Sec-Fetch-Site": "cross-site"})).status == 403


async def test_a_batch_costs_no_more_to_check_than_one_body_may() -> None:
    """Hundreds of runs with much that is wrong are answered within the budget of one body, one by one."""
    wrong = {"definition": {"name": "p", "steps": {"a": {"uses": "simulat"}}}} | {f"labe{n}": 1 for n in range(100)}
    async with a_gateway() as gateway:
        answer = await send(gateway, *[wrong] * 300)
        document = await answer.json()
    assert (answer.status, document["refused"]) == (200, 300)
    assert max(len(result["problem"]["errors"]) for result in document["results"]) <= 10
