"""No expression takes the orchestrator's memory or its time, and none that people write is refused for it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.shared.contracts import cel_cost
from anabranch.shared.contracts.cel_cost import LOOKUP, Cost, size_of, weight
from anabranch.shared.contracts.expressions import compile_condition, compile_retry_condition, compile_template
from anabranch.shared.contracts.limits import MAX_EXPRESSION_COST, MAX_TEMPLATE_COST
from anabranch.shared.contracts.patterns import pattern_steps
from anabranch.shared.contracts.programs import ExpressionError, InvalidExpressionError, compile_expression
from tests.unit.contracts.poison import Writer

ROOT = Path(__file__).parents[3]

ROWS: list[dict[str, Any]] = [
    {"id": f"id-{n}", "name": f"the name of row {n}", "n": n, "ok": n % 2 == 0, "tags": ["a", "b"]}
    for n in range(5_000)
]
FEW = ROWS[:1_000]
SMALL_ROWS = [{"id": n, "state": "ok" if n % 3 else "bad"} for n in range(9_999)]
LARGE: dict[str, Any] = {
    "inputs": {
        "text": "x" * 250_000,
        "part": "y" * 5_000,
        "words": ["word"] * 9_000,
        "url": "https://example.org",
        "numbers": list(range(9_000)),
        "pattern": "(a|b)*c" * 2_800,
        "spread": "((x?){30}){30}y",
        "names": {f"id-{n}": f"name {n}" for n in range(1_000)},
    },
    "steps": {
        "page": {
            "output": {
                "rows": ROWS,
                "few": FEW,
                "small": SMALL_ROWS,
                "ids": [row["id"] for row in ROWS],
                "text": "some line\n" * 4_000,
                "ones": [1] * 400_000,
            }
        }
    },
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
    "range(9000).filter(i, i in inputs.numbers)",
    "inputs.text.matches(inputs.pattern)",
    "inputs.text.matches(inputs.spread)",
    "inputs.text.matches('((x?){30}){30}y')",
    "range(999).all(i, !'x'.matches('\\\\pL{20}y'))",
    "(inputs.text + 'y').contains(inputs.text + 'z')",
    "true ? steps.page.output.ones : []",
    "range(9999).all(x, " + " && ".join(["x >= 0"] * 200) + ")",
    "range(2000).all(x, inputs.text.indexOf('y', 9) < 0)",
    "range(9999).all(x, inputs.text.matches('(a|b)*c') || true)",
    "range(9999).all(x, inputs.words != [x])",
    "range(9999).all(x, size(inputs.text) > 0)",
    "range(2000).all(x, inputs.text.trim() != '')",
]


@pytest.mark.parametrize("source", ATTACKS)
def test_an_expression_that_could_take_all_memory_or_its_time_is_refused(source: str) -> None:
    """Before it runs, whatever it would take: memory, time, or both."""
    with pytest.raises(ExpressionError, match=f"costs more than {MAX_EXPRESSION_COST} units"):
        compile_expression(source).evaluate(LARGE)


def test_the_refusal_says_what_to_do_and_is_the_same_every_time() -> None:
    """The cost is counted from the values, so that every process refuses alike."""
    words = set()
    for _ in range(2):
        with pytest.raises(ExpressionError) as caught:
            compile_expression(ATTACKS[0]).evaluate(LARGE)
        words.add(str(caught.value))
    assert len(words) == 1
    assert "give it less" in words.pop()


@pytest.mark.parametrize("seed", range(3))
def test_no_random_expression_takes_more_memory_or_time_than_its_cost_allows(seed: int) -> None:
    """Random expressions over large values, in a process that has little memory: the slowest took a fraction."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.contracts.poison", str(seed), "120"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    endings = json.loads(done.stdout)
    assert min(endings.get("done", 0), endings.get("refused", 0)) > 10, "some get through, some do not"
    assert endings["slowest_ms"] < 10 * 50, done.stderr[-2000:]


@pytest.mark.parametrize(
    "source",
    [
        "inputs.words.join(', ')",
        "inputs.words.join(', ') + inputs.words.join('; ')",
        "steps.page.output.small.map(r, r.state)",
        "steps.page.output.small.filter(r, r.state == 'bad').size()",
        "steps.page.output.small.exists(r, r.state == 'worse')",
        "steps.page.output.small.all(r, r.id >= 0 && r.state != '')",
        "steps.page.output.small[17].state",
        "steps.page.output.rows.map(r, r.name)",
        "steps.page.output.rows.filter(r, r.ok && r.n > 100).size()",
        "steps.page.output.rows.exists_one(r, r.id == 'id-77')",
        "steps.page.output.rows.all(r, has(r.name) && r.name != '')",
        "steps.page.output.few.filter(r, r.ok)",
        "steps.page.output.few.map(r, {'id': r.id, 'name': r.name, 'url': inputs.url + '/' + r.id})",
        "steps.page.output.few.map(r, '%s: %d'.format([r.name, r.n])).join('\\n')",
        "steps.page.output.few.filter(r, r.ok).map(r, r.name + inputs.url)",
        "steps.page.output.few.filter(r, r.id.startsWith('id-') && r.name.matches('row [0-9]+$')).size()",
        "steps.page.output.few.filter(r, r.name.matches('^the .* row [0-9]{2}$')).map(r, r.id)",
        "steps.page.output.few.filter(r, r.n < 1000).map(r, r.tags.map(t, t + r.id).join(','))",
        "steps.page.output.few.map(r, r.name.upperAscii().replace(' ', '-'))",
        "steps.page.output.few.map(r, r.name.split(' ')[4])",
        "steps.page.output.few.map(r, r.tags).filter(t, size(t) > 1).size()",
        "steps.page.output.few.map(r, inputs.names[r.id])",
        "steps.page.output.few.map(r, r.id in inputs.names ? inputs.names[r.id] : r.name)",
        "steps.page.output.few.filter(r, r.tags.exists(t, t == 'b')).map(r, r.id)",
        "steps.page.output.few.map(r, r.name.contains(r.id) ? r.id : r.name)",
        "steps.page.output.few.map(r, timestamp(r.n).getFullYear())",
        "range(size(steps.page.output.few)).map(i, steps.page.output.few[i].name + steps.page.output.ids[i])",
        "range(999).map(i, 'number ' + string(i))",
        "range(9999).map(i, i * 2)",
        "range(100).map(x, range(x % 10).map(y, [x, y]))",
        "steps.page.output.text.split('\\n').map(l, l.trim()).filter(l, l != '')",
        "steps.page.output.text.replace('\\n', '<br>')",
        "steps.page.output.text.replace('some', inputs.url)",
        "steps.page.output.text.matches('error|warning|fatal')",
        "inputs.text.replace('z', inputs.part)",
        "inputs.text.contains('needle')",
        "inputs.text + inputs.text",
        "inputs.text.substring(0, 100)",
        "'%s %s %.2f'.format([inputs.url, inputs.text, 1.5])",
        "cel.bind(rows, steps.page.output.rows, {'n': rows.size(), 'first': rows[0], 'last': rows[rows.size() - 1]})",
        "steps.page.output.rows[0].name",
        "range(90).filter(i, steps.page.output.rows[i].id in steps.page.output.ids).size()",
        "math.greatest(inputs.numbers)",
        "size(steps.page.output.ids) == size(steps.page.output.rows)",
    ],
)
def test_an_expression_as_people_write_them_is_not_refused(source: str) -> None:
    """Over 1,000 to 10,000 rows, or pages of text."""
    compile_expression(source).evaluate(LARGE)


@pytest.mark.parametrize("source", ["inputs.text.matches(inputs.part + 'x')", "inputs.words.all(w, 'x'.matches(w))"])
def test_a_pattern_must_be_known_before_it_is_matched(source: str) -> None:
    """Its cost depends on what it says: a literal or a path."""
    with pytest.raises(InvalidExpressionError, match="the pattern of matches"):
        compile_expression(source)


@pytest.mark.parametrize(
    ("pattern", "least", "most"),
    [
        ("abc", 3, 30),
        ("^[0-9]{4}-[0-9]{2}$", 8, 60),
        ("((x?){30}){30}y", 900, 5_000),
        ("(x?){1000}y", 1_000, 5_000),
        ("\\pL{20}", 20_000, 200_000),
        ("[[:^alpha:]]{20}", 200, 1_000),
        ("(", 0, 30),
        ("{9}", 0, 30),
        ("(?i)[^a]{9}", 200, 1_000),
    ],
)
def test_a_pattern_costs_its_instructions_with_repetitions_written_out(pattern: str, least: int, most: int) -> None:
    assert least <= pattern_steps(pattern) <= most


class Purse:
    """Adds up what is charged."""

    def __init__(self) -> None:
        self.cost = 0

    def charge(self, cost: int) -> None:
        self.cost += cost


def test_what_is_evaluated_is_charged() -> None:
    """Templates, conditions, `retry.if`; a look-up next to nothing, what is refused as much as there may be."""
    purse = Purse()
    compile_template({"a": "${{ inputs.url }}"}).render(LARGE, purse)
    assert LOOKUP <= purse.cost < 2 * LOOKUP
    costs = []
    for evaluate in (
        lambda meter: compile_template("x ${{ size(inputs.words) }}").render(LARGE, meter),
        lambda meter: compile_condition("size(inputs.words) > 0").evaluate(LARGE, {}, meter=meter),
        lambda meter: compile_retry_condition("error.text == 'x'").evaluate({"text": "x" * 250_000}, 1, meter),
    ):
        purse = Purse()
        evaluate(purse)
        costs.append(purse.cost)
    assert all(1_000_000 < cost < MAX_EXPRESSION_COST for cost in costs)
    purse = Purse()
    with pytest.raises(ExpressionError):
        compile_expression(ATTACKS[0]).evaluate(LARGE, meter=purse)
    assert purse.cost == MAX_EXPRESSION_COST


def test_the_expressions_of_a_template_are_bounded_together() -> None:
    """One by one each of them is cheap enough."""
    one = "${{ range(9000).map(i, i).size() }}"
    assert compile_template([one]).render({}) == [9_000]
    purse = Purse()
    with pytest.raises(ExpressionError, match=f"cost more than {MAX_TEMPLATE_COST} units"):
        compile_template([one] * 30).render({}, purse)
    assert purse.cost < MAX_TEMPLATE_COST + MAX_EXPRESSION_COST


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
    """Most expressions are about such: they cost a constant."""
    measured: list[Any] = []

    def size(one: Any) -> cel_cost.Size:
        measured.append(one)
        return size_of(one)

    program = compile_expression(SUM)
    monkeypatch.setattr(cel_cost, "size_of", size)
    assert program.evaluate(steps_with(value)) == value + value + value
    assert measured == ([value] * 3 if is_measured else [])


def test_a_number_that_says_how_often_is_measured() -> None:
    """Small as it is, a range of it may be large."""
    source = "range(inputs.n).map(x, range(inputs.n).map(y, 'x' + string(y)).join('') + string(x))"
    assert len(compile_expression(source).evaluate({"inputs": {"n": 20}})) == 20
    with pytest.raises(ExpressionError, match="costs more than"):
        compile_expression(source).evaluate({"inputs": {"n": 9_999}})


@given(
    st.integers(0, 999_999),
    st.lists(
        st.none() | st.booleans() | st.floats() | st.integers(-(2**63), 2**63 - 1) | st.integers(0, 10_000)
        | st.text(max_size=256) | st.text("x", min_size=200, max_size=256),
        min_size=1,
    ),
)  # fmt: skip
def test_no_small_value_costs_more_than_the_constant_of_small_ones(seed: int, values: list[Any]) -> None:
    """So a context of small values needs no estimate of its own."""
    values = [one for one in values if cel_cost._is_small(one)]
    try:
        cost = compile_expression(Writer(seed).expression())._cost
    except InvalidExpressionError:
        return
    if cost is None or cost.when_small is None or not values:
        return
    context: dict[str, Any] = {}
    for at, path in enumerate(cost.paths):
        target = context
        for part in path[:-1]:
            target = target.setdefault(part, {})
        target[path[-1]] = values[at % len(values)]
    assert measured_cost(cost, context) <= cost.when_small


def measured_cost(cost: Cost, context: dict[str, Any]) -> int:
    """Return the cost by the values themselves."""
    return cost._run(cel_cost._Run(context))


@pytest.mark.parametrize(
    ("value", "most", "length", "item"),
    [
        ("abc", 3, 3, 3),
        ("ü", 4, 4, 4),
        (7, 8, 7, 8),
        (-7, 8, 0, 8),
        (None, 8, 0, 8),
        ([], 32, 0, 0),
        (["ab", "c"], 3 + 32 * 3, 2, 2),
        ({"a": 1}, 9 + 32 * 3, 1, 8),
        ([{"a": [1]}], 9 + 32 * 7, 1, 9 + 32 * 5),
    ],
)
def test_a_size_is_what_a_value_weighs_and_how_many_it_holds(value: Any, most: int, length: int, item: int) -> None:
    size = size_of(value)
    assert (size.most, size.total, size.length, size.item) == (most, most, length, item)
    assert weight(value) == most


def test_values_of_many_parts_cost_more_than_their_bytes_when_they_are_rendered() -> None:
    """A byte of `[{}, {}, …]` takes thirty times the work of a byte of a text."""

    class Sum:
        cost = 0

        def charge(self, cost: int) -> None:
            self.cost += cost

    def cost_of(value: Any) -> int:
        meter = Sum()
        compile_template("${{ inputs.x }}").render({"inputs": {"x": value}}, meter)
        return meter.cost

    assert cost_of([{}] * 80_000) > 15 * cost_of("x" * 240_000)
    assert cost_of([0] * 120_000) > 4 * cost_of("x" * 240_000)
    assert cost_of([{}] * 9) < 2_000


def test_weighing_stops_where_it_is_too_much_anyway() -> None:
    """Of 400,000 empty objects no more are weighed than a cost within the limit has."""
    with pytest.raises(cel_cost.TooExpensive):
        cel_cost.size_of([{}] * 400_000)
