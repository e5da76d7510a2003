"""`POST /v1/runs:batch`."""

import asyncio
from io import BytesIO
from typing import Any

import orjson
import pytest

from anabranch.services.gateway.reading import BATCH, Reading, Refusal, Submission
from anabranch.shared.contracts.ids import run_id_for_key
from anabranch.shared.contracts.limits import MAX_BATCH_RUNS, MAX_PROBLEMS_OF_BATCH_RUN, MAX_UNACKNOWLEDGED_BYTES
from anabranch.shared.contracts.report import Budget
from anabranch.shared.contracts.source import pieces_of
from anabranch.shared.runtime.errors import AppendFailed
from anabranch.shared.runtime.snapshots import STATUS

from .fakes import DIAMOND, Bench, a_gateway, announced, problem

RUN: dict[str, Any] = {"definition": {"name": "p", "steps": {"a": {"uses": "simulate"}}}}
WRONG: dict[str, Any] = {"definition": {"name": "p", "steps": {"a": {"uses": "simulat"}}}}


async def send(gateway: Bench, body: Any, **headers: str) -> Any:
    content = BytesIO(body if isinstance(body, bytes) else orjson.dumps(body))
    sent = {"Content-Type": "application/json", **headers}
    return await gateway.client.post("/v1/runs:batch", data=content, headers=sent)


async def results(gateway: Bench, *runs: Any) -> list[dict[str, Any]]:
    response = await send(gateway, {"runs": list(runs)})
    document = await response.json()
    assert response.status == 200, document
    found: list[dict[str, Any]] = document["results"]
    assert len(found) == len(runs) == document["accepted"] + document["refused"]
    assert document["accepted"] == sum(result["status"] < 300 for result in found)
    return found


async def test_each_run_is_accepted_with_what_is_its_own(gateway: Bench) -> None:
    """Definition, inputs, labels and trace arrive as they do alone; the results stand in the batch's order."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    runs = [{"definition": DIAMOND, "inputs": {"n": 5}, "labels": {"team": "x"}}, RUN]
    response = await send(gateway, {"runs": runs}, traceparent=f"00-{trace}-00f067aa0ba902b7-01")
    document = await response.json()
    first, second = gateway.log.submitted
    assert [result["status"] for result in document["results"]] == [202, 202]
    assert [result["run"] for result in document["results"]] == [
        {"id": first.run_id, "status": "accepted"}, {"id": second.run_id, "status": "accepted"}
    ]  # fmt: skip
    assert (first.inputs, first.labels, first.trace_id, first.keep_s) == ({"n": 5}, {"team": "x"}, trace, 0)
    assert orjson.loads(second.definition) == RUN["definition"]
    assert (await gateway.client.get(f"/v1/runs/{second.run_id}")).status == 200


async def test_what_is_wrong_with_one_run_refuses_no_other(gateway: Bench) -> None:
    """Of whatever kind: what cannot be read, what is no submission, what may not run."""
    deep = b'{"definition":' + b"[" * 70 + b"]" * 70 + b"}"
    wrong = [
        (400, b'{"definition":{"name":"p","name":"q"}}'),
        (400, b'{"definition":{"name":"p"},"inputs":{"n":' + b"9" * 5000 + b"}}"),
        (400, b'{"inputs":{"n":NaN}}'), (400, b'{"inputs":{"n":1e999}}'), (400, b'"\\ud800"'), (400, b'"\\u0000"'),
        (400, deep), (422, b"7"), (422, b"null"), (422, b"[]"), (422, b"{}"), (422, b'{"definition":1}'),
        (422, orjson.dumps(WRONG)), (422, orjson.dumps(RUN | {"inputs": {"x": 1}})),
        (422, orjson.dumps(RUN | {"labels": {"a": 1}})), (422, orjson.dumps(RUN | {"labls": {}})),
        (422, orjson.dumps(RUN | {"idempotency_key": "has space"})), (422, orjson.dumps(RUN | {"idempotency_key": 7})),
        (422, orjson.dumps(RUN | {"idempotency_key": ""})), (422, orjson.dumps(RUN | {"idempotency_key": "k" * 256})),
    ]  # fmt: skip
    good = orjson.dumps(RUN)
    body = b'{"runs":[' + good + b"".join(b"," + each + b"," + good for _, each in wrong) + b"]}"
    response = await send(gateway, body)
    document = await response.json()
    assert response.status == 200, document
    found = document["results"]
    assert [result["status"] for result in found[1::2]] == [status for status, _ in wrong]
    assert {result["status"] for result in found[::2]} == {202}
    assert len(gateway.log.submitted) == len(wrong) + 1 == document["accepted"]
    for number, result in enumerate(found):
        if number % 2:
            assert result["problem"]["status"] == result["status"]
            assert {fault["pointer"].split("/")[2] for fault in result["problem"]["errors"]} == {str(number)}


async def test_places_are_those_in_the_whole_body(gateway: Bench) -> None:
    """Pointer, line and column lead to what is wrong in the batch that was sent."""
    body = b"""{
  "runs": [
    {"definition": {"name": "p", "steps": {"a": {"uses": "simulate"}}}},  {"definition": {"name": "p",
      "steps": {"a": {"uses": "simulat"}}}}, {"definition": 1}, {"a": 1, "a": 2}
  ]
}"""
    found = (await (await send(gateway, body)).json())["results"]
    faults = [result["problem"]["errors"][0] for result in found[1:]]
    lines = body.decode().split("\n")
    assert [fault["pointer"] for fault in faults] == [
        "/runs/1/definition/steps/a/uses",
        "/runs/2/definition",
        "/runs/3",
    ]
    there = [lines[fault["line"] - 1][fault["column"] - 1 :] for fault in faults[:2]]
    assert [text.partition("}")[0] for text in there] == ['"simulat"', "1"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (422, b"{}"), (422, b"[]"), (422, b"1"), (422, b'{"runs":{}}'), (422, b'{"runs":[]}'), (422, b'{"runs":null}'),
        (422, b'{"runs":[{}],"more":1}'), (422, b'{"more":1,"runs":[{}]}'), (422, b'{"run":[{}]}'),
        (422, b'{"runs":[' + b",".join([b"{}"] * (MAX_BATCH_RUNS + 1)) + b"]}"),
        (400, b""), (400, b"{"), (400, b'{"runs":[{}'), (400, b'{"runs":[{},]}'), (400, b'{"runs":[,{}]}'),
        (400, b'{"runs":[{}]'), (400, b'{"runs":[{}]}}'), (400, b'{"runs":[{}],"runs":[{}]}'),
        (400, b'{"runs":[{} {}]}'),
        (400, b'{"runs":[' + b"[" * 100_000 + b"]}"), (400, b'\xff'), (400, b'{"runs":["\x01"]}'),
    ],
)  # fmt: skip
async def test_what_is_no_batch_is_refused_as_a_whole(status: int, body: bytes, gateway: Bench) -> None:
    """Then there is nothing to be answered one by one."""
    assert (await problem(await send(gateway, body)))["status"] == status
    assert gateway.log.records == []


async def test_a_batch_is_json_and_has_no_key_or_query_of_its_own(gateway: Bench) -> None:
    """A key of the whole would be a promise that nobody keeps."""
    body = orjson.dumps({"runs": [RUN]})
    yaml = await gateway.client.post("/v1/runs:batch", data=body, headers={"Content-Type": "application/yaml"})
    assert (yaml.status, yaml.headers["Accept-Post"]) == (415, "application/json")
    assert (await send(gateway, body, **{"Idempotency-Key": "k"})).status == 400
    query = await gateway.client.post("/v1/runs:batch?wait=1s", data=body, headers={"Content-Type": "application/json"})
    assert query.status == 400
    assert gateway.log.records == []


async def test_a_thousand_runs_are_appended_together() -> None:
    """None waits for the one before it: all are on their way before the first is acknowledged."""
    async with a_gateway(append_timeout_s=60) as gateway:
        gateway.log.holds = asyncio.Event()
        sending = asyncio.ensure_future(results(gateway, *[{"definition": DIAMOND}] * MAX_BATCH_RUNS))
        async with asyncio.timeout(60):
            while len(gateway.log.records) < MAX_BATCH_RUNS:
                await asyncio.sleep(0.01)
            assert not sending.done()
            gateway.log.holds.set()
            found = await sending
    assert {result["status"] for result in found} == {202}
    assert len({result["run"]["id"] for result in found}) == MAX_BATCH_RUNS
    assert [result["run"]["id"] for result in found] == [message.run_id for message in gateway.log.submitted]


async def test_a_key_is_one_run_in_a_batch_and_alone(gateway: Bench) -> None:
    """Sent again it is the same run, with other content it is refused, and one that has ended is 200."""
    keyed = RUN | {"idempotency_key": "order-1"}
    [first] = await results(gateway, keyed)
    alone = await gateway.submit(RUN["definition"], headers={"Idempotency-Key": "order-1"})
    other = RUN | {"labels": {"a": "b"}}
    again, changed, new, clash = await results(
        gateway, keyed, other | {"idempotency_key": "order-1"}, RUN | {"idempotency_key": "order-2"},
        other | {"idempotency_key": "order-2"},
    )  # fmt: skip
    run_id = run_id_for_key("default", "order-1")
    assert first["run"]["id"] == again["run"]["id"] == (await alone.json())["id"] == run_id
    assert (changed["status"], changed["problem"]["id"]) == (422, run_id)
    assert changed["problem"]["type"] == clash["problem"]["type"] == "urn:anabranch:problem:idempotency-key-reused"
    assert new["status"] == 202
    assert [message.run_id for message in gateway.log.submitted] == [run_id, run_id_for_key("default", "order-2")]
    gateway.redis.hashes[gateway.keys.run(run_id)] = {STATUS: b"succeeded"}
    [ended] = await results(gateway, keyed)
    assert (ended["status"], ended["run"]["status"]) == (200, "succeeded")


async def test_keys_of_a_batch_are_looked_up_together(gateway: Bench) -> None:
    """Fifty in a round trip; and without Redis they are accepted all the same."""
    keyed = [RUN | {"idempotency_key": f"k{number}"} for number in range(120)]
    await results(gateway, *keyed)
    assert gateway.redis.calls == 3
    gateway.redis.down = True
    assert {result["status"] for result in await results(gateway, *keyed)} == {202}


async def test_a_run_whose_outcome_is_unknown_says_so_itself() -> None:
    """With its id, and when to come back."""
    async with a_gateway(append_timeout_s=0.05) as gateway:
        gateway.log.error = AppendFailed("gone")
        found = await results(gateway, RUN, RUN | {"idempotency_key": "k"}, WRONG)
    assert [result["status"] for result in found] == [503, 503, 422]
    assert found[0]["problem"]["type"] == "urn:anabranch:problem:outcome-unknown"
    assert found[1]["problem"]["id"] == run_id_for_key("default", "k")
    assert found[0]["retry_after"] == 1


async def test_what_has_no_room_on_its_way_to_kafka_comes_back_later(gateway: Bench) -> None:
    """Bytes are bounded run by run, and what was appended before is accepted."""
    gateway.log.weighs = MAX_UNACKNOWLEDGED_BYTES // 3 + 1
    found = await results(gateway, *[RUN] * 5)
    assert [result["status"] for result in found] == [202, 202, 202, 503, 503]
    assert found[4]["retry_after"] == 1


async def test_a_type_without_a_command_topic_holds_back_its_runs_alone(gateway: Bench) -> None:
    """As it does for a single submission."""
    gateway.step_types.announce(announced("new"))
    gateway.step_types.without_topic = frozenset({"new"})
    found = await results(gateway, {"definition": {"name": "p", "steps": {"a": {"uses": "new"}}}}, RUN)
    assert [result["status"] for result in found] == [503, 202]


def test_what_one_run_costs_to_check_leaves_room_for_the_others() -> None:
    """What does not fit the budget of the body is refused before anything is done for it, and takes nothing."""
    costly = {"name": "p", "inputs": {"n": {"pattern": "a{1000}" * 50}}, "steps": {"a": {"uses": "simulate"}}}
    budget = Budget()
    budget.left = 30_000
    runs = [RUN, {"definition": costly}, RUN | {"labels": {"a": "b"}}, {"definition": DIAMOND}]
    reading = Reading({"simulate": {}, "transform": {}})
    found, _ = reading.read(BATCH, orjson.dumps({"runs": runs}), "application/json", budget)
    assert isinstance(found, list)
    refused = found[1]
    assert isinstance(refused, Refusal)
    assert "costs too much to check" in refused.faults[0].message
    assert [isinstance(each, Submission) for each in found] == [True, False, True, True]


async def test_of_each_run_some_problems_are_listed_and_all_are_counted(gateway: Bench) -> None:
    """An answer has a size, whatever is wrong with a thousand runs."""
    [found] = await results(gateway, RUN | {f"x{number}": 1 for number in range(50)})
    assert len(found["problem"]["errors"]) == MAX_PROBLEMS_OF_BATCH_RUN
    assert found["problem"]["detail"].startswith("50 things are wrong")


def test_pieces_are_the_values_as_they_are_written() -> None:
    """Strings, brackets and numbers in them lead nobody astray."""
    values = [b'{"a":"]},[\\""}', b" [1,[2]] ", b"-1.5e3", b'"\\u005d"', b"true"]
    pieces = pieces_of(b' { "runs" : [' + b",".join(values) + b"] } ", "runs")
    assert pieces is not None
    assert [piece.text.encode() for piece in pieces] == [value.strip() for value in values]
    assert pieces_of(b'{"r\\u0075ns":[]}', "runs") == []
