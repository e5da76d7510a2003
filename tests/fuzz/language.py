"""Expressions, schemas and pipelines, drawn from their grammars."""

from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from tests.fuzz.values import MAX_WEIGHT, TEXTS, Long, Many, large, plain, scalars, values, weight

# --- expressions --------------------------------------------------------------------------------------------------

_ATOMS = st.sampled_from(
    (
        "inputs.n",
        "inputs.s",
        "inputs.l",
        "inputs.m",
        "inputs.nope",
        "inputs",
        "steps.a.output",
        "steps.a.status",
        "steps.a.error",
        "steps.a.output.value",
        "steps.b.?output.?x.orValue(1)",
        "run.id",
        "run.status",
        "run.started_at",
        "item",
        "i",
        "j",
        "1",
        "-1",
        "9223372036854775807",
        "1.5",
        "1e308",
        "'x'",
        "''",
        "'ü'",
        "b'\\xff'",
        "null",
        "true",
        "[]",
        "{}",
        "[1, 2]",
        "{'a': 1}",
        "range(9)",
        "range(9999)",
        "range(inputs.n)",
        "timestamp(0)",
        "duration('1s')",
        "'^(a+)+$'",
        "'.{900}'",
        "'%s'",
        "'%1000000d'",
        "type(1)",
        "1u",
        "dyn(inputs.s)",
    )
)
_ONE = (
    "size({0})",
    "string({0})",
    "int({0})",
    "double({0})",
    "!{0}",
    "-{0}",
    "({0})",
    "[{0}]",
    "{{'k': {0}}}",
    "{0}.trim()",
    "{0}.upperAscii()",
    "{0}.reverse()",
    "strings.quote({0})",
    "{0}.value",
    "{0}[0]",
    "has({0}.x)",
    "math.abs({0})",
    "math.greatest({0})",
    "optional.of({0}).orValue(1)",
    "optional.of({0})",
    "{0}.?x",
    "dyn({0})",
    "{0}.join()",
    "timestamp({0})",
    "bytes({0})",
    "uint({0})",
    "bool({0})",
    "type({0})",
    "duration({0})",
    "{0}.getFullYear()",
    "range({0})",
    "{0}.flatten()",
    "{0}.sort()",
    "{0}.distinct()",
    "sets.contains({0}, [1])",
    "lists.range({0})",
)
_TWO = (
    "{0} + {1}",
    "{0} - {1}",
    "{0} * {1}",
    "{0} / {1}",
    "{0} % {1}",
    "{0} == {1}",
    "{0} < {1}",
    "{0} && {1}",
    "{0} || {1}",
    "{0} in {1}",
    "{0}.contains({1})",
    "{0}.matches({1})",
    "{0}.split({1})",
    "{0}.join({1})",
    "{0}.map(i, {1})",
    "{0}.filter(i, {1})",
    "{0}.exists(i, {1})",
    "{0}.all(j, {1})",
    "{0}.exists_one(j, {1})",
    "{0}.map(j, {1}, {0})",
    "cel.bind(i, {0}, {1})",
    "{0}.format({1})",
    "'%s'.format([{0}, {1}])",
    "{0}[{1}]",
    "{0}.substring({1})",
    "{0}.indexOf({1})",
    "{0}.replace('', {1})",
    "[{0}, {1}]",
    "{{{0}: {1}}}",
    "{0} ? {1} : {0}",
    "optional.of({0}).optMap(i, {1}).orValue(0)",
    "{0}.startsWith({1})",
    "math.greatest({0}, {1})",
    "math.bitShiftLeft({0}, {1})",
    "{0}.charAt({1})",
)


def _grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds(lambda shape, one: shape.format(one), st.sampled_from(_ONE), inner),
        st.builds(lambda shape, one, two: shape.format(one, two), st.sampled_from(_TWO), inner, inner),
    )


grown = st.recursive(_ATOMS, _grow, max_leaves=14)
_NESTS = st.builds(
    lambda shape, depth, leaf: shape[0] * depth + leaf + shape[1] * depth,
    st.sampled_from(
        (
            ("(", ")"),
            ("[", "]"),
            ("[1].map(i, ", ")"),
            ("range(9).map(i, ", ")"),
            ("cel.bind(i, ", ", i + i)"),
            ("!", ""),
            ("true ? ", " : 1"),
            ("{'a': ", "}"),
            ("optional.of(", ").optMap(i, i).orValue(1)"),
            ("size(", ")"),
        )
    ),
    st.sampled_from((2, 3, 5, 8, 12, 24, 60, 250, 1000)),
    _ATOMS,
)
_CHAINS = st.builds(
    lambda joint, count, one: joint.join([one] * count),
    st.sampled_from((" + ", " && ", " || ", ".", ", ", " == ")),
    st.sampled_from((2, 9, 50, 400)),
    st.one_of(_ATOMS, grown),
)
_JUNK = st.one_of(
    st.text(max_size=30), st.text(alphabet="()[]{}.'\"\\?:+-*/%!&|<>=,0xabi \n", max_size=60), st.sampled_from(TEXTS)
)
expressions = st.one_of(grown, grown, grown, _NESTS, _CHAINS, _JUNK)
templates = st.one_of(
    expressions.map(lambda text: "${{ " + text + " }}"),
    st.builds(lambda text, count: f"<${{{{ {text} }}}}>" * count, expressions, st.sampled_from((1, 2, 30, 300))),
    st.lists(expressions.map(lambda text: "${{ " + text + " }}"), max_size=3),
    values,
)

# --- schemas ------------------------------------------------------------------------------------------------------

_PATTERNS = (
    "^a+$",
    "^(a+)+$",
    "^.{5000}$",
    "(x?){400}x{400}",
    "[",
    "(?=a)b",
    "\\p{L}+",
    "^.{500}$",
    "(?:a|a)*b",
    "(.*)(.*)(.*)(.*)z",
)
_FORMATS = ("uri", "date-time", "email", "regex", "ipv6", "uuid", "json-pointer", "no-such", "idn-hostname", "duration")
_REFS = (
    "#",
    "#/$defs/a",
    "#/$defs/b",
    "#/properties/a",
    "http://127.0.0.1:1/x",
    "file:///etc/passwd",
    "#nope",
    "a.json",
)
_SMALL = st.one_of(
    st.just({}),
    st.booleans(),
    st.sampled_from([{"type": each} for each in ("object", "array", "string", "integer", "number", "null", "x")]),
    st.builds(lambda ref: {"$ref": ref}, st.sampled_from(_REFS)),
    st.builds(lambda pattern: {"pattern": pattern}, st.sampled_from(_PATTERNS)),
    st.builds(lambda form: {"type": "string", "format": form}, st.sampled_from(_FORMATS)),
    st.builds(lambda value: {"enum": value}, st.one_of(st.lists(plain, max_size=3), large)),
    st.builds(lambda value: {"const": value}, values),
    st.builds(lambda value: {"default": value}, values),
    st.builds(
        lambda name, number: {name: number},
        st.sampled_from(
            (
                "minLength",
                "maxLength",
                "minItems",
                "maxItems",
                "multipleOf",
                "minimum",
                "minProperties",
                "uniqueItems",
                "maxContains",
            )
        ),
        scalars,
    ),
)


def _wider(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        st.builds(lambda key, each: {key: each}, st.sampled_from(("allOf", "anyOf", "oneOf", "prefixItems")), some),
        st.builds(
            lambda key, count, each: {key: Many(count, "list", each)},
            st.sampled_from(("allOf", "anyOf", "oneOf")),
            st.sampled_from((3, 30, 300, 3000)),
            inner,
        ),
        st.builds(
            lambda key, each: {key: each},
            st.sampled_from(
                (
                    "items",
                    "additionalProperties",
                    "propertyNames",
                    "not",
                    "contains",
                    "if",
                    "unevaluatedProperties",
                    "contentSchema",
                )
            ),
            inner,
        ),
        st.builds(lambda a, b: {"properties": {"a": a, "b": b}, "required": ["a", "zz"]}, inner, inner),
        st.builds(lambda pattern, each: {"patternProperties": {pattern: each}}, st.sampled_from(_PATTERNS), inner),
        st.builds(
            lambda a, b, c: {"$defs": {"a": a, "b": b}, **(c if isinstance(c, dict) else {})}, inner, inner, inner
        ),
        st.builds(
            lambda a, b: {**(a if isinstance(a, dict) else {}), **(b if isinstance(b, dict) else {})}, inner, inner
        ),
    )


def doubling(levels: int) -> dict[str, Any]:
    """A schema each level of which asks for the next one twice."""
    defs: dict[str, Any] = {
        f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]} for n in range(levels)
    }
    return {"$defs": {**defs, f"d{levels}": {"const": "never"}}, "$ref": "#/$defs/d0"}


schemas = st.one_of(
    st.recursive(_SMALL, _wider, max_leaves=6),
    st.sampled_from((2, 8, 16, 24)).map(doubling),
    st.sampled_from((2, 8, 14)).map(doubling),
    plain,
)
instances = st.one_of(
    values,
    st.builds(
        lambda count, length: {"a": {("y" * length + str(n)): 1 for n in range(count)}},
        st.sampled_from((3, 200, 2000)),
        st.sampled_from((1, 40)),
    ),
    st.builds(lambda count: Many(count, "list", Long(50, "a")), st.sampled_from((10, 1000))),
)

# --- pipelines ----------------------------------------------------------------------------------------------------

STEP_NAMES = ("a", "b", "c-d", "e_f", "g")
_CONDITIONS = st.one_of(
    st.sampled_from(("always()", "failed()", "succeeded()", "failed('a')", "!succeeded('a')", True, False)), expressions
)
_DURATIONS = st.sampled_from(("1s", "500ms", 0.5, "1h", 0, -1, "1d", 1e9, "x"))
_RETRIES = st.fixed_dictionaries(
    {},
    optional={
        "max_attempts": st.sampled_from((1, 2, 3, 0, 1000, 10**9)),
        "initial": _DURATIONS,
        "factor": st.sampled_from((1, 2, 0, 1e300)),
        "max": _DURATIONS,
        "jitter": st.sampled_from(("full", "equal", "none", "x")),
        "retry_on": st.lists(st.sampled_from(TEXTS), max_size=3),
        "if": st.one_of(st.sampled_from(("attempt < 2", "error.type == 'Boom'", "error.details.x == 1")), expressions),
    },
)
_INPUTS = st.fixed_dictionaries(
    {"n": st.just({"type": "integer", "default": 3})},
    optional={"s": st.just({"default": "text"}), "l": st.just({"default": [1, 2, 3]}), "m": schemas},
)


@st.composite
def steps(draw: st.DrawFn, before: tuple[str, ...]) -> dict[str, Any]:
    """Draw a step that may need those before it."""
    uses = draw(st.sampled_from(("simulate", "simulate", "transform", "transform", "http", "nobody")))
    step: dict[str, Any] = {"uses": uses}
    if before:
        step["needs"] = draw(st.lists(st.sampled_from(before), unique=True, max_size=3))
    if uses == "transform":
        wraps = (
            "${{ [[[[[[[[[[[[[[[[[[[[steps." + before[0] + ".output]]]]]]]]]]]]]]]]]]]] }}"
            if before and before[0] == "a"
            else 1
        )
        step["with"] = {"value": draw(st.one_of(templates, st.just(wraps)))}
    elif draw(st.booleans()):
        step["with"] = {"value": draw(templates)}
    for name, drawn in (
        ("if", _CONDITIONS),
        ("retry", _RETRIES),
        ("timeout", _DURATIONS),
        ("continue_on_error", st.booleans()),
    ):
        if draw(st.integers(0, 4)) == 0:
            step[name] = draw(drawn)
    return step


@st.composite
def pipelines(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a definition that is nearly right."""
    names = STEP_NAMES[: draw(st.integers(1, 5))]
    pipeline: dict[str, Any] = {
        "name": "p",
        "inputs": draw(_INPUTS),
        "steps": {n: draw(steps(names[:i])) for i, n in enumerate(names)},
    }
    for name, drawn in (
        ("timeout", _DURATIONS),
        ("fail_fast", st.booleans()),
        ("description", values),
        ("max_parallel", scalars),
    ):
        if draw(st.integers(0, 6)) == 0:
            pipeline[name] = draw(drawn)
    if draw(st.booleans()):
        pipeline["outputs"] = draw(st.dictionaries(st.sampled_from(("o", "p", "ü")), templates, max_size=2))
    return pipeline


@st.composite
def submissions(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the body of `POST /v1/runs`, nearly right."""
    body: dict[str, Any] = {"definition": draw(pipelines())}
    if draw(st.booleans()):
        body["inputs"] = draw(
            st.dictionaries(st.sampled_from(("n", "s", "l", "m", "zz")), st.one_of(st.just(3), instances), max_size=3)
        )
    if draw(st.integers(0, 3)) == 0:
        body["labels"] = draw(
            st.dictionaries(st.sampled_from(TEXTS), st.one_of(st.sampled_from(TEXTS), values), max_size=3)
        )
    assume(weight(body) <= MAX_WEIGHT)
    return body
