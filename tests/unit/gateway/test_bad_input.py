"""Whatever is sent, the answer is a clear problem, never a 500, and nothing is appended."""

import asyncio
import gzip
import io
import json
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch.services.gateway.problems import Kind, ProblemError
from anabranch.shared.contracts.limits import MAX_BODY_BYTES, MIB

from .fakes import DIAMOND, Bench, a_gateway, problem

JSON, YAML = "application/json", "application/yaml"


def submission(**steps: Any) -> bytes:
    return orjson.dumps({"definition": {"name": "p", "steps": steps}})


def with_inputs(literal: str) -> bytes:
    definition = {"name": "p", "inputs": {"n": {}}, "steps": {"a": {"uses": "simulate"}}}
    return b'{"definition":' + orjson.dumps(definition) + b',"inputs":{"n":' + literal.encode() + b"}}"


def laughs(n: int) -> bytes:
    """A line that is ten times as large as the one before."""
    return b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10))


UNREADABLE = {
    "nothing": (b"", JSON),
    "no JSON": (b"{", JSON),
    "two documents": (b"{}{}", JSON),
    "not UTF-8": (b'{"a":"\xff"}', JSON),
    "NUL": (b'{"a":"\x00"}', JSON),
    "duplicate key": (b'{"inputs":{},"inputs":{}}', JSON),
    "NaN": (with_inputs("NaN"), JSON),
    "Infinity": (with_inputs("-Infinity"), JSON),
    "a float beyond all": (with_inputs("1e999"), JSON),
    "an integer beyond 64 bits": (with_inputs(str(2**63)), JSON),
    "an integer of 5,000 digits": (with_inputs("1" * 5000), JSON),
    "half a surrogate pair": (with_inputs(r'"\ud800"'), JSON),
    "half a surrogate pair in a key": (with_inputs(r'{"\udc00":1}'), JSON),
    "65 levels": (with_inputs("[" * 65 + "]" * 65), JSON),
    "100,000 levels": (b"[" * 100_000, JSON),
    "100,000 levels, closed": (b"[" * 100_000 + b"]" * 100_000, JSON),
    "YAML that is none": (b"a: [", YAML),
    "YAML: nothing": (b"", YAML),
    "YAML: a tag": (b"a: !!python/object:os.system x", YAML),
    "YAML: duplicate key": (b"a: 1\na: 2", YAML),
    "YAML: two documents": (b"a: 1\n---\nb: 2", YAML),
    "YAML: alias of nothing": (b"a: *b", YAML),
    "YAML: alias of itself": (b"a: &a [*a]", YAML),
    "YAML: billion laughs": (b"a0: &a0 [x]\n" + b"".join(map(laughs, range(1, 30))), YAML),
    "YAML: 1,000 levels": (b"[" * 1000 + b"]" * 1000, YAML),
    "YAML: .nan": (b"a: .nan", YAML),
    "YAML: control character": (b"a: \x07", YAML),
}  # fmt: skip

INVALID = {
    "a list": (b"[]", ""),
    "a text": (b'"x"', ""),
    "null": (b"null", ""),
    "empty": (b"{}", ""),
    "definition is null": (b'{"definition":null}', "/definition"),
    "definition is a list": (b'{"definition":[]}', "/definition"),
    "empty definition": (b'{"definition":{}}', "/definition"),
    "unknown field": (orjson.dumps({"definition": DIAMOND, "label": {}}), "/label"),
    "named pipeline": (b'{"pipeline":"x"}', "/pipeline"),
    "a revision": (orjson.dumps({"definition": DIAMOND, "revision": 3}), "/revision"),
    "unknown key of the definition": (orjson.dumps({"definition": DIAMOND | {"stepz": 1}}), "/definition/stepz"),
    "unknown key of a step": (submission(a={"uses": "simulate", "need": []}), "/definition/steps/a/need"),
    "unknown type": (submission(a={"uses": "htpt"}), "/definition/steps/a/uses"),
    "unknown need": (submission(a={"uses": "simulate", "needs": ["b"]}), "/definition/steps/a/needs/0"),
    "needs itself": (submission(a={"uses": "simulate", "needs": ["a"]}), "/definition/steps/a/needs"),
    "cycle": (
        submission(a={"uses": "simulate", "needs": ["b"]}, b={"uses": "simulate", "needs": ["a"]}),
        "/definition/steps/a/needs",
    ),
    "unknown reference": (
        submission(a={"uses": "simulate", "with": {"value": "${{ steps.b.output }}"}}),
        "/definition/steps/a/with/value",
    ),
    "bad CEL": (submission(a={"uses": "simulate", "with": {"value": "${{ 1 + }}"}}), "/definition/steps/a/with/value"),
    "not supported yet": (submission(a={"uses": "simulate", "for_each": [1]}), "/definition/steps/a/for_each"),
    "bad duration": (submission(a={"uses": "simulate", "timeout": "1 parsec"}), "/definition/steps/a/timeout"),
    "inputs are a list": (orjson.dumps({"definition": DIAMOND, "inputs": []}), "/inputs"),
    "unknown input": (orjson.dumps({"definition": DIAMOND, "inputs": {"m": 1}}), "/inputs/m"),
    "input of the wrong type": (orjson.dumps({"definition": DIAMOND, "inputs": {"n": "x"}}), "/inputs/n"),
    "inputs too large": (with_inputs('"' + "x" * 300_000 + '"'), "/inputs"),
    "labels are a list": (orjson.dumps({"definition": DIAMOND, "labels": []}), "/labels"),
    "a label is a number": (orjson.dumps({"definition": DIAMOND, "labels": {"a": 1}}), "/labels/a"),
    "a label is long": (orjson.dumps({"definition": DIAMOND, "labels": {"a": "x" * 257}}), "/labels/a"),
    "33 labels": (orjson.dumps({"definition": DIAMOND, "labels": {str(n): "" for n in range(33)}}), "/labels"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
async def test_what_cannot_be_read_is_400(gateway: Bench, name: str) -> None:
    """With one sentence about why."""
    body, media_type = UNREADABLE[name]
    response = await gateway.post(body, media_type)
    document = await problem(response)
    assert (response.status, document["type"]) == (400, "urn:anabranch:problem:unreadable")
    assert document["errors"][0]["message"] in document["detail"]
    assert gateway.log.records == []


@pytest.mark.parametrize("name", INVALID)
async def test_what_may_not_run_is_422_with_its_place(gateway: Bench, name: str) -> None:
    """The pointer is into what the client sent."""
    body, pointer = INVALID[name]
    response = await gateway.post(body)
    document = await problem(response)
    assert (response.status, document["type"]) == (422, "urn:anabranch:problem:invalid")
    assert pointer in [error["pointer"] for error in document["errors"]], document
    assert gateway.log.records == []


async def test_everything_wrong_is_said_at_once(gateway: Bench) -> None:
    """The envelope, the definition, the inputs and the labels."""
    definition = {"name": "P", "steps": {"a": {"uses": "htpt", "needs": ["z"], "extra": 1}}}
    response = await gateway.post(orjson.dumps({"definition": definition, "lables": {}, "labels": {"x": 1}}))
    pointers = {error["pointer"] for error in (await problem(response))["errors"]}
    assert pointers >= {
        "/lables", "/labels/x", "/definition/name", "/definition/steps/a/uses", "/definition/steps/a/needs/0",
        "/definition/steps/a/extra",
    }  # fmt: skip


async def test_a_nearly_right_name_is_answered_with_the_right_one(gateway: Bench) -> None:
    """For types and for fields of the submission."""
    response = await gateway.post(
        orjson.dumps({"definition": {"name": "p", "steps": {"a": {"uses": "htpt"}}}, "lables": {}})
    )
    messages = {error["pointer"]: error["message"] for error in (await problem(response))["errors"]}
    assert "'labels'" in messages["/lables"]
    assert "'http'" in messages["/definition/steps/a/uses"]


async def test_places_in_yaml_have_line_and_column(gateway: Bench) -> None:
    """As an editor counts them."""
    body = b"definition:\n  name: p\n  steps:\n    a:\n      uses: htpt\n"
    [error] = (await problem(await gateway.post(body, YAML)))["errors"]
    assert (error["pointer"], error["line"], error["column"]) == ("/definition/steps/a/uses", 5, 13)


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 10 * MIB])
@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_that_is_too_large_is_413(gateway: Bench, size: int, announced: bool) -> None:
    """Whether its length is announced or it comes in chunks."""

    async def chunks() -> Any:
        for _ in range(size // 65536 + 1):
            yield b" " * 65536

    response = await gateway.post(io.BytesIO(b" " * size) if announced else chunks())
    assert response.status == 413
    await problem(response)


async def test_a_small_body_that_unpacks_to_a_large_one_is_413(gateway: Bench) -> None:
    """The limit is on what is unpacked."""
    packed = gzip.compress(b" " * (100 * MIB))
    response = await gateway.post(packed, headers={"Content-Encoding": "gzip"})
    assert response.status == 413
    await problem(response)


async def test_a_body_that_is_not_packed_as_it_says_is_400(gateway: Bench) -> None:
    """No gzip."""
    response = await gateway.post(b"{}", headers={"Content-Encoding": "gzip"})
    assert response.status == 400


@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "application/xml", "multipart/form-data; boundary=x", "application/json; charset=utf-16", "x"],
)
async def test_a_media_type_that_is_not_read_is_415(gateway: Bench, media_type: str) -> None:
    """And the answer says which are."""
    response = await gateway.post(b"{}", media_type)
    assert response.status == 415
    assert "application/yaml" in response.headers["Accept-Post"]
    await problem(response)


def test_a_problem_may_quote_a_header_of_any_bytes() -> None:
    """`charset=` and the byte 0xff: the server reads half of a surrogate pair, which no JSON holds."""
    answer = ProblemError(Kind.UNSUPPORTED_MEDIA_TYPE, "charset=\udcff is not read.").response("urn:x")
    assert isinstance(answer.body, bytes)
    assert orjson.loads(answer.body)["detail"] == r"charset=\udcff is not read."


async def test_a_body_without_a_media_type_is_415(gateway: Bench) -> None:
    """It is not guessed."""
    response = await gateway.client.post("/v1/runs", data=b"{}", skip_auto_headers=["Content-Type"])
    assert response.status == 415


async def test_paths_and_methods_that_are_none_are_problems_too(gateway: Bench) -> None:
    """405 says which methods there are."""
    nowhere = await gateway.client.get("/v2/runs")
    wrong = await gateway.client.delete("/v1/runs")
    assert (nowhere.status, wrong.status, wrong.headers["Allow"]) == (404, 405, "GET,HEAD,POST")
    await problem(nowhere)
    await problem(wrong)


async def test_a_large_body_is_read_beside_the_loop_and_accepted(gateway: Bench) -> None:
    """1,000 steps in JSON and in YAML."""
    definition = {
        "name": "p",
        "steps": {f"s{n}": {"uses": "simulate", "with": {"value": "x" * 80}} for n in range(1000)},
    }
    for body, media_type in (
        (orjson.dumps({"definition": definition}), JSON),
        (json.dumps({"definition": definition}).encode(), YAML),
    ):
        assert len(body) > 65536
        assert (await gateway.post(body, media_type)).status == 202


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["a", "b", "simulate", "http", "transform", "${{ inputs.n }}", "${{ steps.a.output }}", "${{"]),
)  # fmt: skip
NAMES = st.one_of(
    st.text(max_size=4),
    st.sampled_from(
        ["definition", "inputs", "labels", "pipeline", "name", "steps", "uses", "with", "needs", "if", "retry",
         "timeout", "a", "b", "n", "outputs", "defaults", "max_attempts", "for_each", "finally", "type"]
    ),
)  # fmt: skip
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4))
STEPS = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.fixed_dictionaries(
        {"uses": SCALARS}, optional={"with": VALUES, "needs": VALUES, "if": SCALARS, "retry": VALUES}
    ),
)
SUBMISSIONS = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {
            "definition": st.fixed_dictionaries(
                {"name": SCALARS, "steps": STEPS}, optional={"inputs": VALUES, "outputs": VALUES}
            )
        },
        optional={"inputs": VALUES, "labels": VALUES, "pipeline": VALUES},
    ),
)
BODIES = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
    SUBMISSIONS.map(lambda value: json.dumps(value).encode()),
    SUBMISSIONS.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")),
)
HEADERS = st.dictionaries(
    st.sampled_from(["Idempotency-Key", "traceparent", "Content-Encoding"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_categories=["Cc"]), max_size=40),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    bodies=st.lists(st.tuples(BODIES, st.sampled_from([JSON, YAML]), HEADERS), min_size=1, max_size=5),
)
def test_no_body_makes_a_500(bodies: list[tuple[bytes, str, dict[str, str]]]) -> None:
    """Every answer is an acceptance or a problem of the client's."""

    async def send() -> None:
        async with a_gateway() as gateway:
            for body, media_type, headers in bodies:
                response = await gateway.post(body, media_type, headers=headers)
                assert response.status in (202, 400, 413, 415, 422), (response.status, body)
                if response.status != 202:
                    await problem(response)

    asyncio.run(send())
