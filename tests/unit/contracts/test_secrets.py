"""How a definition names secrets, and where it may."""

from typing import Any

import orjson
import pytest

from anabranch.shared.contracts.expressions import SecretText, compile_template
from anabranch.shared.contracts.report import InvalidPipeline
from anabranch.shared.contracts.secrets import secret_named
from anabranch.shared.contracts.source import parse_source
from anabranch.shared.contracts.validation import validate_pipeline

TYPES = {
    "call": {
        "type": "object",
        "properties": {
            "text": {"type": "string", "maxLength": 5, "pattern": "^a"},
            "count": {"type": "integer"},
            "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
            "many": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "additionalProperties": False,
    }
}
ALONE = "stands alone in its ${{ }}"
ONLY_THERE = "only in the `with` of a step that a step service runs"


def problems(**changes: Any) -> dict[str, str]:
    """Return what is wrong with a definition, by place."""
    definition = {"name": "p", "steps": {"a": {"uses": "call"}}, **changes}
    try:
        validate_pipeline(parse_source(orjson.dumps(definition)), step_types=TYPES)
    except InvalidPipeline as refusal:
        return {each.pointer: each.message for each in refusal.errors}
    return {}


def a_call(**given: Any) -> dict[str, Any]:
    """Return the steps of a definition with one call."""
    return {"a": {"uses": "call", "with": given}}


@pytest.mark.parametrize(
    ("expression", "name"),
    [
        (" secrets.TOKEN ", "TOKEN"), ("secrets.a_b1", "a_b1"), ("secrets['api-key']", "api-key"),
        ('secrets["api-key"]', "api-key"), ("secrets [ 'K' ]", "K"), ("secrets.\n_K", "_K"),
    ],
)  # fmt: skip
def test_a_secret_is_named_by_itself(expression: str, name: str) -> None:
    """With a dot or in brackets, a dash only there."""
    assert secret_named(expression) == name


@pytest.mark.parametrize(
    "expression",
    [
        "secrets", "secrets.", "secrets.a-b", "secrets.1", "secrets.A.B", "secrets['A'].B", "secrets['']",
        "secrets['../A']", "secrets['a/b']", "secrets['a.b']", "secrets['..']", "secrets['.A']", "secrets['A\\n']",
        "secrets[inputs.name]", "secrets[A]", "secrets.A + 'x'", "size(secrets.A)", "Secrets.A", "inputs.secrets.A",
        "secrets.A // why", "secrets.Ä", "secrets['Ä']", "secrets['-a']", f"secrets.{'a' * 64}", "(secrets.A)",
    ],
)  # fmt: skip
def test_nothing_else_names_a_secret(expression: str) -> None:
    """No path, no name that is computed, nothing that is done with a value."""
    assert secret_named(expression) is None


def test_secrets_stand_beside_the_value_and_never_in_it() -> None:
    """What is around them is rendered, and their places are told by pointers."""
    given = {
        "whole": "${{ secrets.A }}",
        "a/b~": ["x", "Bearer ${{ secrets['b-c'] }}:${{ inputs.x }}${{ secrets.A }}"],
        "plain": "${{ inputs.x }}",
    }
    found: list[SecretText] = []
    template = compile_template(given, may_name_secrets=True)
    assert template.render({"inputs": {"x": 1}}, secrets=found) == {"whole": None, "a/b~": ["x", None], "plain": 1}
    assert found == [
        SecretText("/whole", ("", "A", "")),
        SecretText("/a~1b~0/1", ("Bearer ", "b-c", ":1", "A", "")),
    ]


@pytest.mark.parametrize("text", ["${{ secrets.A }}", "$${{ secrets.A }}", "Bearer ${{ secrets.A }}"])
def test_what_an_input_says_names_no_secret(text: str) -> None:
    """A client may send whatever looks like one; so does what is written with a second dollar."""
    found: list[SecretText] = []
    template = compile_template(["${{ inputs.x }}", "at ${{ inputs.x }}", "$${{ secrets.A }}"], may_name_secrets=True)
    rendered = template.render({"inputs": {"x": text}}, secrets=found)
    assert (rendered, found) == ([text, f"at {text}", "${{ secrets.A }}"], [])


def test_a_secret_belongs_into_the_with_of_a_step() -> None:
    """Whole or within a longer text; only that it is a text is known of it."""
    assert (
        problems(steps=a_call(text="${{ secrets.A }}", either="x${{ secrets.A }}", many={"a": "${{secrets.A}}"})) == {}
    )
    wrong = problems(steps=a_call(count="${{ secrets.A }}", many={"a": ["${{ secrets.A }}"]}, more="${{ secrets.A }}"))
    assert sorted(wrong) == ["/steps/a/with/count", "/steps/a/with/many/a", "/steps/a/with/more"]
    assert "integer" in wrong["/steps/a/with/count"]


@pytest.mark.parametrize(
    ("changes", "pointer", "words"),
    [
        ({"outputs": {"o": "${{ secrets.A }}"}}, "/outputs/o", ONLY_THERE),
        ({"outputs": {"o": "${{ secrets.A + '' }}"}}, "/outputs/o", ALONE),
        ({"steps": {"a": {"uses": "call", "if": "secrets.A"}}}, "/steps/a/if", ONLY_THERE),
        ({"steps": {"a": {"uses": "call", "if": "${{ secrets.A == 'x' }}"}}}, "/steps/a/if", ALONE),
        ({"steps": {"a": {"uses": "call", "retry": {"max_attempts": 2, "if": "secrets.A == error.type"}}}},
         "/steps/a/retry/if", ALONE),
        ({"steps": {"a": {"uses": "transform", "with": {"value": ["x ${{ secrets.A }}"]}}}},
         "/steps/a/with/value/0", ONLY_THERE),
        ({"steps": a_call(text="${{ secrets.A + 'x' }}")}, "/steps/a/with/text", ALONE),
        ({"steps": a_call(text="${{ secrets[inputs.x] }}"), "inputs": {"x": {}}}, "/steps/a/with/text", ALONE),
        ({"steps": a_call(text="${{ [secrets.A] }}")}, "/steps/a/with/text", ALONE),
        ({"steps": a_call(text="${{ secrets.api-key }}")}, "/steps/a/with/text", "secrets['api-key']"),
        ({"steps": a_call(many={"${{ secrets.A }}": "x"})}, "/steps/a/with/many/${{ secrets.A }}", "in a key"),
        ({"inputs": {"i": {"default": ["${{ secrets.A }}"]}}}, "/inputs/i/default/0", "cannot be an input"),
    ],
)  # fmt: skip
def test_a_secret_elsewhere_is_refused_where_it_stands(changes: dict[str, Any], pointer: str, words: str) -> None:
    """Nothing that the engine evaluates, shows or stores can hold one."""
    assert words in problems(**changes)[pointer]


def test_a_variable_of_a_macro_may_still_be_called_secrets() -> None:
    """The name is taken only where it is the whole expression."""
    assert problems(inputs={"l": {}}, outputs={"o": "${{ inputs.l.map(secrets, secrets.a) }}"}) == {}
