import asyncio
import re
from hashlib import blake2b
from typing import Any

import orjson
import pytest

from anabranch.shared.contracts.ids import run_id_for_key
from anabranch.shared.contracts.limits import MAX_UNACKNOWLEDGED_BYTES
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.runtime.errors import AppendFailed
from anabranch.shared.runtime.snapshots import END, RUN, STATUS

from .fakes import DIAMOND, Bench, a_gateway, announced, problem

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
KEY = {"Idempotency-Key": "order-1"}


async def test_an_accepted_run_is_one_acknowledged_record_in_its_partition(gateway: Bench) -> None:
    """202 names the run and where to read it."""
    response = await gateway.submit(inputs={"n": 3}, labels={"team": "x"})
    answer = await response.json()
    assert (response.status, answer["status"]) == (202, "accepted")
    assert UUID7.fullmatch(answer["id"])
    assert response.headers["Location"] == f"/v1/runs/{answer['id']}"
    [(partition, key, _)] = gateway.log.records
    [message] = gateway.log.submitted
    assert (key, partition) == (answer["id"].encode(), partition_of(answer["id"].encode(), 12))
    assert (message.run_id, message.inputs, message.labels) == (answer["id"], {"n": 3}, {"team": "x"})
    assert (message.keep_s, message.tenant, message.settings) == (0, "default", gateway.settings.stamped())
    assert orjson.loads(message.definition) == DIAMOND


async def test_defaults_of_inputs_are_filled_in(gateway: Bench) -> None:
    """The core sees every input."""
    await gateway.submit()
    assert gateway.log.submitted[0].inputs == {"n": 1}


async def test_a_submission_may_be_yaml(gateway: Bench) -> None:
    """The same document in YAML 1.2."""
    body = b"definition:\n  name: p\n  steps:\n    on: {uses: simulate}\nlabels: {a: yes}\n"
    response = await gateway.post(body, "application/yaml; charset=utf-8")
    assert response.status == 202, await response.text()
    assert gateway.log.submitted[0].labels == {"a": "yes"}


async def test_no_redis_is_asked_without_a_key(gateway: Bench) -> None:
    """The write path needs Kafka only."""
    gateway.redis.down = True
    assert (await gateway.submit()).status == 202
    assert gateway.redis.calls == 0


async def test_the_clients_trace_goes_on(gateway: Bench) -> None:
    """A `traceparent` that is none is left aside."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    await gateway.submit(headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    await gateway.submit(headers={"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"})
    first, second = gateway.log.submitted
    assert first.trace_id == trace
    assert second.trace_id == second.run_id.replace("-", "")


async def test_a_definition_is_validated_once_per_content(gateway: Bench) -> None:
    """Other inputs do not matter, a newly announced type does."""
    for n in range(3):
        await gateway.submit(inputs={"n": n})
    assert gateway.registry.get_sample_value("cache_misses_total", {"cache": "definitions"}) == 1
    gateway.step_types.announce(announced("more"))
    await gateway.submit()
    assert gateway.registry.get_sample_value("cache_misses_total", {"cache": "definitions"}) == 2


async def test_a_known_definition_with_a_duplicate_key_is_still_refused(gateway: Bench) -> None:
    """The cache is behind the strict parser."""
    await gateway.submit()
    body = orjson.dumps({"definition": DIAMOND}).replace(b'"name":"diamond"', b'"name":"diamond","name":"diamond"')
    response = await gateway.post(body)
    assert response.status == 400
    assert "twice" in (await problem(response))["detail"]


# ---- Idempotency -----------------------------------------------------------------------------------------------------


async def test_the_same_key_and_body_are_one_run_and_one_record(gateway: Bench) -> None:
    """The second answer is the first again."""
    first = await (await gateway.submit(headers=KEY)).json()
    second = await gateway.submit(headers=KEY)
    assert (second.status, await second.json()) == (202, first)
    assert first["id"] == run_id_for_key("default", "order-1")
    [message] = gateway.log.submitted
    assert (message.keep_s, len(message.body_hash)) == (86400, 32)


@pytest.mark.parametrize("redis_down", [False, True])
async def test_the_same_key_with_another_body_is_refused(gateway: Bench, redis_down: bool) -> None:
    """Also while Redis is away."""
    gateway.redis.down = redis_down
    await gateway.submit(headers=KEY)
    response = await gateway.submit(headers=KEY, inputs={"n": 2})
    assert (response.status, len(gateway.log.records)) == (422, 1)
    assert (await problem(response))["type"] == "urn:anabranch:problem:idempotency-key-reused"


async def test_another_gateways_key_is_known_through_redis(gateway: Bench) -> None:
    """Two gateways share nothing else."""
    await gateway.submit(headers=KEY)
    async with a_gateway(gateway.redis) as other:
        assert (await other.submit(headers=KEY, inputs={"n": 2})).status == 422
        assert (await other.submit(headers=KEY)).status == 202
        assert len(other.log.records) == 1  # it cannot know that the first was acknowledged: the core drops the repeat


async def test_a_projected_run_answers_its_key_without_a_record(gateway: Bench) -> None:
    """With the status it has by now."""
    run_id = run_id_for_key("default", "order-1")
    await gateway.submit(headers=KEY)
    body_hash = gateway.redis.strings.pop(gateway.keys.idempotency(run_id))
    gateway.redis.hashes[gateway.keys.run(run_id)] = {
        b"tenant": b"default",
        b"body_hash": body_hash,
        STATUS: b"succeeded",
    }
    async with a_gateway(gateway.redis) as other:
        response = await other.submit(headers=KEY)
        assert (response.status, await response.json()) == (200, {"id": run_id, "status": "succeeded"})
        assert other.log.records == []
        assert (await other.submit(headers=KEY, labels={"a": "b"})).status == 422


async def test_two_bodies_of_one_key_at_once_are_one_run(gateway: Bench) -> None:
    """The key is taken before anything is awaited."""
    gateway.redis.down = True
    answers = await asyncio.gather(*(gateway.submit(headers=KEY, inputs={"n": n}) for n in range(8)))
    assert sorted(answer.status for answer in answers) == [202] + [422] * 7
    assert len(gateway.log.records) == 1


@pytest.mark.parametrize("key", ["", " ", "a b", "ü", "x" * 256, "a\tb"])
async def test_a_bad_key_is_refused(gateway: Bench, key: str) -> None:
    """Before anything is appended."""
    response = await gateway.submit(headers={"Idempotency-Key": key})
    assert (response.status, gateway.log.records) == (400, [])
    await problem(response)


# ---- When Kafka is in trouble ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("headers", "advice"), [(KEY, "same key is safe"), ({}, "second run")])
async def test_an_unknown_outcome_names_the_run(headers: dict[str, str], advice: str) -> None:
    """503, with the id to look at and what a retry would do."""
    async with a_gateway(append_timeout_s=0.01) as gateway:
        gateway.log.hangs = True
        response = await gateway.submit(headers=headers)
        document = await problem(response)
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert document["id"] == gateway.log.submitted[0].run_id
        assert advice in document["detail"]


async def test_a_retry_after_an_unknown_outcome_is_appended_again(gateway: Bench) -> None:
    """It is the same run, whichever of them Kafka has."""
    gateway.log.error = AppendFailed("gone")
    document = await problem(await gateway.submit(headers=KEY))
    gateway.log.error = None
    again = await gateway.submit(headers=KEY)
    assert (again.status, (await again.json())["id"]) == (202, document["id"])
    assert len(gateway.log.records) == 1


async def test_pressure_is_answered_before_the_body_is_read(gateway: Bench) -> None:
    """503 with Retry-After, and nothing is appended."""
    gateway.pressure.measured(gateway.settings.max_inbox_lag + 1)
    behind = await gateway.post(b"not json")
    gateway.pressure.measured(0)
    gateway.log.unacknowledged = gateway.settings.max_unacknowledged
    stuck = await gateway.post(b"not json")
    gateway.log.unacknowledged = 0
    gateway.log.unacknowledged_bytes = MAX_UNACKNOWLEDGED_BYTES
    heavy = await gateway.post(b"not json")
    gateway.log.unacknowledged_bytes = 0
    gateway.pressure.inbox_exists = False
    missing = await gateway.post(b"not json")
    for response in (behind, stuck, heavy, missing):
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
        await problem(response)


async def test_nothing_is_refused_for_a_type_that_is_not_yet_read(gateway: Bench) -> None:
    """Until the step types were read to their end, submissions wait outside."""
    gateway.step_types.complete = False
    assert (await gateway.submit()).status == 503


# ---- Reads and waiting -----------------------------------------------------------------------------------------------


def project_run(gateway: Bench, run_id: str, status: str) -> None:
    header = {"pipeline": "diamond", "tenant": "default", "inputs": {}, "labels": {}, "steps": {"a": "simulate"}}
    gateway.redis.hashes[gateway.keys.run(run_id)] = {b"tenant": b"default", b"seq": b"1",
        RUN: orjson.dumps(header), STATUS: status.encode(), END: orjson.dumps({"outputs": {"x": 1}})
    }  # fmt: skip


async def test_an_accepted_run_is_readable_before_it_is_projected(gateway: Bench) -> None:
    """The gateway that accepted it answers, with every step pending."""
    run_id = (await (await gateway.submit(inputs={"n": 7}, labels={"a": "b"})).json())["id"]
    run = await (await gateway.client.get(f"/v1/runs/{run_id}")).json()
    assert (run["id"], run["status"], run["pipeline"], run["inputs"]) == (run_id, "accepted", "diamond", {"n": 7})
    assert (run["labels"], run["created_at"]) == ({"a": "b"}, "2026-01-31T12:00:00.000000Z")
    assert {step["status"] for step in run["steps"].values()} == {"pending"}
    assert run["steps"].keys() == DIAMOND["steps"].keys()


async def test_a_projected_run_is_read_from_its_snapshot(gateway: Bench) -> None:
    """It wins over what the gateway remembers."""
    run_id = (await (await gateway.submit()).json())["id"]
    project_run(gateway, run_id, "succeeded")
    run = await (await gateway.client.get(f"/v1/runs/{run_id}?wait=30s")).json()
    assert (run["status"], run["outputs"]) == ("succeeded", {"x": 1})


@pytest.mark.parametrize("run_id", ["nothing", "0" * 36, "..%2f..", "018f5e6e-0000-7000-8000-000000000000"])
async def test_a_run_that_nobody_knows_is_404(gateway: Bench, run_id: str) -> None:
    """Whatever is asked for."""
    response = await gateway.client.get(f"/v1/runs/{run_id}")
    assert response.status == 404
    await problem(response)


async def test_a_read_without_redis_is_503(gateway: Bench) -> None:
    """`accepted` might be old news by now."""
    run_id = (await (await gateway.submit()).json())["id"]
    gateway.redis.down = True
    response = await gateway.client.get(f"/v1/runs/{run_id}")
    assert (response.status, response.headers["Retry-After"]) == (503, "1")


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


async def test_a_waiting_submission_is_answered_when_its_run_ends(gateway: Bench) -> None:
    """200 with the run document."""
    waiting = asyncio.create_task(gateway.submit(query="?wait=30s"))
    await until(lambda: gateway.log.records)
    run_id = gateway.log.submitted[0].run_id
    project_run(gateway, run_id, "failed")
    gateway.watches.look(run_id)
    response = await waiting
    assert (response.status, (await response.json())["status"]) == (200, "failed")
    assert (gateway.watches.runs(), gateway.count("waiters")) == ([], 0)


async def test_a_waiting_submission_is_202_when_the_time_is_up(gateway: Bench) -> None:
    """With the run as it is by then."""
    response = await gateway.submit(query="?wait=1ms")
    assert (response.status, (await response.json())["steps"]["a"]["status"]) == (202, "pending")


async def test_waiting_without_redis_still_tells_that_the_run_was_accepted(gateway: Bench) -> None:
    """202 without the document."""
    gateway.redis.down = True
    response = await gateway.submit(query="?wait=1ms")
    assert (response.status, (await response.json())["status"]) == (202, "accepted")


async def test_waiters_are_bounded() -> None:
    """A submission is accepted nevertheless, a read should come back later."""
    async with a_gateway(max_waiters=1) as gateway:
        with gateway.watches.watching("somebody"):
            submitted = await gateway.submit(query="?wait=30s")
            assert submitted.status == 202
            response = await gateway.client.get(f"{submitted.headers['Location']}?wait=30s")
            assert (response.status, response.headers["Retry-After"]) == (429, "1")


async def test_a_stopping_gateway_answers_those_who_wait(gateway: Bench) -> None:
    """With what is known now."""
    waiting = asyncio.create_task(gateway.submit(query="?wait=30s"))
    await until(gateway.watches.runs)
    gateway.watches.release_all()
    assert (await waiting).status == 202


@pytest.mark.parametrize("query", ["?wait=", "?wait=x", "?wait=-1s", "?wait=1h", "?wait=NaN", "?wiat=1s"])
async def test_a_bad_wait_is_refused(gateway: Bench, query: str) -> None:
    """400, before anything is appended."""
    response = await gateway.submit(query=query)
    assert (response.status, gateway.log.records) == (400, [])
    await problem(response)


# ---- The rest --------------------------------------------------------------------------------------------------------


async def test_a_definition_can_be_validated_alone(gateway: Bench) -> None:
    """Pointers are into the definition that was sent."""
    good = await gateway.client.post("/v1/pipelines:validate", json=DIAMOND)
    assert (good.status, (await good.json())["valid"]) == (200, True)
    body = b"name: p\nsteps:\n  a:\n    uses: simulat\n    typo: 1\n"
    bad = await gateway.client.post("/v1/pipelines:validate", data=body, headers={"Content-Type": "application/yaml"})
    errors = (await problem(bad))["errors"]
    assert [(error["pointer"], error["line"]) for error in errors] == [("/steps/a/uses", 4), ("/steps/a/typo", 5)]
    assert "simulate" in errors[0]["message"]


async def test_step_types_are_listed_with_their_schemas(gateway: Bench) -> None:
    """`transform` is there without a service."""
    listed = (await (await gateway.client.get("/v1/step-types")).json())["step_types"]
    assert [each["name"] for each in listed] == ["http", "simulate", "transform"]
    assert all({"input_schema", "output_schema", "version"} <= each.keys() for each in listed)


async def test_an_error_of_ours_shows_no_internals(gateway: Bench) -> None:
    """500 names an instance that the log has too."""
    gateway.log.error = ZeroDivisionError("secret")
    response = await gateway.submit()
    document = await problem(response)
    assert response.status == 500
    assert "secret" not in await response.text()
    assert document["instance"].startswith("urn:uuid:")


async def test_requests_are_counted_by_route(gateway: Bench) -> None:
    """Ids are no labels."""
    await gateway.client.get("/v1/runs/whatever")
    await gateway.client.get("/nowhere")
    labels = {"method": "GET", "route": "/v1/runs/{id}", "status": "404"}
    assert gateway.registry.get_sample_value("api_requests_total", labels) == 1
    labels = {"method": "GET", "route": "unmatched", "status": "404"}
    assert gateway.registry.get_sample_value("api_requests_total", labels) == 1


async def test_the_hash_of_a_body_is_the_one_that_redis_has_of_older_gateways(gateway: Bench) -> None:
    """It is that of one sorted JSON document, whether the definition was hashed before or not."""
    hashes = {}
    for n in (1, 2, 1):
        await gateway.submit(headers={"Idempotency-Key": f"{n}-{len(gateway.log.records)}"}, inputs={"n": n})
        message = gateway.log.submitted[-1]
        content = {"definition": DIAMOND, "inputs": message.inputs, "labels": message.labels}
        whole = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
        assert message.body_hash == blake2b(whole, digest_size=16).hexdigest()
        hashes[n] = message.body_hash
    assert hashes[1] != hashes[2]
