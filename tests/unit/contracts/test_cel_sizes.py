"""No expression takes the orchestrator's memory or its minutes, and none that people write is refused for it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.shared.contracts import cel_sizes
from anabranch.shared.contracts.cel_sizes import Estimate, size_of
from anabranch.shared.contracts.limits import MAX_EVALUATION_BYTES, MAX_EVALUATION_READS
from anabranch.shared.contracts.programs import ExpressionError, InvalidExpressionError, compile_expression
from tests.unit.contracts.poison import Writer

ROOT = Path(__file__).parents[3]

ROWS: list[dict[str, Any]] = [
    {"id": f"id-{n}", "name": f"the name of row {n}", "n": n, "ok": n % 2 == 0, "tags": ["a", "b"]}
    for n in range(5_000)
]
LARGE: dict[str, Any] = {
    "inputs": {"text": "x" * 250_000, "part": "y" * 5_000, "words": ["word"] * 10_000, "url": "https://example.org"},
    "steps": {"page": {"output": {"rows": ROWS, "ids": [row["id"] for row in ROWS], "text": "some line\n" * 4_000}}},
    "run": {"id": "r"},
}


def bound(depth: int) -> str:
    """Return an expression that multiplies its input by four on every level."""
    source = f"size(b{depth})"
    for level in range(depth, 0, -1):
        source = f"cel.bind(b{level}, {' + '.join([f'b{level - 1}'] * 4)}, {source})"
    return f"cel.bind(b0, inputs.text, {source})"


ATTACKS = [
    "inputs.text.replace('x', inputs.part)",
    "inputs.text.replace('', inputs.part)",
    "inputs.text.replace(inputs.part, inputs.text)",
    "range(4000).map(x, inputs.text + 'x')",
    "range(4000).map(x, inputs.text)",
    "range(9999).all(x, inputs.text + 'x' != '')",
    "range(9999).filter(x, inputs.text.upperAscii() == '').size()",
    "range(99).map(x, range(99).map(y, inputs.text + 'x'))",
    "range(2000).all(x, size(range(9999)) > 0)",
    "range(2000).map(x, inputs.words.join(','))",
    "range(2000).map(x, '%s'.format([inputs.words]))",
    "range(2000).map(x, inputs.text.split('')).size()",
    "range(2000).map(x, inputs.words + inputs.words).size()",
    "inputs.words.join(inputs.text)",
    "[inputs.text].map(x, range(9999).map(y, x + x))",
    "{'a': range(4000).map(x, inputs.text + 'x')}.a[0]",
    "optional.of(inputs.text).optMap(t, t.replace('x', inputs.part)).orValue('')",
    "(inputs.url == '' ? inputs.url : inputs.text).replace('x', inputs.part)",
    bound(7),
    bound(7).replace("b0 + b0 + b0 + b0", "[b0, b0, b0, b0]").replace("size(b7)", "b7"),
    "cel.bind(a, [inputs.text, inputs.text], range(9999).map(x, a))",
    # The memory is not much, the time is:
    "range(9999).all(x, inputs.text.matches('(a|b)*c') || true)",
    "range(9999).all(x, inputs.words != [x])",
    "range(9999).all(x, size(inputs.text) > 0)",
    "range(2000).all(x, inputs.text.trim() != '')",
]


@pytest.mark.parametrize("source", ATTACKS)
def test_an_expression_that_could_take_all_memory_or_minutes_is_refused(source: str) -> None:
    with pytest.raises(ExpressionError, match=r"could (allocate|read) \d+ bytes with these values, at most \d+"):
        compile_expression(source).evaluate(LARGE)


def test_the_refusal_says_what_to_do_and_is_the_same_every_time() -> None:
    words = set()
    for _ in range(2):
        with pytest.raises(ExpressionError) as caught:
            compile_expression(ATTACKS[0]).evaluate(LARGE)
        words.add(str(caught.value))
    assert len(words) == 1
    assert f"at most {MAX_EVALUATION_BYTES} are allowed; give it less" in words.pop()
    assert MAX_EVALUATION_BYTES < MAX_EVALUATION_READS


@pytest.mark.parametrize("seed", range(3))
def test_no_random_expression_takes_more_memory_than_a_process_may_have(seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.contracts.poison", str(seed), "120"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    endings = json.loads(done.stdout)
    assert min(endings.get("done", 0), endings.get("refused", 0)) > 10, "some get through, some do not"


@pytest.mark.parametrize(
    "source",
    [
        "inputs.words.join(', ')",
        "inputs.words.join(', ') + inputs.words.join('; ')",
        "steps.page.output.rows.map(r, r.name)",
        "steps.page.output.rows.map(r, {'id': r.id, 'name': r.name, 'url': inputs.url + '/' + r.id})",
        "steps.page.output.rows.map(r, '%s: %d'.format([r.name, r.n])).join('\\n')",
        "steps.page.output.rows.filter(r, r.ok).map(r, r.name + inputs.url)",
        "steps.page.output.rows.filter(r, r.id.startsWith('id-') && r.name.matches('row [0-9]+$')).size()",
        "steps.page.output.rows.filter(r, r.n < 1000).map(r, r.tags.map(t, t + r.id).join(','))",
        "range(size(steps.page.output.rows)).map(i, steps.page.output.rows[i].name + steps.page.output.ids[i])",
        "range(9999).map(i, 'number ' + string(i))",
        "range(100).map(x, range(x % 10).map(y, [x, y]))",
        "steps.page.output.text.split('\\n').map(l, l.trim()).filter(l, l != '')",
        "steps.page.output.text.replace('\\n', '<br>')",
        "steps.page.output.text.replace('some', inputs.url)",
        "inputs.text.replace('z', inputs.part)",
        "'%s %s %.2f'.format([inputs.url, inputs.text, 1.5])",
        "cel.bind(rows, steps.page.output.rows, {'n': rows.size(), 'first': rows[0], 'last': rows[rows.size() - 1]})",
        "steps.page.output.rows[0].name",
        "range(500).filter(i, steps.page.output.rows[i].id in steps.page.output.ids).size()",
    ],
)
def test_an_expression_as_people_write_them_is_not_refused(source: str) -> None:
    compile_expression(source).evaluate(LARGE)


@pytest.mark.parametrize(
    "source",
    [
        "inputs.url + '/' + inputs.part + '?' + inputs.url",
        "inputs.url == 'x' && steps.page.output.n > 3 ? 'a' : 'b'",
        "size(steps.page.output.rows) > 0",
        "steps.page.output.rows.map(r, r.name)",
        "steps.page.output.rows.filter(r, r.ok)",
        "steps.page.output.rows.all(r, r.n >= 0)",
        "steps.page.output.text.split('\\n')",
        "steps.page.output.text.replace('\\n', '<br>')",
        "'%s %s'.format([inputs.url, steps.page.output.text])",
        "steps.page.?output.?x.orValue([])",
    ],
)
def test_a_harmless_expression_is_never_measured(source: str) -> None:
    assert compile_expression(source)._estimate is None


SUM = "steps.b.output.value + steps.c.output.value + steps.d.output.value"


def steps_with(value: Any) -> dict[str, Any]:
    return {"steps": {name: {"output": {"value": value}} for name in "bcd"}}


@pytest.mark.parametrize(
    ("value", "is_measured"),
    [(1, False), (-1.5, False), ("x" * 256, False), ("ü" * 256, False), ("x" * 257, True), ([1], True)],
)
def test_numbers_and_short_texts_are_not_measured_where_they_cannot_add_up(
    value: Any, is_measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Any] = []

    def size(one: Any) -> cel_sizes.Size:
        measured.append(one)
        return size_of(one)

    program = compile_expression(SUM)
    monkeypatch.setattr(cel_sizes, "size_of", size)
    assert program.evaluate(steps_with(value)) == value + value + value
    assert measured == ([value] * 3 if is_measured else [])


def test_a_number_that_says_how_often_is_measured() -> None:
    """Small as it is, a range of it may be large."""
    source = "range(inputs.n).map(x, range(inputs.n).map(y, 'x' + string(y)).join('') + string(x))"
    assert len(compile_expression(source).evaluate({"inputs": {"n": 20}})) == 20
    with pytest.raises(ExpressionError, match="could allocate"):
        compile_expression(source).evaluate({"inputs": {"n": 9_999}})


@given(
    st.integers(0, 999_999),
    st.lists(
        st.none() | st.booleans() | st.floats() | st.integers(-(2**63), 2**63 - 1) | st.integers(0, 10_000)
        | st.text(max_size=256) | st.text("x", min_size=200, max_size=256),
        min_size=1,
    ),
)  # fmt: skip
def test_no_small_value_makes_an_estimate_larger_than_the_bound_of_all_small_ones(seed: int, values: list[Any]) -> None:
    """So a context of small values needs no estimate of its own where that bound is within the limits."""
    values = [one for one in values if cel_sizes._is_small(one)]
    try:
        estimate = compile_expression(Writer(seed).expression())._estimate
    except InvalidExpressionError:
        return
    if estimate is None or not values:
        return
    context: dict[str, Any] = {}
    for at, path in enumerate(estimate._paths):
        target = context
        for part in path[:-1]:
            target = target.setdefault(part, {})
        target[path[-1]] = values[at % len(values)]
    bound_of_all = cel_sizes._Run({}, dict.fromkeys(estimate._paths, cel_sizes._SMALL))
    assert all(one <= most for one, most in zip(cost(estimate, context), cost(estimate, bound_of_all), strict=True))


def cost(estimate: Estimate, run: "cel_sizes._Run | dict[str, Any]") -> tuple[int, int]:
    """Return the bytes allocated and read."""
    run = cel_sizes._Run(run) if isinstance(run, dict) else run
    result = estimate._measure(run)
    return run.allocated + result.most, run.read


@pytest.mark.parametrize(
    ("value", "most", "length", "item"),
    [
        ("abc", 3, 3, 3),
        ("ü", 4, 4, 4),
        (7, 8, 7, 8),
        (-7, 8, 0, 8),
        (None, 8, 0, 8),
        ([], 2 + 64, 0, 0),
        (["ab", "c"], 10 + 32 * 3, 2, 2),
        ({"a": 1}, 7 + 32 * 3, 1, 7 + 32 * 3),
    ],
)
def test_a_size_is_what_a_value_weighs_and_how_many_it_holds(value: Any, most: int, length: int, item: int) -> None:
    size = size_of(value)
    assert (size.most, size.total, size.length, size.item) == (most, most, length, item)
