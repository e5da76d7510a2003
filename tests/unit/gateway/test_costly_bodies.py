"""Bodies that are costly to check leave the loop and are answered within limits; everybody else is served meanwhile."""

import asyncio
import gc
import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from anabranch.services.gateway import apart
from anabranch.shared.contracts.limits import MAX_PROBLEMS
from tests.support import greedy

from .fakes import DIAMOND, Bench, announced, problem

WITHIN_S = 120.0  # a guard against hanging on a busy machine; on an idle one each is answered within three seconds
HELD_S = 1.0  # of processor time on the loop; 0.03 measured


def a_run(schema: Any, given: Any) -> dict[str, Any]:
    return {"definition": a_definition(inputs={"x": schema}), "inputs": {"x": given}}


def a_definition(**changes: Any) -> dict[str, Any]:
    return {"name": "p", "steps": {"a": {"uses": "transform", "with": {"value": 1}}}, **changes}


def a_step(value: Any) -> dict[str, Any]:
    return {"definition": a_definition(steps={"a": {"uses": "transform", "with": {"value": value}}})}


def macros(depth: int, at: int) -> str:
    return "${{ " + "".join(f"[{at}].map(x{i}," for i in range(depth)) + "1" + ")" * depth + " }}"


def texts(schema: Any, depth: int) -> Any:
    for _ in range(depth):
        schema = {"anyOf": [schema, {"type": "null"}]}
    return schema


COSTLY: dict[str, dict[str, Any]] = {
    "names that match a long pattern": a_run(
        {"propertyNames": {"pattern": "^.{5000}$"}}, {f"k{i}": 1 for i in range(20_000)}
    ),
    "names that match a pattern": a_run({"propertyNames": {"pattern": "^.{500}$"}}, {f"k{i}": 1 for i in range(2000)}),
    "one schema 3,000 times": a_run({"allOf": [{"type": "string"}] * 3000}, [1] * 100_000),
    "one schema 300 times": a_run({"allOf": [{"type": "string"}] * 300}, [1] * 1000),
    "much that is required": a_run({"items": {"required": [f"p{i}" for i in range(1000)]}}, [{}] * 3000),
    "a long enum": a_run({"items": {"enum": [{"a": i} for i in range(2000)]}}, [{"a": -i} for i in range(2000)]),
    "a long constant": a_run({"items": {"const": [1] * 5000}}, [[1] * 4999 + [2]] * 20),
    "not unique": a_run({"uniqueItems": True}, [*range(40_000), 1]),
    "texts that are patterns": a_run({"items": {"format": "regex"}}, ["\\p{L}{900}"] * 5000),
    "nested alternatives": a_run({"items": texts({"type": "string"}, 12)}, [1] * 20_000),
    "patterns of categories": {
        "definition": a_definition(inputs={f"x{i}": {"pattern": "\\p{L}{200}"} for i in range(900)})
    },
    "nested macros": a_step([macros(9, i) for i in range(250)]),
    "a chain that doubles": a_step("${{ inputs.?a" + "".join(f".optMap(v{i}, v{i})" for i in range(16)) + " }}"),
    "a long list": a_step(["${{ [" + "1," * 1900 + str(i) + "] }}" for i in range(60)]),
    "keys nobody knows": {f"k{i}": 1 for i in range(100_000)},
    "steps that are none": {"definition": a_definition(steps={f"k{i}": 1 for i in range(150_000)})},
    "inputs without end": {"definition": a_definition(inputs={f"k{i}": {} for i in range(100_000)})},
    "needs that are none": {
        "definition": a_definition(steps={f"s{i}": {"uses": "transform", "needs": [1] * 9_000} for i in range(100)})
    },
    "labels": {"definition": a_definition(), "labels": {f"k{i}": 1 for i in range(100_000)}},
    "a long name around much": {"definition": a_definition(steps={"a" * 30_000: {f"u{i}": 1 for i in range(3000)}})},
    "a long key around much": a_step({"k" * 1_000_000: ["${{ x"] * 50_000}),
    "slips of the pen": {
        "definition": a_definition(
            steps={f"step-number-{i}": {"uses": "transform", "needs": [f"step-numbr-{i}"]} for i in range(5000)}
        )
    },
}  # fmt: skip


@asynccontextmanager
async def watched_loop() -> AsyncIterator[list[float]]:
    """Yield the processor time of every turn of the loop."""
    turns: list[float] = []
    gc.collect()
    gc.freeze()  # what the tests before have left is not gone through in one of the turns

    async def watch() -> None:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0.001)
            turns.append(time.thread_time() - began)

    watching = asyncio.create_task(watch())
    try:
        yield turns
    finally:
        watching.cancel()
        gc.unfreeze()


@pytest.mark.parametrize("name", COSTLY)
async def test_a_costly_body_is_answered_and_holds_nobody_up(gateway: Bench, name: str) -> None:
    """With a short problem document, while a diamond of somebody else is accepted."""
    body = orjson.dumps(COSTLY[name])
    async with asyncio.timeout(WITHIN_S), watched_loop() as turns:
        answer, other = await asyncio.gather(gateway.post(io.BytesIO(body)), gateway.submit())
        text = await answer.read()
    assert other.status == 202
    assert answer.status == 422, text[:1000]
    document = await problem(answer)
    assert 1 <= len(document["errors"]) <= MAX_PROBLEMS + 1
    assert all(len(error["message"]) < 1000 and len(error["pointer"]) < 1100 for error in document["errors"])
    assert len(text) < 200_000
    assert max(turns) < HELD_S


ERRORS = [
    "é" * 1900,
    "[math.abs(range(9)), inputs.l.substring({item: inputs.m})]" + " + [math.abs(range(9))]" * 60,
    "x" + "y" * 3900,
    "size(1, 2) + " * 300 + "1",
    "inputs.a + 'x' + ",
    "1 2 " * 900,
]


@pytest.mark.parametrize("text", ERRORS)
@pytest.mark.parametrize("size", [30_000, 60_000])
async def test_what_is_wrong_in_many_expressions_does_not_hold_the_loop(gateway: Bench, text: str, size: int) -> None:
    """A body below 64 KiB of bad CEL took 0.81 s of the loop."""
    count = max(2, size // (len(text.encode()) + 12))
    body = orjson.dumps(a_step([f"${{{{ {text}{at} }}}}" for at in range(count)]))
    async with asyncio.timeout(WITHIN_S), watched_loop() as turns:
        answer = await gateway.post(io.BytesIO(body))
        await answer.read()
    assert answer.status == 422
    assert max(turns) < HELD_S


async def test_what_is_not_listed_is_counted(gateway: Bench) -> None:
    """In the detail, and as the last error."""
    document = await problem(await gateway.post(orjson.dumps({f"k{i}": 1 for i in range(1000)})))
    assert document["detail"].startswith("At least 1,001 things are wrong")
    assert len(document["errors"]) == MAX_PROBLEMS + 1
    assert document["errors"][-1]["message"] == "and at least 901 more"


async def test_a_process_that_takes_too_much_is_killed_and_replaced(
    gateway: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the estimate says: too much memory, too much time, and its end are the body's fault, answered 422."""
    body = b" " * 100_000 + orjson.dumps({"definition": DIAMOND})
    for greedy_read in (greedy.takes_memory, greedy.takes_time, greedy.ends):
        monkeypatch.setattr(apart, "_read", greedy_read)
        document = await problem(await gateway.post(io.BytesIO(body)))
        assert (document["status"], document["errors"][0]["pointer"]) == (422, "")
        assert "288 MiB of memory" in document["detail"]
        monkeypatch.undo()
        assert (await gateway.post(io.BytesIO(body))).status == 202


async def test_a_step_type_that_asks_too_much_harms_those_who_use_it_alone(gateway: Bench) -> None:
    """24 levels of references, two at each, are 16 million schemas for one value."""
    levels = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(24)}
    gateway.step_types.announce(
        announced("hostile", **{"$ref": "#/$defs/d0", "$defs": levels | {"d24": {"type": "string"}}})
    )
    used = a_definition(steps={"a": {"uses": "hostile", "with": {"b": 1}}})
    document = await problem(await gateway.submit(used))
    assert "cannot be used" in document["errors"][0]["message"]
    assert (await gateway.submit()).status == 202


async def test_a_middling_body_does_not_wait_behind_large_ones(gateway: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three large bodies kept everything above 32 KiB waiting for a minute; one of 60 KB is read beside them."""
    monkeypatch.setattr(apart, "WAIT_S", 0.5)
    large = orjson.dumps(a_step([{"a": 1}] * 200_000))
    middling = orjson.dumps(a_step("y" * 60_000))
    async with asyncio.timeout(WITHIN_S):
        crowd = [asyncio.create_task(gateway.post(io.BytesIO(large))) for _ in range(3)]
        while not gateway.count("runs_refused_total", reason="large_bodies"):
            assert (await gateway.post(io.BytesIO(middling))).status == 202
        answers = await asyncio.gather(*crowd)
    refused = [answer for answer in answers if answer.status == 503]
    assert refused
    assert all(answer.headers["Retry-After"] == "5" for answer in refused)
