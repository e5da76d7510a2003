"""CEL in the language: what it names, what it gives, what it refuses, and that it gives it everywhere alike."""

import os
import re
import subprocess
import sys
import time
import timeit
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.shared.contracts import programs
from anabranch.shared.contracts.expressions import (
    ExpressionError,
    InvalidExpressionError,
    compile_condition,
    compile_retry_condition,
    compile_template,
    context_for,
)
from anabranch.shared.contracts.limits import MAX_MACRO_ITERATIONS
from anabranch.shared.contracts.programs import CONDITION, PIPELINE, compile_expression, only, outermost
from tests.unit.contracts.test_source import json_values

STEPS: dict[str, dict[str, Any]] = {
    "page": {
        "status": "succeeded",
        "output": {"rows": [{"n": 1}, {"n": 2}], "text": "hi"},
        "error": None,
        "attempt": 1,
    },
    "a-b": {"status": "failed", "output": None, "error": {"type": "X"}, "attempt": 2},
}
CONTEXT = {"inputs": {"url": "u", "map": {"b": 1, "a": 2}, "list": [3, 1]}, "steps": STEPS, "run": {"id": "r"}}


def evaluate(source: str, context: Mapping[str, Any] = CONTEXT) -> Any:
    return compile_expression(source).evaluate(context)


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("inputs.url", "u"),
        ("steps['a-b'].output", None),
        ("steps.page.output.rows.map(r, r.n * 2)", [2, 4]),
        ("steps['a-b'].?output.?y.orValue(1)", 1),
        ("steps.page.?output.?nope.orValue(1)", 1),
        ("has(inputs.nope)", False),
        ("range(3).map(inputs, inputs)", [0, 1, 2]),
        ("cel.bind(a, inputs.list, a + a)", [3, 1, 3, 1]),
        ("timestamp('2026-01-02T03:04:05.5Z')", "2026-01-02T03:04:05.500000Z"),
        ("duration('-1.5s')", "-1.5s"),
        ("b'abc'", "YWJj"),
        ("7u", 7),
        ("timestamp(0).getHours('+02:00')", 2),
        ("inputs.list[0] + inputs.list[size(inputs.list) - 1]", 4),
        ("'%s %d'.format(['x', 1])", "x 1"),
        ("math.greatest(inputs.list)", 3),
    ],
)
def test_an_expression_gives_json(source: str, result: Any) -> None:
    assert evaluate(source) == result


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("inputs.map.map(k, k)", "runs over a list"),
        ("steps.page.output.rows.map(r, r.map(k, k))", "runs over a list"),
        ("inputs.nope", "inputs has no 'nope'"),
        ("inputs.nope + 1", "inputs has no 'nope'"),
        ("steps['a-b'].output.x + 1", "null, which has no 'x'"),
        ("steps['a-b'].output.x", "null, which has no 'x'"),
        ("1 / (size(inputs.list) - 2)", "divide by zero"),
        ("0.0 / 0.0", "nan"),
        ("1.0 / 0.0", "inf"),
        ("9223372036854775807 + size(inputs.list)", "overflow"),
        ("18446744073709551615u", "64-bit"),
        ("{1: 2}", "string keys"),
        ("range(10000)", "not within"),
        ("range(-1)", "not within"),
        ("range(99).map(x, range(999).map(y, y))", "iterate more than 9999"),
        ("inputs.url + 1", "No matching overloads"),
    ],
)
def test_what_cannot_be_evaluated_says_why(source: str, words: str) -> None:
    with pytest.raises(ExpressionError, match=re.escape(words)):
        evaluate(source)


@pytest.mark.parametrize(
    ("source", "words", "column"),
    [
        ("1 +", "ends too early", 4),
        ("'a' + 1", "no matching overload", 5),
        ("inputz.url", "did you mean 'inputs'?", 7),
        ("inputs.url.lowerAsci()", "did you mean 'lowerAscii'?", 21),
        ("steps.a-b.output", "steps['a-b']", 10),
        ("failed()", "known in `if` only", 7),
        ("item.x", "under `for_each` only", 5),
        ("steps", "name the step", 1),
        ("steps[inputs.url]", "name the step", 1),
        ("steps.page.ouput", "did you mean 'output'?", 1),
        ("run.idd", "did you mean 'id'?", 1),
        ("inputs.map(k, k)", "runs over a list", 1),
        ("{'a': 1}.all(k, true)", "runs over a list", 1),
        ("optional.of(1)", "orValue", 1),
        ("{[1]: 2}", "Unsupported map key type: LIST<INT>", 1),
        ("{null: 2}", "Unsupported map key type: NULL", 1),
        ("type(1)", "is a type", 1),
        ("google.protobuf.Any{}", "protobuf message", 1),
        ("timestamp(0).getHours('Asia/Tokyo')", "named zones", 1),
        ("(" * 200 + "1" + ")" * 200, "recursion", 1),
        ("optional.of(inputs.x)" + ".optMap(v, v + v)" * 9 + ".orValue(1)", "expand to too much", 1),
        ("[1].map(a, " * 20 + "1" + ")" * 20, "nested too deep", 1),
        ("'" + "x" * 5000 + "'", "at most 4096", 1),
    ],
)
def test_what_does_not_compile_says_where_and_what_was_meant(source: str, words: str, column: int) -> None:
    with pytest.raises(InvalidExpressionError, match=re.escape(words)) as caught:
        compile_expression(source)
    assert caught.value.column == column


@pytest.mark.parametrize(
    ("source", "paths"),
    [
        ("steps.page.output.rows[0].n", {("steps", "page", "output", "rows")}),
        ("steps['a-b'].output == inputs['url']", {("steps", "a-b", "output"), ("inputs", "url")}),
        ("inputs[run.id]", {("inputs",), ("run", "id")}),
        ("has(inputs.x) ? inputs.?y.?z.orValue(0) : 1", {("inputs", "x"), ("inputs", "y", "z")}),
        ("inputs.list.exists(steps, steps == 3)", {("inputs", "list")}),
        ("cel.bind(run, inputs.url, run + run)", {("inputs", "url")}),
        ("inputs.list.map(i, inputs.map[string(i)])", {("inputs", "list"), ("inputs", "map")}),
        ("type(1) == int", set()),
        (".inputs.url + ''", {("inputs", "url")}),
    ],
)
def test_an_expression_names_its_paths(source: str, paths: set[tuple[str, ...]]) -> None:
    assert compile_expression(source).paths == paths


def test_the_limit_of_iterations_is_the_engines() -> None:
    """All macros of an evaluation may iterate so often together, and not once more."""
    most = MAX_MACRO_ITERATIONS
    assert evaluate(f"range({most}).all(x, true)")
    assert evaluate("inputs.list.all(x, true)", {"inputs": {"list": [0] * most}})
    assert evaluate(f"range({most - 99}).all(x, true) && range(99).all(x, true)")
    for source in ("inputs.list.all(x, true)", f"range({most}).all(x, true) && range(1).all(x, true)"):
        with pytest.raises(ExpressionError, match=f"iterate more than {most} times"):
            evaluate(source, {"inputs": {"list": [0] * (most + 1)}})


@pytest.mark.parametrize("n", [0, 1, 127, 128, 129, 256, 257, MAX_MACRO_ITERATIONS])
def test_macros_gather_lists_of_any_length_in_order(n: int) -> None:
    """The engine would copy the list for every element: 1.6 GB and eight seconds for the longest."""
    context = {"inputs": {"list": list(range(n))}}
    assert evaluate("inputs.list.map(x, x)", context) == list(range(n))
    assert evaluate("inputs.list.filter(x, x % 3 > 0)", context) == [x for x in range(n) if x % 3]
    assert evaluate("inputs.list.map(x, x % 3 > 0, [x, x])", context) == [[x, x] for x in range(n) if x % 3]


def test_a_macro_in_a_macro_gathers_its_own_list() -> None:
    assert evaluate("range(200).map(x, range(x % 3).map(y, [x].map(x, x + y)))") == [
        [[x + y] for y in range(x % 3)] for x in range(200)
    ]
    assert evaluate("range(99).filter(x, range(x).filter(y, y > 90).size() > 0).size()") == 7


def test_only_the_steps_that_are_named_are_looked_at() -> None:
    asked: list[str] = []

    def step(name: str) -> Mapping[str, Any]:
        asked.append(name)
        return STEPS[name]

    template = compile_template(["${{ steps.page.output.text }}", "${{ inputs.url }}"])
    context = context_for(template.paths, CONTEXT["inputs"], step, CONTEXT["run"])
    assert asked == list(context["steps"]) == ["page"]
    assert template.render(context) == ["hi", "u"]


def test_a_program_sees_only_what_it_names() -> None:
    program = compile_expression("inputs.a + inputs.b.c")
    seen = only({"inputs": {"a": 1, "b": {"c": 2, "d": 3}, "e": 4}, "run": {}}, outermost(tuple(sorted(program.paths))))
    assert seen == {"inputs": {"a": 1, "b": {"c": 2}}}


def test_a_path_brings_all_below_it_and_the_context_stays_as_it_is() -> None:
    paths = (("inputs", "a"), ("inputs", "a", "b"), ("inputs", "ab"), ("run",), ("run", "id"))
    assert outermost(paths) == (("inputs", "a"), ("inputs", "ab"), ("run",))
    context = {"inputs": {"a": {"b": 1, "c": 2}, "ab": None}, "run": {"id": "r"}, "steps": {}}
    before = orjson.dumps(context)
    assert only(context, outermost(paths)) == {"inputs": {"a": {"b": 1, "c": 2}, "ab": None}, "run": {"id": "r"}}
    assert compile_expression("size(inputs.a) + inputs.a.c").evaluate(context) == 4
    assert orjson.dumps(context) == before


def test_a_text_like_an_error_is_a_text() -> None:
    text = "INVALID_ARGUMENT: divide by zero"
    assert evaluate("true ? inputs.x : ''", {"inputs": {"x": text}}) == text


@given(json_values, st.lists(st.sampled_from(["a", "b", "0", "A", ""]), min_size=1, max_size=3))
def test_a_plain_path_gives_what_the_engine_gives(value: Any, path: list[str]) -> None:
    source = "inputs" + "".join(f"['{part}']" for part in path)
    context = {"inputs": {"a": value, "b": {"a": value, "b": [value]}}}
    outcomes = []
    for text in (source, f"true ? {source} : null"):  # the second is not a plain path
        program = compile_expression(text)
        try:
            outcomes.append(orjson.dumps(program.evaluate(context), option=orjson.OPT_SORT_KEYS))
        except ExpressionError:
            outcomes.append(b"error")
    assert outcomes[0] == outcomes[1]


def test_a_whole_value_keeps_its_type_and_an_embedded_one_is_text() -> None:
    template = compile_template(
        {
            "whole": "${{ inputs.list }}",
            "text": "<${{ inputs.list }}|${{ inputs.url }}|${{ true }}|${{ 1.0 }}|"
            "${{ steps['a-b'].output }}|${{ inputs.map }}>",
            "braces": "${{ {'a': {'b': '}}'}} }}",
            "literal": "$${{ not evaluated }}",
            "rest": [1, {"x": None}],
        }
    )
    assert template.render(CONTEXT) == {
        "whole": [3, 1],
        "text": '<[3,1]|u|true|1.0||{"a":2,"b":1}>',
        "braces": {"a": {"b": "}}"}},
        "literal": "${{ not evaluated }}",
        "rest": [1, {"x": None}],
    }


@given(json_values)
def test_a_template_without_expressions_is_the_same_object(value: Any) -> None:
    template = compile_template(value)
    if template.is_literal:
        assert template.render({}) is value


def test_a_failed_rendering_names_its_place() -> None:
    template = compile_template({"a/b": ["x", "${{ inputs.nope }}"]}, pointer="/with")
    with pytest.raises(ExpressionError) as caught:
        template.render(CONTEXT)
    assert caught.value.pointer == "/with/a~1b/1"


def test_results_that_weigh_too_much_are_refused() -> None:
    context = {"inputs": {"s": "x" * 600_000}}
    assert compile_template("${{ inputs.s }}").render(context)
    with pytest.raises(ExpressionError, match="weigh more"):
        compile_template(["${{ inputs.s }}", "${{ inputs.s }}"]).render(context)


@pytest.mark.parametrize(
    ("source", "needs", "runs"),
    [
        (None, {"a": "succeeded", "b": "succeeded"}, True),
        (None, {"a": "succeeded", "b": "skipped"}, False),
        (None, {}, True),
        ("${{ inputs.url == 'u' }}", {"a": "succeeded"}, True),
        ("inputs.url == 'u'", {"a": "failed"}, False),
        ("inputs.url == 'v'", {"a": "succeeded"}, False),
        ("failed()", {"a": "timed_out", "b": "succeeded"}, True),
        ("failed()", {"a": "cancelled"}, False),
        ("failed('a') && !failed('b')", {"a": "failed", "b": "skipped"}, True),
        ("succeeded('a')", {"a": "succeeded", "b": "failed"}, True),
        ("succeeded('x')", {"a": "succeeded"}, False),
        ("always()", {"a": "cancelled"}, True),
        ("always() && inputs.url == 'v'", {"a": "failed"}, False),
        ("succeeded() || failed()", {"a": "skipped"}, False),
        (True, {"a": "failed"}, False),
        (False, {"a": "succeeded"}, False),
    ],
)
def test_a_condition_decides_by_how_its_needs_ended(
    source: str | bool | None, needs: dict[str, str], runs: bool
) -> None:
    assert compile_condition(source).evaluate(CONTEXT, needs) is runs


def test_a_tolerated_failure_counts_as_success_for_all_needs_only() -> None:
    needs = {"a": "failed", "b": "succeeded"}
    answers = {
        s: compile_condition(s).evaluate({}, needs, tolerated={"a"})
        for s in (None, "succeeded()", "failed('a')", "succeeded('a')")
    }
    assert answers == {None: True, "succeeded()": True, "failed('a')": True, "succeeded('a')": False}
    assert not compile_condition(None).evaluate({}, {"a": "cancelled"}, tolerated={"a"})


def test_conditions_that_ask_for_failures_are_known_before_the_run() -> None:
    asks = {
        s: compile_condition(s).asks_for_failures for s in (None, "true", "succeeded('a')", "failed('a')", "always()")
    }
    assert asks == {None: False, "true": False, "succeeded('a')": False, "failed('a')": True, "always()": True}


@pytest.mark.parametrize(
    "source", ["1 + 1", "'true'", "failed(inputs.url)", "x ${{ true }}", "${{ true", "failed('a', 'b')"]
)
def test_what_is_no_condition_is_refused(source: str) -> None:
    with pytest.raises(InvalidExpressionError):
        compile_condition(source)


def test_a_condition_that_gives_no_bool_is_an_error_of_the_step() -> None:
    with pytest.raises(ExpressionError, match="true or false"):
        compile_condition("inputs.url").evaluate(CONTEXT, {})


def test_a_retry_condition_sees_error_and_attempt_alone() -> None:
    condition = compile_retry_condition("${{ error.type == 'Http' && attempt < 3 }}")
    assert [condition.evaluate({"type": t}, n) for t, n in (("Http", 2), ("Http", 3), ("X", 1))] == [True, False, False]
    with pytest.raises(InvalidExpressionError):
        compile_retry_condition("inputs.url == 'u'")


@given(st.text("aeinpustx.[]{}()'\"?:+-*/<>=!&|,0123 \n\\$", max_size=40) | st.text(max_size=20))
def test_any_text_compiles_or_is_an_invalid_expression(text: str) -> None:
    for environment in (PIPELINE, CONDITION):
        try:
            program = compile_expression(text, environment)
            orjson.dumps(program.evaluate(CONTEXT))
        except ExpressionError:
            pass


_DETERMINISM = """
import orjson
from tests.unit.contracts.test_expressions import *
keys = {f"k{i}": {f"n{j}": j for j in range(9)} for i in range(40)}
context = {**CONTEXT, "inputs": keys}
print(orjson.dumps([evaluate("inputs", context), evaluate("{'z': inputs.k3, 'a': inputs}", context),
    compile_template("x ${{ inputs }} ${{ [inputs] }}").render(context),
    evaluate("'%s'.format([inputs])", context)]).decode())
"""


def test_results_are_byte_identical_in_processes_with_other_hash_seeds() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", _DETERMINISM],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(outputs) == 1


def test_an_evaluation_takes_microseconds() -> None:
    program = compile_expression("steps.page.output.text + '!'")
    assert program.evaluate(CONTEXT) == "hi!"
    taken = timeit.repeat(lambda: program.evaluate(CONTEXT), timer=time.process_time, number=1000)
    assert min(taken) < 500e-3  # 5 measured


def test_one_text_is_compiled_once() -> None:
    assert compile_expression("inputs.url + 'once'") is compile_expression("inputs.url + 'once'")
    assert programs._programs._weight <= programs._PROGRAMS_KEPT_BYTES


@pytest.mark.parametrize(
    "source",
    [
        "{'a': optional.of(1)}",
        "dyn({'a': optional.of(inputs.n)})",
        "[{'a': {1: optional.none()}}]",
        "{'a': [1].first()}",
        "{'a': {'x': 1}.?x}",
        "[optional.of(1)]",
        "dyn(optional.of(1))",
    ],
)
def test_an_optional_inside_a_result_is_an_error_and_does_not_end_the_process(source: str) -> None:
    with pytest.raises(ExpressionError, match="has no JSON form"):
        compile_expression(source).evaluate({"inputs": {"n": 1}})


def test_half_of_a_surrogate_pair_is_refused_before_the_engine_sees_it() -> None:
    """The engine takes UTF-8 only, and would raise what nobody expects."""
    with pytest.raises(InvalidExpressionError, match=r"half of a surrogate pair: '\\ud800'"):
        compile_expression("'\ud800'")


_MANY_NULLS = """
from anabranch.shared.contracts.expressions import ExpressionError
from anabranch.shared.contracts.programs import compile_expression

inputs = {"x": [None] * 3_000}
for source in ("inputs.x.map(i, i)", "{'a': [null], 'b': inputs.x}", "inputs.x + [type(1)]", "null"):
    program = compile_expression(source)
    for _ in range(100):
        try:
            program.evaluate({"inputs": inputs})
        except ExpressionError:
            pass
print("lives")
"""


def test_nulls_in_results_do_not_end_the_process() -> None:
    """The engine takes a reference from None for each null that it returns."""
    done = subprocess.run([sys.executable, "-c", _MANY_NULLS], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "lives\n"), done.stderr[-1000:]


@pytest.mark.parametrize(("text", "meant"), [("inputs.s.quote()", "strings.quote"), ("inputs.s.abs()", "math.abs")])
def test_a_function_that_has_a_namespace_is_named_with_it(text: str, meant: str) -> None:
    """`quote` was suggested for `quote`."""
    with pytest.raises(InvalidExpressionError, match=rf"did you mean {meant}\(…\)\?"):
        compile_expression(text)


@pytest.mark.parametrize(
    "source",
    [
        "inputs.s + 'z'",
        "inputs.s == 'a'",
        "size(inputs.s)",
        "inputs.s in ['a']",
        "[inputs.url, inputs.s]",
        "inputs.rows.map(row, row.t)",
        "{'x': inputs.keys}",
        "inputs['k\\u0000j'] + 'z'",
    ],
)
def test_a_text_with_a_nul_is_refused_rather_than_cut_off_there(source: str) -> None:
    """The engine takes a text up to its first NUL: `a` and NUL and `b` would be equal to `a`, and two keys one."""
    inputs = {"url": "u", "s": "a\0b", "rows": [{"t": "x"}, {"t": "\0"}], "keys": {"k\0": 1, "k\0l": 2}, "k\0j": "\0"}
    with pytest.raises(ExpressionError, match=r"^inputs\..* holds a NUL"):
        evaluate(source, {"inputs": inputs, "steps": {}, "run": {}})


@pytest.mark.parametrize(
    ("value", "rendered"),
    [
        ("${{ inputs.s }}", "a\0b"),
        ("<${{ inputs.s }}>", "<a\0b>"),
        ("${{ inputs.url + '\\u0000' + inputs.url }}", "u\0u"),
        ("${{ {'k\\u0000': ['\\x00']} }}", {"k\0": ["\0"]}),
        ("${{ inputs.url + 'x' }}", "ux"),
    ],
)
def test_a_nul_is_handed_on_by_its_path_and_made_by_a_literal(value: Any, rendered: Any) -> None:
    """What an expression does not name may hold one, too."""
    context = {"inputs": {"s": "a\0b", "url": "u"}, "steps": {}, "run": {}}
    assert compile_template(value).render(context) == rendered
