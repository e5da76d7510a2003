"""Part 3: a tenant's runs are nobody else's, and nobody else learns that there are any."""

from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from anabranch.services.gateway.cache import RunCache
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.shared.contracts.ids import new_run_id, run_id_for_key
from anabranch.shared.contracts.messages import RunEnded
from anabranch.shared.record.database import open_database
from anabranch.shared.record.reading import RecordReader
from anabranch.shared.record.schema import upgrade
from anabranch.shared.runtime.snapshots import fields_of
from tests.security.test_api_keys import a_key
from tests.support.record_rows import record
from tests.unit.gateway.fakes import a_gateway, problem
from tests.unit.history.fakes import run_started


async def test_a_foreign_run_is_answered_like_an_unknown_one() -> None:
    """In words and in what Redis is asked; waiting for it too; projected or only accepted."""
    async with a_gateway(auth="keys") as gateway:
        ours = {"X-API-Key": a_key(gateway)[0]}
        theirs = {"X-API-Key": a_key(gateway, tenant="evil")[0]}
        accepted = (await (await gateway.submit(headers=ours)).json())["id"]
        projected = new_run_id()
        gateway.redis.hashes[gateway.keys.run(projected)] = {
            b"seq": b"1", b"status": b"running", b"tenant": b"acme", b"run": b'{"tenant":"acme","steps":{}}'
        }  # fmt: skip
        for query in ("", "?wait=1"):
            told = set()
            for run_id in (accepted, projected, new_run_id()):
                before = gateway.redis.calls
                answer = await gateway.client.get(f"/v1/runs/{run_id}{query}", headers=theirs)
                words = (await problem(answer))["detail"].replace(run_id, "ID")
                told.add((answer.status, words, gateway.redis.calls - before, frozenset(answer.headers)))
            assert len(told) == 1
            assert next(iter(told))[0] == 404
        for run_id in (accepted, projected):
            assert (await gateway.client.get(f"/v1/runs/{run_id}", headers=ours)).status == 200


async def test_whoever_names_a_foreign_run_reads_nothing_of_it(tmp_path: Path) -> None:
    """In Redis and in the record each, whatever was looked at before."""
    database = open_database(f"sqlite:///{tmp_path}/record.db", name="test")
    await upgrade(database)
    run_id = new_run_id()
    started = run_started(run_id).model_copy(update={"tenant": "acme"})
    await record(database, [started])
    async with a_gateway() as gateway:
        gateway.redis.hashes[gateway.keys.run(run_id)] = {b"seq": b"1", **fields_of(started)}
        cache: Any = RunCache(
            gateway.redis,  # type: ignore[arg-type]
            gateway.keys, GatewayMetrics(CollectorRegistry()), ended_ttl_s=1, is_all=False,
        )  # fmt: skip
        for reads in (cache, RecordReader(database)):
            for ask in (reads.standing, reads.fields):
                assert await ask(run_id, "acme") is not None
                assert await ask(run_id, "evil") is None
    assert await RecordReader(database).attempts(run_id, "a", "evil") is None
    await database.dispose()


async def test_one_key_of_two_tenants_is_two_runs() -> None:
    """Nobody can take another's Idempotency-Key, or learn of it."""
    async with a_gateway(auth="keys") as gateway:
        for tenant in ("acme", "evil"):
            key, _ = a_key(gateway, tenant=tenant)
            answer = await gateway.submit(headers={"X-API-Key": key, "Idempotency-Key": "k"})
            assert (answer.status, (await answer.json())["id"]) == (202, run_id_for_key(tenant, "k"))
        assert [message.tenant for message in gateway.log.submitted] == ["acme", "evil"]


async def test_an_event_of_a_run_that_never_began_makes_no_readable_run() -> None:
    """Whoever forges one shows nobody a run: whose it is stands in the event that begins it, and only there."""
    async with a_gateway() as gateway:
        run_id = new_run_id()
        forged = RunEnded(
            type="RunSucceeded", status="succeeded", run_id=run_id, seq=1, at="2026-01-01T00:00:00Z", started_at=""
        )
        gateway.redis.hashes[gateway.keys.run(run_id)] = {b"seq": b"1", **fields_of(forged)}
        for query in ("", "?wait=1"):
            answer = await gateway.client.get(f"/v1/runs/{run_id}{query}")
            assert answer.status == 404, await answer.text()
