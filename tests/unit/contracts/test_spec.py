"""The models know the whole language, its units and its defaults."""

import json
import sys
import time
from collections.abc import Generator
from types import FrameType
from typing import Any

import jsonschema_rs
import orjson
import pytest
from pydantic import ValidationError

from anabranch.shared.contracts.report import InvalidPipeline
from anabranch.shared.contracts.retry import Jitter, RetryPolicy
from anabranch.shared.contracts.source import Source
from anabranch.shared.contracts.spec import (
    NOT_YET_TYPES,
    PipelineSpec,
    StepSpec,
    not_yet,
    parse_spec,
    parse_spec_in_slices,
    pipeline_json_schema,
)
from anabranch.shared.contracts.validation import validate_pipeline

EVERYTHING: dict[str, Any] = {
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


def test_the_whole_language_has_a_model() -> None:
    """Also what does not run yet."""
    spec = parse_spec(orjson.dumps(EVERYTHING))
    assert spec.timeout_s == 900.0
    assert spec.steps["page"].queue_timeout_s == 5.0
    assert spec.finally_["log"].uses == "transform"


A_STEP: dict[str, Any] = {"uses": "transform", "with": {"value": 1}}
# For every key that the published schema offers, a value for it.
OFFERED: dict[str, dict[str, Any]] = {
    "PipelineSpec": {
        "name": "p", "description": "d", "inputs": {"n": {"type": "integer", "default": 1}}, "timeout": "1m",
        "defaults": {"timeout": "1s"}, "fail_fast": False, "steps": {"b": A_STEP}, "outputs": {"o": "${{ inputs }}"},
    },
    "StepSpec": {
        "uses": "transform", "with": {"value": 2}, "needs": ["b"], "if": "succeeded()", "retry": {"max_attempts": 2},
        "timeout": "1m", "continue_on_error": True,
    },
    "DefaultsSpec": {"retry": {"max_attempts": 2}, "timeout": "1s"},
    "RetrySpec": {
        "max_attempts": 3, "initial": "1s", "factor": 2, "max": "1m", "jitter": "none", "retry_on": ["E"],
        "if": "attempt < 2",
    },
}  # fmt: skip


def _with(place: str, key: str, value: Any) -> dict[str, Any]:
    """Return a pipeline that has one key in one place."""
    if place == "StepSpec":
        return {"name": "p", "steps": {"a": {**A_STEP, key: value}, "b": A_STEP}}
    defaults = {"DefaultsSpec": {key: value}, "RetrySpec": {"retry": {key: value}}}.get(place)
    return {"name": "p", "steps": {"a": A_STEP}} | ({key: value} if defaults is None else {"defaults": defaults})


def test_every_key_that_the_schema_offers_may_be_sent() -> None:
    """Nobody is offered what the gateway refuses."""
    schema = pipeline_json_schema()
    objects = {"PipelineSpec": schema, **{name: each for name, each in schema["$defs"].items() if "properties" in each}}
    assert {name: set(each["properties"]) for name, each in objects.items()} == {
        name: set(keys) for name, keys in OFFERED.items()
    }
    fits = jsonschema_rs.validator_for(schema).is_valid
    for place, keys in OFFERED.items():
        for key, value in keys.items():
            pipeline = _with(place, key, value)
            assert fits(pipeline), (place, key)
            validate_pipeline(Source(pipeline))
    for jitter in schema["$defs"]["Jitter"]["enum"]:
        validate_pipeline(Source(_with("RetrySpec", "jitter", jitter)))


LATER = EVERYTHING["steps"]["page"] | EVERYTHING["steps"]["check"]
NOT_YET = {
    **{key: {"name": "p", "steps": {"a": A_STEP}, key: (LATER | EVERYTHING)[key]} for key in not_yet(PipelineSpec)},
    **{f"a step's {key}": _with("StepSpec", key, LATER[key]) for key in not_yet(StepSpec)},
}


@pytest.mark.parametrize("case", NOT_YET)
def test_what_does_not_run_yet_is_not_offered(case: str) -> None:
    """An editor marks it, as the gateway refuses it by its name; its shape is known."""
    pipeline, key = NOT_YET[case], case.rpartition(" ")[2]
    parse_spec(orjson.dumps(pipeline))
    assert not jsonschema_rs.is_valid(pipeline_json_schema(), pipeline)
    with pytest.raises(InvalidPipeline) as refused:
        validate_pipeline(Source(pipeline))
    assert f"{key!r} is not supported yet" in [error.message for error in refused.value.errors]


@pytest.mark.parametrize("uses", sorted(NOT_YET_TYPES))
def test_a_step_type_that_does_not_run_yet_is_not_offered(uses: str) -> None:
    """Nor is a key that nobody knows."""
    schema = pipeline_json_schema()
    assert not jsonschema_rs.is_valid(schema, {"name": "p", "steps": {"a": {"uses": uses}}})
    assert jsonschema_rs.is_valid(schema, {"name": "p", "steps": {"a": {"uses": f"{uses}-2"}}})
    assert not jsonschema_rs.is_valid(schema, {"name": "p", "steps": {"a": A_STEP}, "tiemout": 1})


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


def test_an_inputs_schema_is_not_looked_into_when_a_large_definition_is_taken_up() -> None:
    """It is any JSON, of which a definition may hold a quarter of a million values: the gateway looked at them."""
    schema = {"const": [{"d": n} for n in range(20_000)]}
    text = json.dumps({"name": "p", "inputs": {"m": schema}, "steps": {"a": {"uses": "say"}}})
    looks = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal looks
        looks += event == "call" and frame.f_code.co_name == "_get_type_name"  # pydantic's, for each value of any JSON

    sys.setprofile(count)
    try:
        spec = result_of(parse_spec_in_slices(text))
    finally:
        sys.setprofile(None)
    assert spec == parse_spec(text)
    assert looks < 1_000


def result_of(slices: Generator[None, None, PipelineSpec]) -> PipelineSpec:
    """Return what a generator returns."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            return end.value
