"""Compiling the largest definitions: in slices that are short, into the same as in one piece, and kept by weight."""

import time
from collections.abc import Generator
from typing import Any

import orjson
import pytest

from anabranch.services.orchestrator.core import graph
from anabranch.services.orchestrator.core.graph import compile_pipeline, compiling
from anabranch.shared.contracts.limits import MAX_BODY_BYTES
from anabranch.shared.contracts.spec import PipelineSpec, parse_spec_in_slices

BAR_S = 0.25
ROOM = 10  # times: machines differ, and this one has other things to do


def ended(slices: Generator[None, None, Any]) -> Any:
    """Return what the slices lead to."""
    while True:
        try:
            next(slices)
        except StopIteration as done:
            return done.value


def one_step(*given: Any) -> str:
    """Return a definition whose one step is given this, literally."""
    return orjson.dumps({"name": "p", "steps": {"s": {"uses": "w", "with": list(given)}}}).decode()


LARGEST = {
    "empty lists": one_step(*[[]] * 600_000),
    "objects": one_step(*[{"a": 1, "b": 2}] * 120_000),
    "lists, and an expression": one_step(*[[1]] * 480_000, "${{ inputs.x }}"),
    "lists of lists, and an expression": one_step(*[[[[[1]]]]] * 180_000, "${{ inputs.x }}"),
}


@pytest.mark.parametrize("name", LARGEST)
def test_no_slice_of_the_largest_literal_input_takes_long(name: str) -> None:
    """A quarter of a second of CPU is the most that one record may hold the loop for."""
    definition = LARGEST[name]
    assert MAX_BODY_BYTES * 0.8 < len(definition) <= MAX_BODY_BYTES
    slices, longest_s = compiling(definition), 0.0
    while True:
        began = time.thread_time()
        try:
            next(slices)
        except StopIteration as done:
            assert done.value.steps[0].input.value == orjson.loads(definition)["steps"]["s"]["with"]
            return
        finally:
            longest_s = max(longest_s, time.thread_time() - began)
            assert longest_s < ROOM * BAR_S


def test_large_definitions_are_read_as_small_ones_are() -> None:
    """What is taken out of them before they are checked is put back."""
    given: list[Any] = [None, 1, "x", [], {}, {"uses": "w"}, ["${{ inputs.x }}"]]
    steps: dict[str, Any] = {f"s{i}": {"uses": "w", "with": given[i % len(given)]} for i in range(1000)}
    steps |= {
        "none": {"uses": "w"},
        "more": {"uses": "w", "needs": ["s1"], "if": "always()", "retry": {"initial": "2s"}},
    }
    definition = {"name": "p", "steps": steps, "outputs": {"a": [1, None], "b": None}, "fail_fast": False}
    for each in (definition, {**definition, "outputs": {}}, {k: v for k, v in definition.items() if k != "outputs"}):
        text = orjson.dumps(each)
        assert ended(parse_spec_in_slices(text.decode())) == PipelineSpec.model_validate_json(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"outputs": {"no name!": 1}},
        {"outputs": 1},
        {"outputs": {f"o{i}": 1 for i in range(2000)}},
        {"steps": {"s": {"uses": "w", "without": 1}}},
        {"steps": {"s": {"with": {}}}},
        {"steps": {"s": 1}},
        {"steps": 1},
        {"strange": 1},
    ],
)
def test_large_definitions_are_refused_for_what_small_ones_are(wrong: dict[str, Any]) -> None:
    """Nothing but what may be any JSON goes by unchecked."""
    padding = {f"p{i}": {"uses": "w", "with": "x" * 100} for i in range(1000)}
    steps = wrong.get("steps", {})
    definition: Any = {"name": "p", **wrong, "steps": padding | steps if isinstance(steps, dict) else steps}
    if not isinstance(steps, dict):
        definition["labels"] = "x" * 100_000
    with pytest.raises(ValueError):  # pydantic's own, of any words
        ended(parse_spec_in_slices(orjson.dumps(definition).decode()))


def test_compiled_definitions_are_kept_by_their_weight() -> None:
    """However many are large: what does not fit is compiled again when it is needed."""
    for number in range(12):
        compile_pipeline(one_step(number, *["x" * 50_000] * 30))
    assert graph._kept._weight <= graph._KEPT_BYTES
    assert len(graph._kept._entries) > 0
