"""The models know the whole language, its units and its defaults."""

import time

import jsonschema_rs
import orjson
import pytest
from pydantic import ValidationError

from anabranch.shared.contracts.retry import Jitter, RetryPolicy
from anabranch.shared.contracts.spec import parse_spec, pipeline_json_schema

EVERYTHING = {
    "name": "site-audit",
    "description": "Audit",
    "inputs": {"url": {"type": "string", "format": "uri"}},
    "timeout": "15m",
    "defaults": {"retry": {"max_attempts": 2}, "timeout": "1m"},
    "fail_fast": True,
    "max_parallel": 50,
    "steps": {
        "page": {
            "uses": "http",
            "with": {"url": "${{ inputs.url }}"},
            "retry": {
                "max_attempts": 4, "initial": "500ms", "factor": 2, "max": "30s", "jitter": "full",
                "retry_on": ["E"], "if": "attempt < 3",
            },
            "timeout": "20s", "total_timeout": "1h", "queue_timeout": 5,
            "cache": {"ttl": "1h"},
        },
        "check": {
            "uses": "http", "needs": ["page"], "for_each": "${{ steps.page.output }}", "max_parallel": 10, "if": True,
            "continue_on_error": True, "compensate": {"uses": "notify", "with": {"a": 1}},
            "concurrency": {"key": "inputs.url", "limit": 2, "on_conflict": "cancel_running"},
        },
    },
    "finally": {"log": {"uses": "transform", "with": {"value": "${{ run.status }}"}}},
    "outputs": {"broken": "${{ steps.check.output }}"},
}  # fmt: skip


def test_the_whole_language_has_a_model_and_a_schema() -> None:
    spec = parse_spec(orjson.dumps(EVERYTHING))
    assert spec.timeout_s == 900.0
    assert spec.steps["page"].queue_timeout_s == 5.0
    assert spec.finally_["log"].uses == "transform"
    schema = pipeline_json_schema()
    assert jsonschema_rs.is_valid(schema, EVERYTHING)
    assert not jsonschema_rs.is_valid(schema, {**EVERYTHING, "tiemout": 1})


def test_retry_has_the_languages_spelling_and_the_cores_meaning() -> None:
    spec = parse_spec(orjson.dumps(EVERYTHING))
    assert spec.retry_of("page").policy() == RetryPolicy(
        max_attempts=4, initial_s=0.5, factor=2, max_s=30, jitter=Jitter.FULL, retry_on=("E",), when="attempt < 3"
    )
    condition = spec.retry_of("page").condition()
    assert condition is not None
    assert [condition.evaluate({"type": "E"}, attempt) for attempt in (2, 3)] == [True, False]


def test_defaults_hold_for_steps_that_do_not_say_otherwise() -> None:
    spec = parse_spec(orjson.dumps(EVERYTHING))
    assert (spec.timeout_of("page"), spec.timeout_of("check")) == (20.0, 60.0)
    assert spec.retry_of("check").max_attempts == 2
    bare = parse_spec(b'{"name": "x", "steps": {"a": {"uses": "http"}}}')
    assert (bare.timeout_s, bare.timeout_of("a"), bare.retry_of("a").policy()) == (None, None, RetryPolicy())


@pytest.mark.parametrize(
    "change",
    [{"name": "Bad"}, {"name": "a" * 64}, {"nmae": "x"}, {"timeout": 0}, {"timeout": "1x"},
     {"steps": {}}, {"fail_fast": "yes"}, {"steps": {"A": {"uses": "x"}}}, {"steps": {"a": {}}},
     {"description": "é" * 2049},
     {"max_parallel": 0}, {"outputs": {"a b": 1}}],
)  # fmt: skip
def test_a_wrong_shape_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        parse_spec(orjson.dumps({**EVERYTHING, **change}))


def test_ten_thousand_steps_are_modelled_quickly() -> None:
    step = {
        "uses": "http",
        "with": {"url": "${{ inputs.url }}"},
        "timeout": "20s",
        "retry": {"max_attempts": 3, "initial": "1s"},
    }
    text = orjson.dumps(
        {"name": "x", "steps": {f"s{i}": {**step, "needs": [f"s{i - 1}"] if i else []} for i in range(10_000)}}
    )
    started = time.process_time()
    assert len(parse_spec(text).steps) == 10_000
    assert time.process_time() - started < 60  # a hang guard; 0.08 to 0.13 on the machine of record
