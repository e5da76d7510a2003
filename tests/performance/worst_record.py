"""Searches for the worst single record that a client can cause: definition, inputs and outputs drawn, the worst kept.

`python -m tests.performance.worst_record [seconds] [seed]` draws runs from a grammar of what is costly, decides their
records, and climbs: of the worst run so far one part is drawn anew. CPU time of the orchestrator's loop per record:
deciding it, and committing what was decided. Compiling is measured apart, as it yields to the loop.
"""

import json
import random
import sys
import time
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final

from anabranch.services.orchestrator.core.graph import DefinitionRefused, compile_pipeline
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.limits import MAX_INPUTS_BYTES, MAX_STEP_OUTPUT_BYTES
from anabranch.shared.contracts.programs import InvalidExpressionError, compile_expression
from tests.support.builders import ARun, a_step, a_submission, failed, started, succeeded

ALLOWED_MS: Final = 250
MOST_RECORDS: Final = 24  # of one run: later ones are like these

EXPRESSIONS: Final = (
    "range({n}).filter(i, i in {list}).size() >= 0",
    "range({n}).map(i, i).size() > 0",
    "range({n}).map(i, [i, i])",
    "range({n}).map(i, {{'a': i, 'b': string(i)}})",
    "range({n}).all(i, {text}.contains('y') || true)",
    "range({n}).all(i, size({text}) > 0)",
    "range({n}).all(i, {list} != [i])",
    "range({n}).all(i, '%s'.format([{list}]) != '')",
    "range({n}).all(i, {text}.trim() != '')",
    "range({n}).all(i, {text}.indexOf('y', 9) < 0)",
    "range({n}).all(i, !'x'.matches('[^a]{{99}}'))",
    "range({n}).map(i, range({n}).map(j, i + j)).size() > 0",
    "{list}.map(x, x)",
    "{list}.filter(x, x != 7)",
    "{list}.map(x, x == 7 ? 1 : 2)",
    "{list}.exists_one(x, x == 7)",
    "{list}.map(x, [x, x, x])",
    "{list} == {list}",
    "{list} + {list}",
    "true ? {list} : []",
    "true ? {map} : {{}}",
    "{map} == {map}",
    "size({list}) > 0",
    "size({map}) > 0",
    "{text}.matches('((x?){{30}}){{30}}y')",
    "{text}.matches('(a|b)*a(a|b){{{few}}}c')",
    "{text}.matches(inputs.pattern)",
    "{text}.replace('x', 'yy')",
    "{text}.split('x').size() > 0",
    "{text}.split('').map(c, c)",
    "{text}.contains({text})",
    "{text}.reverse() != strings.quote({text})",
    "{text} + {text}",
    "{text}",
    "{list}",
    "{map}",
    "1 + 1",
)  # fmt: skip
COUNTS: Final = (1, 9, 60, 300, 1_000, 2_500, 5_000, 9_000, 9_999)
TEXTS: Final = ("inputs.text", "steps.first.output.text")
LISTS: Final = ("inputs.list", "steps.first.output.list", "inputs.numbers")
MAPS: Final = ("inputs.map", "steps.first.output.map")
PLACES: Final = ("with", "if", "transform", "retry", "outputs")


@dataclass
class Draw:
    """A run to try: expressions by the place they stand in, how many steps and how often each, and the large values."""

    expressions: dict[str, list[str]]
    steps: int
    repeats: int
    large: str

    @classmethod
    def new(cls, chance: random.Random) -> "Draw":
        """Return a random one."""
        draw = cls({}, 1, 1, "")
        for part in ("expressions", "steps", "repeats", "large"):
            draw.redraw(part, chance)
        return draw

    def redraw(self, part: str, chance: random.Random) -> None:
        """Draw one part anew."""
        match part:
            case "expressions":
                self.expressions = {
                    place: [expression(chance) for _ in range(chance.choice((1, 1, 2, 5)))]
                    for place in PLACES
                    if chance.random() < 0.6
                }
            case "steps":
                self.steps = chance.choice((1, 3, 30, 256))
            case "repeats":
                self.repeats = chance.choice((1, 1, 3, 30, 300))
            case _:
                self.large = chance.choice(("ints", "empty", "rows", "words", "nested"))


def expression(chance: random.Random) -> str:
    """Return a random expression that compiles."""
    while True:
        shape = chance.choice(EXPRESSIONS)
        source = shape.format(
            n=chance.choice(COUNTS), few=chance.choice((8, 12, 16, 40)), text=chance.choice(TEXTS),
            list=chance.choice(LISTS), map=chance.choice(MAPS),
        )  # fmt: skip
        try:
            compile_expression(source)
        except InvalidExpressionError:
            continue
        return source


def large_list(kind: str, limit: int) -> list[Any]:
    """Return a list that takes nearly so many bytes as JSON."""
    one: Any = {
        "ints": 1,
        "empty": {},
        "rows": {"id": 1, "name": "a name", "ok": True},
        "words": "word",
        "nested": [[1]],
    }[kind]
    return [one] * (limit // (len(json.dumps(one, separators=(",", ":"))) + 1))


def run_of(draw: Draw) -> tuple[m.SubmitRun, dict[str, Any]]:
    """Return the submission, and the output of its first step."""
    quarter = MAX_INPUTS_BYTES // 5
    inputs = {
        "text": "x" * quarter, "list": large_list(draw.large, quarter), "pattern": "(a|b)*c" * 99,
        "numbers": list(range(8_000)), "map": {f"k{n}": n for n in range(3_000)},
    }  # fmt: skip
    third = MAX_STEP_OUTPUT_BYTES // 3 - 100
    output = {"text": "x" * third, "list": large_list(draw.large, third), "map": {f"k{n}": n for n in range(18_000)}}
    there = draw.expressions
    value = ["${{ " + one + " }}" for one in there.get("with", ["1 + 1"])] * draw.repeats
    step: dict[str, Any] = a_step("first", with_={"value": value}, continue_on_error=True)
    if "transform" in there:
        step["uses"] = "transform"
        step["with"] = {"value": ["${{ " + one + " }}" for one in there["transform"]] * draw.repeats}
    if "if" in there:
        step["if"] = f"dyn({there['if'][0]}) == dyn({there['if'][-1]}) || true"
    first: dict[str, Any] = a_step()
    if "retry" in there:
        first["retry"] = {"max_attempts": 2, "if": "range(9000).map(i, i).size() > 0"}
    steps = {"first": first} | {f"s{n}": step for n in range(draw.steps)}
    outputs = {f"o{n}": "${{ " + one + " }}" for n, one in enumerate(there.get("outputs", []))}
    return a_submission(steps, inputs=inputs, outputs=outputs), output


@dataclass(order=True)
class Found:
    """How long a record took."""

    ms: float
    record: str = field(compare=False)
    draw: Draw = field(compare=False)
    compile_ms: float = field(compare=False, default=0.0)


def worst_of(draw: Draw) -> Found:
    """Return the slowest record of the run's life."""
    submission, output = run_of(draw)
    began = time.process_time()
    try:
        compiled = compile_pipeline(submission.definition)
    except DefinitionRefused:
        return Found(0.0, "refused", draw)
    compile_ms = 1000 * (time.process_time() - began)
    run, worst = ARun(), Found(0.0, f"none of {compiled.name}", draw)  # as long as it is held, it is not compiled again
    todo: list[m.RunMessage] = [submission, started("first"), failed("first", "Boom", details={"x": "y" * 9_000})]
    todo.append(succeeded("first", output, attempt=2 if "retry" in draw.expressions else 1))
    for _ in range(MOST_RECORDS):
        if not todo:
            break
        message = todo.pop(0)
        if isinstance(message, m.AttemptFailed) and "retry" not in draw.expressions:
            continue
        began = time.process_time()
        run.take(message)
        worst = max(worst, Found(1000 * (time.process_time() - began), message.type, draw, compile_ms))
        todo += [m.INBOX.validate_json(one.value) for one in run.outputs if one.channel == "inbox"]  # type: ignore[misc]
        run.outputs.clear()
    return worst


def search(seconds: float, seed: int) -> Found:
    """Return the worst that was found within so many seconds of CPU."""
    chance = random.Random(seed)
    best = worst_of(Draw.new(chance))
    until, tried = time.process_time() + seconds, 0
    while time.process_time() < until:
        draw = Draw.new(chance)
        if tried % 2:
            draw = deepcopy(best.draw)
            draw.redraw(chance.choice(("expressions", "steps", "repeats", "large")), chance)
        found = worst_of(draw)
        if found > best:
            best = max(best, min(found, worst_of(draw)))  # twice: once may have been the machine
        tried += 1
    print(f"{tried} runs tried with seed {seed}", file=sys.stderr)
    return best


def main() -> int:
    """Print the worst record, and end with 1 if it takes longer than it may."""
    seconds, seed = (float(one) for one in (sys.argv[1:] + ["60", "0"][len(sys.argv) - 1 :])[:2])
    worst = search(seconds, round(seed))
    print(f"worst record: {worst.record}, {worst.ms:.0f} ms (allowed: {ALLOWED_MS}) of CPU, of {worst.draw}")
    print(f"its definition was compiled before, in {worst.compile_ms:.0f} ms")
    return int(worst.ms > ALLOWED_MS)


if __name__ == "__main__":
    sys.exit(main())
