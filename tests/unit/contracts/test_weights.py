"""What schemas, patterns and values cost, and that nothing costs much more than it was said to."""

import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch.shared.contracts.limits import MAX_SCHEMA_COST, MAX_SCHEMA_WEIGHT
from anabranch.shared.contracts.schemas import Schema, SchemaError, compile_schema
from anabranch.shared.contracts.weights import expression_cost, pattern_states, size_of, weigh_schema

TWICE = {"anyOf": [{"items": {"$ref": "#"}}, {"items": {"$ref": "#"}}]}
TREE = {
    "type": "object",
    "properties": {"children": {"type": "array", "items": {"$ref": "#"}}, "name": {"type": "string"}},
}
ANY_JSON = {"anyOf": [{"type": "string"}, {"items": {"$ref": "#"}}, {"additionalProperties": {"$ref": "#"}}]}


@pytest.mark.parametrize(
    ("pattern", "states"),
    [("abc", 4), ("a{10}", 11), ("(ab){3}{4}", 25), ("^.{5}$", 53), ("[a-z]{1,63}", 64), ("a{2,}", 3), ("(((", 1),
     ("\\p{L}{2}", 801), ("[^\\]]x", 12), ("a{1000}" * 3, 3001), ("((a{999}){999}){999}", 997_002_999 + 1)],
)  # fmt: skip
def test_a_pattern_has_the_states_of_its_repetitions_written_out(pattern: str, states: int) -> None:
    """Nested ones multiply."""
    assert pattern_states(pattern) == states


LIST = {"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}


@pytest.mark.parametrize("schema", [TREE, ANY_JSON, LIST])
def test_a_schema_that_contains_itself_once_is_light(schema: Any) -> None:
    """For each value below it applies once."""
    assert weigh_schema(schema).per_value < 20
    assert isinstance(compile_schema(schema), Schema)


@pytest.mark.parametrize(
    "schema",
    [
        TWICE,
        {"allOf": [{"$ref": "#"}]},
        {"$ref": "#/$defs/d0", "$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(24)}},
        {"not": {"$dynamicRef": "#x"}, "$dynamicAnchor": "x"},
        {"enum": list(range(100_000))},
        {"properties": {f"p{i}": {"pattern": "a{9999}"} for i in range(100)}},
        {"pattern": "(a{1000}){1000}"},
        {"properties": {f"p{i}": {"type": "string"} for i in range(25_000)}},
    ],
)
def test_a_schema_that_asks_too_much_is_refused_before_it_is_compiled(schema: Any) -> None:
    """Of one value, or to compile: one function says so for inputs and for announcements."""
    weight = weigh_schema(schema)
    assert weight.per_value > MAX_SCHEMA_WEIGHT or weight.compiling > MAX_SCHEMA_COST
    began = time.process_time()
    with pytest.raises(SchemaError, match="too"):
        compile_schema(schema)
    assert time.process_time() - began < 60  # a hang guard


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1/x", "file:///etc/passwd", "//x/y", "other.json#/a"])
@pytest.mark.parametrize("key", ["$ref", "$dynamicRef", "$schema"])
def test_no_schema_is_fetched(uri: str, key: str) -> None:
    """Whatever refers to one is refused."""
    with pytest.raises(SchemaError):
        compile_schema({key: uri})


def test_a_value_is_measured_with_what_errors_repeat() -> None:
    """Each value's bytes once for itself and once for all around it."""
    size = size_of({"a": [1, "xy"]})
    assert (size.values, size.size) == (4, 6 + 4 + 8 + 4)
    assert size.repeated == 22 + 16 + 8 + 4
    assert size.repeated_by_key == 22


def test_an_expression_costs_by_its_tokens_and_macros() -> None:
    """A long text costs nothing, a chain of optMap doubles."""
    assert expression_cost("'" + "x" * 4000 + "'") < 3_000
    assert expression_cost("[1].map(x, x)") > expression_cost("[1].size(x, x)") + 10_000
    assert expression_cost("é" * 2000) > 160_000  # 16 ms of errors were counted as one name
    assert expression_cost("inputs.a") < 1_000


ONE = "a.?b.optMap(v, v).orValue(1)"


@pytest.mark.parametrize(
    "chain",
    ["a" + ".optMap(v, v)" * 10, "(" * 10 + "a" + ".optMap(v, v))" * 10, "f(" * 10 + "a" + ").optMap(v, v)" * 10,
     "a" + ".optFlatMap(v, v) " * 10],
)  # fmt: skip
def test_a_chain_of_optional_macros_doubles(chain: str) -> None:
    """What stands before each of them is written out twice, in whatever brackets."""
    assert expression_cost(chain + ".optMap(v, v)") > 1.8 * expression_cost(chain)


@pytest.mark.parametrize("several", ["[" + ", ".join([ONE] * 60) + "]", " + ".join([ONE] * 60)])
def test_optional_macros_beside_one_another_do_not_double(several: str) -> None:
    """Sixty of them cost sixty times one: they take 60 ms and were refused as if they took days."""
    assert expression_cost(several) < 62 * expression_cost(ONE)


# ---- Random schemas on random values -------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "x" * 40])
PATTERNS = st.sampled_from(["^a", "a{50}", ".{20}$", "(a|b)*c", "\\d+", "(a?){30}a{30}", "\\p{L}{3}", "["])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS | st.sampled_from(["a" * 2000, 2**63, 1e308]),
    lambda below: st.lists(below, max_size=6) | st.dictionaries(NAMES, below, max_size=4),
    max_leaves=40,
)


ONE_BELOW = (
    "not", "if", "then", "else", "items", "contains", "propertyNames", "additionalProperties", "unevaluatedItems",
    "unevaluatedProperties",
)  # fmt: skip


def keywords(below: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several, named = st.lists(below, min_size=1, max_size=3), st.dictionaries(NAMES, below, max_size=3)
    optional = dict.fromkeys(ONE_BELOW, below)
    optional |= dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), several)
    optional |= dict.fromkeys(("properties", "dependentSchemas", "$defs"), named)
    return st.fixed_dictionaries({}, optional=optional)  # type: ignore[arg-type]


LEAVES: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["string", "object", "array", "integer", "null"]), "pattern": PATTERNS,
        "enum": st.lists(SCALARS, min_size=1, max_size=5), "const": VALUES, "uniqueItems": st.booleans(),
        "multipleOf": st.sampled_from([1e-300, 3, 0.1]), "required": st.lists(NAMES, max_size=3, unique=True),
        "minItems": st.integers(0, 3), "maxLength": st.integers(0, 9),
        "$ref": st.sampled_from(["#", "#/$defs/a", "#/items"]),
        "format": st.sampled_from(["date-time", "uri", "idn-hostname", "idn-email", "regex", "uuid", "duration"]),
    },
)  # fmt: skip
SCHEMAS = st.recursive(st.booleans() | LEAVES, keywords, max_leaves=25)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(SCHEMAS, st.lists(VALUES, max_size=5), st.sampled_from([1, 30]))
def test_nothing_costs_much_more_than_it_was_said_to(schema: Any, some: list[Any], times: int) -> None:
    """A unit is 0.1 µs; the processor may take a hundred times that, and 20 s for what is done once."""
    spent = [0]

    def spend(units: int) -> None:
        spent[0] += units
        if spent[0] > 5_000_000:
            raise OverflowError

    began = time.process_time()
    try:
        compiled = compile_schema(schema, spend)
        for violation in compiled.violations(some * times, spend):
            assert len(violation.message) <= 500
    except (SchemaError, OverflowError):
        pass
    assert time.process_time() - began < 20 + 100 * spent[0] / 1e7
