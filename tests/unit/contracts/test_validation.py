"""A definition is accepted whole, or refused with everything that is wrong with it, each with its place."""

import itertools
import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from anabranch.shared.contracts import needs as graph
from anabranch.shared.contracts import validation
from anabranch.shared.contracts.limits import MAX_CHECKING_COST, MAX_PROBLEMS
from anabranch.shared.contracts.report import Budget, InvalidInputs, InvalidPipeline, Problem
from anabranch.shared.contracts.source import Source, parse_source
from anabranch.shared.contracts.spec import PipelineSpec, parse_spec
from anabranch.shared.contracts.validation import ValidPipeline, validate_inputs, validate_pipeline
from tests.unit.contracts.test_source import json_values

HTTP: dict[str, Any] = {
    "type": "object",
    "properties": {"url": {"type": "string"}, "method": {"enum": ["GET", "HEAD"]}, "headers": {"type": "object"}},
    "required": ["url"],
    "additionalProperties": False,
}
TYPES = {"http": HTTP}


def valid(value: Any) -> ValidPipeline:
    return validate_pipeline(parse_source(orjson.dumps(value)), step_types=TYPES)


def problems(value: Any) -> dict[str, str]:
    with pytest.raises(InvalidPipeline) as caught:
        valid(value)
    return {problem.pointer: problem.message for problem in caught.value.errors}


def a_pipeline(**changes: Any) -> dict[str, Any]:
    steps = {"a": {"uses": "transform", "with": {"value": 1}}}
    return {"name": "x", "inputs": {"url": {"type": "string"}}, "steps": steps, **changes}


def a_step(**changes: Any) -> dict[str, Any]:
    """A pipeline whose step `b` needs `a` and is changed so."""
    steps = {
        "a": {"uses": "http", "with": {"url": "u"}},
        "b": {"uses": "http", "with": {"url": "u"}, "needs": ["a"], **changes},
    }
    return a_pipeline(steps=steps)


def test_everything_wrong_is_reported_at_once_with_line_column_and_suggestion() -> None:
    body = b"""name: site
descripton: x
inputs: {url: {type: strng}}
timeout: 15 minutes
steps:
  page: {uses: htp}
  a-b:
    uses: http
    needs: [pgae]
    with: {url: "see ${{ steps.page.ouput }}", method: PUT}
  c: {uses: http, needs: [d], with: {url: "${{ 1 + }}"}, if: 1 + 1}
  d: {uses: http, needs: [c], with: {url: "${{ steps.a-b.output }}"}, cache: {ttl: 1h}}
outputs: {o: "${{ inputs.ulr }}"}
"""
    with pytest.raises(InvalidPipeline) as caught:
        validate_pipeline(parse_source(body, "application/yaml"), step_types=TYPES)
    assert [(p.line, p.column, p.pointer) for p in caught.value.errors] == [
        (2, 13, "/descripton"),
        (3, 22, "/inputs/url/type"),
        (4, 10, "/timeout"),
        (6, 16, "/steps/page/uses"),
        (9, 13, "/steps/a-b/needs/0"),
        (10, 25, "/steps/a-b/with/url"),
        (10, 56, "/steps/a-b/with/method"),
        (11, 26, "/steps/c/needs"),
        (11, 52, "/steps/c/with/url"),
        (11, 62, "/steps/c/if"),
        (12, 57, "/steps/d/with/url"),
        (12, 78, "/steps/d/cache"),
        (13, 14, "/outputs/o"),
    ]
    words = "\n".join(p.message for p in caught.value.errors)
    for said in (
        "'description'?",
        "'http'?",
        "'page'?",
        "'output'?",
        "'url'?",
        "steps['a-b']",
        "c → d → c",
        "not supported yet",
    ):
        assert said in words


@pytest.mark.parametrize(
    "key", ["for_each", "cache", "compensate", "concurrency", "total_timeout", "queue_timeout", "max_parallel"]
)
def test_what_a_step_cannot_do_yet_is_refused_by_name(key: str) -> None:
    given = {
        "for_each": [1],
        "cache": {"ttl": "1h"},
        "compensate": {"uses": "http"},
        "concurrency": {"key": "a"},
        "max_parallel": 2,
    }
    assert problems(a_step(**{key: given.get(key, "1h")})) == {f"/steps/b/{key}": f"{key!r} is not supported yet"}


@pytest.mark.parametrize(
    ("key", "value"), [("finally", {"z": {"uses": "http"}}), ("max_parallel", 3), ("concurrency", {"key": "a"})]
)
def test_what_a_pipeline_cannot_do_yet_is_refused_by_name(key: str, value: Any) -> None:
    assert problems(a_pipeline(**{key: value})) == {f"/{key}": f"{key!r} is not supported yet"}


@pytest.mark.parametrize("uses", ["approval", "wait", "pipeline"])
def test_step_types_of_later_are_refused_by_name(uses: str) -> None:
    assert problems(a_step(uses=uses, **{"with": {}})) == {
        "/steps/b/uses": f"the step type {uses!r} is not supported yet"
    }


@pytest.mark.parametrize(
    ("changes", "place", "words"),
    [
        ({"with": {"url": "${{ steps.b.output }}"}}, "/with/url", "reads itself"),
        ({"with": {"url": "${{ steps.q.output }}"}}, "/with/url", "no step 'q'"),
        ({"needs": [], "with": {"url": "${{ steps.a.output }}"}}, "/with/url", "add it to needs"),
        ({"needs": ["a", "a"]}, "/needs/1", "stands twice"),
        ({"needs": ["b"]}, "/needs", "b → b"),
        ({"if": "failed('q')"}, "/if", "not in needs"),
        ({"if": "inputs.nope == 1"}, "/if", "no input 'nope'"),
        ({"if": "x ${{ true }}"}, "/if", "alone in its"),
        ({"if": 3}, "/if", "true or false"),
        ({"retry": {"if": "inputs.url == 'u'"}}, "/retry/if", "undeclared reference"),
        ({"retry": {"initial": "1 s"}}, "/retry/initial", "not a duration"),
        ({"with": {"url": 5}}, "/with/url", "not of type"),
        ({"with": {"method": "${{ inputs.url }}"}}, "/with", "required"),
        ({"with": {"url": "u", "methd": 1}}, "/with/methd", "unknown key"),
        ({"with": {"url": "u", "headers": {"${{ inputs.url }}": 1}}}, "/with/headers/${{ inputs.url }}", "in a key"),
        ({"with": {"url": "${{ inputs.url"}}, "/with/url", "without its"),
        ({"uses": "transform", "with": {}}, "/with", "required"),
    ],
)
def test_a_slip_in_a_step_is_found(changes: dict[str, Any], place: str, words: str) -> None:
    found = problems(a_step(**changes))
    assert list(found) == [f"/steps/b{place}"]
    assert words in found[f"/steps/b{place}"]


@pytest.mark.parametrize(
    "changes",
    [
        {"with": {"url": "${{ steps.a.output.body }}", "method": "${{ inputs.url }}"}},
        {"with": "${{ steps.a.output }}"},
        {"with": {"url": "u", "headers": {"x": "${{ run.id }}"}}},
        {"if": "failed('a') || always()"},
        {"if": "${{ inputs.url == 'u' }}"},
        {"if": True, "retry": {"max_attempts": 3, "if": "error.type == 'X'", "retry_on": ["X"]}},
        {"timeout": 20, "continue_on_error": True},
    ],
)
def test_what_runs_today_is_accepted(changes: dict[str, Any]) -> None:
    assert valid(a_step(**changes)).spec.steps["b"].needs == ("a",)


def test_a_step_reads_what_it_needs_through_others_and_outputs_read_all() -> None:
    steps = {s: {"uses": "transform", "needs": n, "with": {"value": v}} for s, n, v in (
        ("a", [], 1), ("b", ["a"], 1), ("c", ["b"], "${{ steps.a.output }}"))}  # fmt: skip
    assert valid(a_pipeline(steps=steps, outputs={"o": ["${{ steps.b.output }}"]})).spec.name == "x"


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "strng"}, "/inputs/i/type"),
        ({"$ref": "http://example.org/x"}, "/inputs/i"),
        ({"allOf": [{"$ref": "#"}]}, "/inputs/i"),
        ({"type": "integer", "default": "a"}, "/inputs/i/default"),
        ({"pattern": "("}, "/inputs/i/pattern"),
        ("string", "/inputs/i"),
    ],
)
def test_an_inputs_schema_that_is_none_is_found(schema: Any, place: str) -> None:
    assert list(problems(a_pipeline(inputs={"i": schema}))) == [place]


def test_the_canonical_text_is_the_same_for_json_and_yaml() -> None:
    first = valid(a_pipeline())
    again = validate_pipeline(
        parse_source(
            b"{name: x, inputs: {url: {type: string}}, steps: {a: {uses: transform, with: {value: 1}}}}",
            "application/yaml",
        )
    )
    assert (first.canonical, first.content_hash) == (again.canonical, again.content_hash)
    assert orjson.loads(first.canonical) == a_pipeline()
    assert first.content_hash != valid(a_pipeline(name="y")).content_hash


def test_the_canonical_text_keeps_the_order_of_the_author() -> None:
    step = {"uses": "transform", "with": {"value": {"z": 1, "a": 2}}}
    found = valid(
        a_pipeline(inputs={"z": {}, "a": {}}, steps={"second": step, "first": step}, outputs={"z": 1, "a": 1})
    )
    assert list(found.spec.steps) == ["second", "first"]
    assert list(found.spec.inputs) == list(found.spec.outputs) == ["z", "a"]
    assert list(parse_spec(found.canonical).steps) == ["second", "first"]
    assert '{"z":1,"a":2}' in found.canonical


@pytest.mark.parametrize(
    ("schema", "value", "place"),
    [
        ({"properties": {"url": {}, "method": {}}, "additionalProperties": False}, {"metod": 1}, "/metod"),
        (
            {"properties": {"a": {"items": {"properties": {"method": {}}, "additionalProperties": False}}}},
            {"a": [{"metod": 1}]},
            "/a/0/metod",
        ),
        (
            {
                "$defs": {"b": {"properties": {"method": {}}, "additionalProperties": False}},
                "properties": {"a": {"$ref": "#/$defs/b"}},
            },
            {"a": {"metod": 1}},
            "/a/metod",
        ),
    ],
)
def test_an_unknown_key_of_a_literal_with_gets_the_nearest_property(
    schema: dict[str, Any], value: Any, place: str
) -> None:
    body = a_pipeline(steps={"a": {"uses": "u", "with": value}})
    with pytest.raises(InvalidPipeline) as caught:
        validate_pipeline(Source(body), step_types={"u": {"type": "object", **schema}})
    assert [(p.pointer, p.message) for p in caught.value.errors] == [
        (f"/steps/a/with{place}", "unknown key 'metod'; did you mean 'method'?")
    ]


def test_a_part_of_a_body_is_validated_with_pointers_of_the_body() -> None:
    source = parse_source(b'{"inputs": {},\n "definition": {"name": "x", "steps": {"a": {}}}}').part("definition")
    with pytest.raises(InvalidPipeline) as caught:
        validate_pipeline(source)
    assert caught.value.errors == [Problem("/definition/steps/a", "'uses' is missing", 2, 45)]


def test_inputs_are_completed_by_defaults_or_refused_all_at_once() -> None:
    spec = valid(
        a_pipeline(
            inputs={
                "url": {"type": "string", "format": "uri"},
                "n": {"type": "integer", "default": 3},
                "m": {"type": "object"},
            }
        )
    ).spec
    assert validate_inputs(spec.inputs, {"url": "http://x/", "m": {}}) == {"url": "http://x/", "n": 3, "m": {}}
    with pytest.raises(InvalidInputs) as caught:
        validate_inputs(spec.inputs, {"url": "no uri", "n": "a", "mm": 1})
    assert {p.pointer: p.message for p in caught.value.errors} == {
        "/inputs": "the input 'm' is missing and has no default",
        "/inputs/url": '"no uri" is not a "uri"',
        "/inputs/n": '"a" is not of type "integer"',
        "/inputs/mm": "the pipeline has no input 'mm'; did you mean 'm'?",
    }
    for wrong in ([], {"url": "http://x/", "m": {"s": "x" * 300_000}}):
        with pytest.raises(InvalidInputs):
            validate_inputs(spec.inputs, wrong)


@given(json_values)
def test_any_json_is_a_pipeline_or_invalid(value: Any) -> None:
    with pytest.raises(InvalidPipeline) as caught:
        validate_pipeline(Source(value))
    assert caught.value.errors


_junk = json_values | st.text("${} .ab1'()", max_size=12).map(lambda text: "${{ " + text + " }}")


_STEP_KEYS = ("uses", "with", "needs", "if", "retry", "timeout", "for_each", "cache", "continue_on_error")


_STEP_KEYS = ("uses", "with", "needs", "if", "retry", "timeout", "for_each", "cache", "continue_on_error")


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(_STEP_KEYS, _junk)), _junk, _junk, _junk)
def test_junk_anywhere_is_valid_or_invalid(step: Any, inputs: Any, outputs: Any, defaults: Any) -> None:
    try:
        validate_pipeline(
            Source(
                a_pipeline(steps={"a": {"uses": "http"}, "b": step}, inputs=inputs, outputs=outputs, defaults=defaults)
            ),
            step_types=TYPES,
        )
    except InvalidPipeline as error:
        assert error.errors


@given(
    st.integers(1, 12).flatmap(lambda n: st.lists(st.lists(st.integers(0, n - 1), max_size=3), min_size=n, max_size=n))
)
def test_cycles_and_ancestors_are_those_of_the_graph(edges: list[list[int]]) -> None:
    needs = {str(i): [str(j) for j in row] for i, row in enumerate(edges)}
    reach = {step: set(direct) for step, direct in needs.items()}
    for _ in needs:
        for step in needs:
            reach[step] |= {far for need in reach[step] for far in reach[need]}
    cyclic = {step for step in needs if step in reach[step]}
    found = graph.cycles(needs)
    assert bool(found) == bool(cyclic)
    for cycle in found:
        assert cycle[0] == cycle[-1]
        assert all(b in needs[a] for a, b in itertools.pairwise(cycle))
    ancestors = graph.Ancestors(needs)
    behind_cycle = {step for step in needs if step in cyclic or reach[step] & cyclic}
    for step in needs.keys() - behind_cycle:
        assert {other for other in needs if ancestors.has(step, other)} == reach[step]


def a_chain(n: int, read: str) -> dict[str, Any]:
    def url(i: int) -> str:
        return "u" if not i else "${{ " + read.format(i - 1) + " }}"

    steps = {
        f"s-{i}": {"uses": "http", "with": {"url": url(i)}, "needs": [f"s-{i - 1}"] if i else []} for i in range(n)
    }
    return a_pipeline(steps=steps)


@pytest.mark.parametrize(
    "read",
    ["steps['s-{0}'].output", "steps['s-0'].output", "steps['s-{0}'].output + '!'"],
    ids=["before", "far", "own text"],
)
def test_a_chain_of_ten_thousand_steps_costs_less_than_a_submission_may(read: str) -> None:
    """By the estimate, which is a count; the processor's time is a guard against what is quadratic."""
    source, budget = parse_source(orjson.dumps(a_chain(10_000, read))), Budget()
    started = time.process_time()
    assert len(validate_pipeline(source, step_types=TYPES, budget=budget).spec.steps) == 10_000
    assert budget.units - budget.left < MAX_CHECKING_COST * 3 / 4
    assert time.process_time() - started < 120  # a hang guard: 0.3, 0.4 and 1.1 measured, 42 under the load of many


def test_ten_thousand_mistakes_are_answered_quickly_and_bounded() -> None:
    chain = a_chain(10_000, "steps['s-{0}'].output")
    chain["steps"]["s-0"]["needs"] = ["s-9999"]
    started = time.process_time()
    assert "s-0 → s-9999 → s-9998" in problems(chain)["/steps/s-0/needs"]
    for i, step in enumerate(chain["steps"].values()):
        step["needs"] = [f"no-{i}"]
    with pytest.raises(InvalidPipeline) as caught:
        valid(chain)
    assert len(caught.value.errors) == MAX_PROBLEMS
    assert time.process_time() - started < 120  # a hang guard


STEP = {"uses": "transform", "with": {"value": 1}}
MANY: dict[str, dict[str, Any]] = {
    "steps": {"steps": {f"k{i}": 1 for i in range(150_000)}},
    "inputs": {"inputs": {f"k{i}": {} for i in range(100_000)}, "steps": {"a": STEP}},
    "keys": {f"k{i}": 1 for i in range(100_000)} | {"steps": {"a": STEP}},
    "keys of a step": {"steps": {"a": {f"k{i}": 1 for i in range(150_000)}}},
    "keys of a retry": {"defaults": {"retry": {f"k{i}": 1 for i in range(150_000)}}, "steps": {"a": STEP}},
    "keys of every step": {"steps": {f"s{i}": {f"k{j}": 1 for j in range(80)} for i in range(2_500)}},
    "an unknown key each": {"steps": {f"s{i}": {**STEP, "zap": 1} for i in range(10_000)}},
    "a bad duration each": {"steps": {f"s{i}": {**STEP, "timeout": "never"} for i in range(10_000)}},
    "unknown needs": {"steps": {f"s{i}": {**STEP, "needs": [f"z{j}" for j in range(30)]} for i in range(4_000)}},
    "needs that are none": {"steps": {f"s{i}": {**STEP, "needs": [1] * 9_000} for i in range(100)}},
    "steps to clean up": {"finally": {f"s{i}": {"needs": [1] * 60} for i in range(9_000)}, "steps": {"a": STEP}},
    "expressions": {"steps": {"a": {"uses": "transform", "with": {"value": ["${{ x"] * 100_000}}}},
}


@pytest.mark.parametrize("name", MANY)
def test_what_is_wrong_is_not_collected_without_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """150,000 wrong steps were 150,000 problems of pydantic and as many places, of which 100 were shown."""
    made = 0

    def counted(text: str | bytes) -> PipelineSpec:
        nonlocal made
        try:
            return parse_spec(text)
        except ValidationError as error:
            made += error.error_count()
            raise

    monkeypatch.setattr(validation, "parse_spec", counted)
    source, budget = parse_source(orjson.dumps({"name": "p", **MANY[name]})), Budget()
    with pytest.raises(InvalidPipeline) as caught:
        validate_pipeline(source, step_types=TYPES, budget=budget)
    assert 1 <= len(caught.value.errors) <= MAX_PROBLEMS
    assert made < 25_000
    assert budget.units - budget.left < MAX_CHECKING_COST / 5


def test_a_mistake_in_a_later_slice_of_a_large_definition_is_named() -> None:
    """Slices say the same as the whole, and the steps keep their order."""
    large = {"name": "p", "steps": {f"s{i}": {"uses": "transform", "with": {"value": "x" * 100}} for i in range(2_000)}}
    assert list(valid(large).spec.steps) == list(large["steps"])
    large["steps"]["s1999"]["zap"] = 1
    large["steps"]["s0"]["timeout"] = "never"
    assert list(problems(large)) == ["/steps/s0/timeout", "/steps/s1999/zap"]
