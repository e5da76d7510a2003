r"""A NUL that an expression or a handler makes: it is kept where JSON can say it, and stops nobody.

Submissions are refused that hold one. CEL makes one of `'\u0000'`, though, and any handler may return one.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.services.history.projection import project
from anabranch.services.history.store import RedisSnapshots
from anabranch.shared.contracts.ids import new_run_id
from anabranch.shared.contracts.messages import RunEventMessage
from anabranch.shared.runtime.redis import RedisKeys
from tests.support.builders import a_run, a_step, a_submission, a_transform, failed, succeeded
from tests.support.record_rows import record
from tests.unit.gateway.fakes import Bench, a_gateway
from tests.unit.history.fakes import run_ended, run_started

KEYS = RedisKeys("pipelines")
TENANT = "default"
GUARD_S = 60.0


def made_by_expressions(run_id: str) -> list[RunEventMessage]:
    """Return the events of a run that makes NULs of its inputs, of outputs, and as keys, and has them in an error."""
    steps = {
        "odd": a_step(),
        "failing": a_step(continue_on_error=True),
        "of_inputs": a_transform("${{ inputs.s + '\\u0000' + inputs.s }}"),
        "of_outputs": a_transform({"text": "<${{ steps.odd.output.text }}>", "all": "${{ steps.odd.output }}"}, "odd"),
        "refused": a_transform("${{ steps.odd.output.text + 'x' }}", "odd", continue_on_error=True),
        "of_keys": a_transform("${{ {'a\\u0000b': [inputs.s, '\\u0000']} }}"),
        "after": a_step("of_inputs", "of_outputs", "of_keys", with_={"v": "${{ steps.of_keys.output }}"}),
    }  # fmt: skip
    run = a_run()
    run.run_id = run_id
    run.takes(
        a_submission(
            steps, run_id=run_id, inputs={"s": "x"}, outputs={"o": "${{ steps.of_inputs.output }}"}
        ).model_copy(update={"tenant": TENANT}),
        succeeded("odd", {"text": "\0", "k\0": 1}, run_id=run_id),
        failed("failing", "Odd\0", message="no\0luck", details={"\0": "\0"}, run_id=run_id),
    )
    run.takes(succeeded("after", run.commands[-1].input, run_id=run_id))
    return [event for event in run.events if event.run_id == run_id]


async def written(redis: Redis, database: AsyncEngine, events: list[RunEventMessage]) -> None:
    """Have the events in Redis and in the record, as history writes them."""
    await RedisSnapshots(redis, KEYS, active_ttl_s=60, ended_ttl_s=60).apply(project(events))
    await record(database, events)


async def read(gateway: Bench, path: str, **query: str) -> Any:
    """Return the answer to a read that must be there."""
    async with asyncio.timeout(GUARD_S), gateway.client.get(path, params=query) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


@pytest.fixture
async def gateway(redis: Redis, database: AsyncEngine) -> AsyncIterator[Bench]:
    """Yield a gateway that reads both."""
    async with a_gateway(redis, record=database) as bench:  # type: ignore[arg-type]
        yield bench


async def test_a_nul_that_a_run_makes_is_read_as_it_was_made(
    gateway: Bench, redis: Redis, database: AsyncEngine
) -> None:
    """From Redis and from the record the same, by the run, its steps' attempts and its events."""
    run_id = new_run_id()
    events = made_by_expressions(run_id)
    await written(redis, database, events)
    of_redis = await read(gateway, f"/v1/runs/{run_id}")
    await redis.flushall()
    assert await read(gateway, f"/v1/runs/{run_id}") == of_redis
    assert (of_redis["status"], of_redis["outputs"]) == ("succeeded", {"o": "x\0x"})
    steps = of_redis["steps"]
    assert steps["of_outputs"]["output"] == {"text": "<\0>", "all": {"text": "\0", "k\0": 1}}
    assert steps["of_keys"]["output"] == {"a\0b": ["x", "\0"]}
    assert steps["after"]["output"] == {"v": {"a\0b": ["x", "\0"]}}
    assert steps["refused"]["error"]["type"] == "ExpressionError"
    assert "steps.odd.output.text holds a NUL" in steps["refused"]["error"]["message"]
    error = {"type": "Odd\0", "message": "no\0luck", "details": {"\0": "\0"}}
    assert steps["failing"]["error"] == error
    (attempt,) = (await read(gateway, f"/v1/runs/{run_id}/steps/failing/attempts"))["attempts"]
    assert attempt["error"] == error


async def test_a_run_that_ends_with_a_nul_is_found_and_others_with_it(
    gateway: Bench, redis: Redis, database: AsyncEngine
) -> None:
    """No column of a database holds one: what is searched has a mark in its place, what is read has not."""
    run_id, other = new_run_id(), new_run_id()
    run = a_run()
    run.run_id = run_id
    run.takes(
        a_submission({"a": a_step()}, run_id=run_id).model_copy(update={"tenant": TENANT}),
        failed("a", "Odd\0", message="no\0luck", run_id=run_id),
    )
    ended = [event for event in run.events if event.run_id == run_id]
    await written(redis, database, [*ended, run_started(other), run_ended(2, other)])
    found = (await read(gateway, "/v1/runs"))["runs"]
    assert {each["id"] for each in found} == {run_id, other}
    (found_run,) = (await read(gateway, "/v1/runs", text="luck"))["runs"]
    assert (found_run["id"], found_run["error_type"]) == (run_id, "Odd\ufffd")
    assert (await read(gateway, f"/v1/runs/{run_id}"))["error"]["message"] == "step a: no\0luck"
