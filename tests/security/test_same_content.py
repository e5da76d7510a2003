"""A known key with the same content is the same submission, however it is written."""

import orjson
import pytest

from tests.unit.gateway.fakes import Bench

KEY = {"Idempotency-Key": "k"}
FIRST = (
    b'{"definition":{"name":"p","inputs":{"n":{"type":"integer","default":1}},'
    b'"steps":{"a":{"uses":"simulate"},"b":{"uses":"simulate"}}},"inputs":{"n":1}}'
)
YAML = (
    b"inputs: {n: 1}\ndefinition:\n  steps: {b: {uses: simulate}, a: {uses: simulate}}\n"
    b"  name: p\n  inputs: {n: {default: 1, type: integer}}\n"
)


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (orjson.dumps(orjson.loads(FIRST), option=orjson.OPT_INDENT_2), "application/json"),
        (orjson.dumps(orjson.loads(FIRST), option=orjson.OPT_SORT_KEYS), "application/json"),
        (FIRST.replace(b'"p"', b'"\\u0070"'), "application/json"),
        (FIRST.replace(b',"inputs":{"n":1}}', b"}"), "application/json"),
        (YAML, "application/yaml"),
    ],
)
async def test_the_same_content_is_the_same_submission(gateway: Bench, body: bytes, media_type: str) -> None:
    """One record, the same id."""
    first = await gateway.post(FIRST, headers=KEY)
    again = await gateway.post(body, media_type, headers=KEY)
    assert (again.status, (await again.json())["id"]) == (202, (await first.json())["id"])
    assert len(gateway.log.records) == 1


@pytest.mark.parametrize("old, new", [(b'"n":1}}', b'"n":2}}'), (b'"b"', b'"c"'), (b'"name":"p"', b'"name":"q"')])
async def test_another_content_is_not(gateway: Bench, old: bytes, new: bytes) -> None:
    """422, as ever."""
    await gateway.post(FIRST, headers=KEY)
    assert (await gateway.post(FIRST.replace(old, new), headers=KEY)).status == 422
    assert len(gateway.log.records) == 1


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (FIRST.replace(b'"p"', b'"p\\u0000"'), "application/json"),
        (FIRST.replace(b'"n":1}', b'"n\\u0000":1}'), "application/json"),
        (FIRST.replace(b"p", b"\0"), "application/json"),
        (YAML.replace(b"name: p", b'name: "p\\0"'), "application/yaml"),
        (YAML.replace(b"name: p", b'name: "p\\x00"'), "application/yaml"),
        (YAML.replace(b"n: 1}", b'"n\\0": 1}'), "application/yaml"),
    ],
)
async def test_nul_is_refused_wherever_text_enters(gateway: Bench, body: bytes, media_type: str) -> None:
    """In values and keys, of both languages."""
    assert (await gateway.post(body, media_type)).status == 400
