"""The attempts of a step over HTTP."""

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.services.gateway.answers import AttemptsDocument
from anabranch.shared.contracts.errors import StepError
from anabranch.shared.contracts.ids import new_run_id
from anabranch.shared.contracts.messages import StepChanged
from tests.support.record_rows import record
from tests.unit.gateway.fakes import a_gateway, problem
from tests.unit.history.fakes import AT, LATER, run_ended, run_started, step_succeeded, steps_queued


def retrying(run_id: str, seq: int) -> StepChanged:
    """Return the event of an attempt that failed and will be followed by another."""
    return StepChanged(
        type="StepRetrying", run_id=run_id, seq=seq, at=LATER, step="a", uses="http", status="waiting", attempt=1,
        queued_at=AT, started_at=AT, error=StepError.of("Boom", "no"), waiting_on="a retry in 1s",
    )  # fmt: skip


async def test_the_attempts_of_a_step_come_with_their_times(redis: Redis, database: AsyncEngine) -> None:
    """One that failed, one that was lost, and one that succeeded; a step that was never sent out has none."""
    run_id = new_run_id()
    events = [
        run_started(run_id), steps_queued(2, "a", run_id=run_id), retrying(run_id, 3),
        steps_queued(4, "a", run_id=run_id, attempt=2), steps_queued(5, "a", run_id=run_id, attempt=3),
        step_succeeded(6, "a", run_id).model_copy(update={"attempt": 3}), run_ended(7, run_id),
    ]  # fmt: skip
    await record(database, events)
    async with a_gateway(redis, record=database) as gateway:  # type: ignore[arg-type]
        answer = await gateway.client.get(f"/v1/runs/{run_id.upper()}/steps/a/attempts")
        document = await answer.json()
        assert (document["id"], document["step"]) == (run_id, "a")
        shown = AttemptsDocument.model_validate(document).attempts
        assert [(each.status, each.queued_ms, each.ran_ms, each.finished_at) for each in shown] == [
            ("failed", 0, 1000, LATER),
            ("lost", None, None, None),
            ("succeeded", 0, 1000, LATER),
        ]
        assert document["attempts"][0]["error"]["type"] == "Boom"
        answer = await gateway.client.get(f"/v1/runs/{run_id}/steps/b/attempts")
        assert (answer.status, (await answer.json())["attempts"]) == (200, [])


async def test_what_is_not_there_is_404_whosever_it_is(redis: Redis, database: AsyncEngine) -> None:
    """An unknown step, an unknown run, a foreign one, and what is no id; a run that was just accepted has its steps."""
    run_id = new_run_id()
    await record(database, [run_started(run_id)])
    async with a_gateway(redis, record=database) as gateway:  # type: ignore[arg-type]
        accepted = (await (await gateway.submit()).json())["id"]
        answer = await gateway.client.get(f"/v1/runs/{accepted}/steps/a/attempts")
        assert (answer.status, (await answer.json())["attempts"]) == (200, [])
        for path in (f"{run_id}/steps/nosuch", f"{accepted}/steps/nosuch", f"{new_run_id()}/steps/a", "x/steps/a"):
            answer = await gateway.client.get(f"/v1/runs/{path}/attempts")
            assert (await problem(answer))["status"] == 404
        assert (await gateway.client.get(f"/v1/runs/{run_id}/steps/a/attempts?x=1")).status == 400
    async with a_gateway(redis, record=database, default_tenant="evil") as gateway:  # type: ignore[arg-type]
        answer = await gateway.client.get(f"/v1/runs/{run_id}/steps/a/attempts")
        assert "No run" in (await problem(answer))["detail"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_database_that_cannot_be_read_is_named(redis: Redis, empty: AsyncEngine) -> None:
    """It has no tables here; where no record is kept that is said."""
    async with a_gateway(redis, record=empty) as gateway:  # type: ignore[arg-type]
        answer = await gateway.client.get(f"/v1/runs/{new_run_id()}/steps/a/attempts")
        assert "the record of runs does not answer" in (await problem(answer))["detail"]
    async with a_gateway() as gateway:
        answer = await gateway.client.get(f"/v1/runs/{new_run_id()}/steps/a/attempts")
        assert (answer.status, "DATABASE_URL" in (await problem(answer))["detail"]) == (503, True)
