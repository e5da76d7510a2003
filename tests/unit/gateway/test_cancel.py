"""`POST /v1/runs/{id}/cancel`."""

from typing import Any

import pytest

from anabranch.shared.contracts.ids import new_run_id
from anabranch.shared.contracts.limits import MAX_UNACKNOWLEDGED_BYTES
from anabranch.shared.contracts.messages import INBOX, CancelRun
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.runtime.errors import AppendFailed

from .fakes import Bench, a_gateway, problem


async def accepted(gateway: Bench) -> str:
    run_id: str = (await (await gateway.submit()).json())["id"]
    return run_id


def projected(gateway: Bench, status: str, tenant: str = "default") -> str:
    run_id = new_run_id()
    gateway.redis.hashes[gateway.keys.run(run_id)] = {
        b"seq": b"1", b"status": status.encode(), b"tenant": tenant.encode()
    }  # fmt: skip
    return run_id


async def cancel(gateway: Bench, run_id: str, **rest: Any) -> Any:
    return await gateway.client.post(f"/v1/runs/{run_id}/cancel", **rest)


async def test_a_cancellation_is_one_acknowledged_record_in_the_partition_of_its_run(gateway: Bench) -> None:
    """A run is cancelled as soon as it is accepted, before anybody has taken it up; 202 names it."""
    run_id = await accepted(gateway)
    response = await cancel(gateway, run_id)
    assert (response.status, await response.json()) == (202, {"id": run_id, "status": "accepted"})
    assert response.headers["Location"] == f"/v1/runs/{run_id}"
    partition, key, value = gateway.log.records[-1]
    assert (key, partition) == (run_id.encode(), partition_of(run_id.encode(), 12))
    assert INBOX.validate_json(value) == CancelRun(run_id=run_id)
    assert gateway.count("cancels_accepted_total") == 1


async def test_a_run_that_goes_on_is_cancelled_however_often_it_is_asked(gateway: Bench) -> None:
    """The core takes the first and passes over the others."""
    run_id = projected(gateway, "running")
    answers = [await cancel(gateway, run_id) for _ in range(3)]
    assert [(answer.status, (await answer.json())["status"]) for answer in answers] == [(202, "running")] * 3


async def test_a_run_id_in_capitals_is_found(gateway: Bench) -> None:
    """As it is for reading."""
    run_id = projected(gateway, "running")
    assert (await (await cancel(gateway, run_id.upper())).json())["id"] == run_id


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled", "timed_out"])
async def test_a_run_that_has_ended_is_409_with_how(status: str, gateway: Bench) -> None:
    """Nothing is written for it."""
    run_id = projected(gateway, status)
    answer = await problem(response := await cancel(gateway, run_id))
    assert (response.status, answer["type"]) == (409, "urn:anabranch:problem:conflict")
    assert (answer["id"], answer["run_status"]) == (run_id, status)
    assert status.replace("_", " ") in answer["detail"]
    assert gateway.log.records == []


@pytest.mark.parametrize("run_id", ["0199c8a0-0000-7000-8000-000000000000", "nobody", "a*", "%00", "x" * 500])
async def test_an_unknown_run_is_404(run_id: str, gateway: Bench) -> None:
    """Whatever it looks like, nothing is written for it."""
    assert (await problem(await cancel(gateway, run_id)))["status"] == 404
    assert gateway.log.records == []


async def test_without_redis_what_was_accepted_here_is_cancelled_and_others_come_back_later(gateway: Bench) -> None:
    """Whether a foreign run has ended is not known then; the core passes over what comes too late."""
    ours, other = await accepted(gateway), projected(gateway, "running")
    gateway.redis.down = True
    assert (await cancel(gateway, ours)).status == 202
    refused = await cancel(gateway, other)
    assert (refused.status, refused.headers["Retry-After"]) == (503, "1")


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_a_cancellation_that_kafka_does_not_acknowledge_is_503(how: str) -> None:
    """It may be asked for again."""
    async with a_gateway(append_timeout_s=0.05) as gateway:
        run_id = projected(gateway, "running")
        gateway.log.error = AppendFailed("gone") if how == "fails" else None
        gateway.log.hangs = how == "hangs"
        response = await cancel(gateway, run_id)
        assert ((await problem(response))["status"], response.headers["Retry-After"]) == (503, "1")
        assert gateway.count("appends_unknown_total") == 1


async def test_orchestrators_that_are_behind_are_told_what_they_need_not_do(gateway: Bench) -> None:
    """New runs have to wait, cancellations do not; what Kafka does not take is bounded all the same."""
    run_id = projected(gateway, "running")
    gateway.pressure.measured(gateway.settings.max_inbox_lag + 1)
    assert (await gateway.submit()).status == 503
    assert (await cancel(gateway, run_id)).status == 202
    gateway.log.unacknowledged_bytes = MAX_UNACKNOWLEDGED_BYTES
    assert (await cancel(gateway, run_id)).status == 503


async def test_a_query_is_refused_and_a_body_is_passed_over(gateway: Bench) -> None:
    """A client may send `{}`; the connection goes on."""
    run_id = projected(gateway, "running")
    assert (await problem(await cancel(gateway, run_id, params={"wait": "1s"})))["status"] == 400
    assert [(await cancel(gateway, run_id, json={})).status for _ in range(2)] == [202, 202]
