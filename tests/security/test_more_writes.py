"""Part 8: what else changes something is guarded like a submission."""

from anabranch.shared.contracts.ids import new_run_id
from tests.security.test_api_keys import a_key
from tests.unit.gateway.fakes import Bench, a_gateway, problem


def a_running_run(gateway: Bench, tenant: str) -> str:
    run_id = new_run_id()
    gateway.redis.hashes[gateway.keys.run(run_id)] = {b"status": b"running", b"tenant": tenant.encode()}
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
