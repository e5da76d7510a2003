"""What an expression sees of a step: four names, an output that is read once, and what reading it costs."""

import orjson
import pytest

from anabranch.services.orchestrator.core import values
from anabranch.services.orchestrator.core.state import Step
from anabranch.services.orchestrator.core.status import StepStatus
from anabranch.services.orchestrator.core.values import Reading, StepValues
from anabranch.shared.contracts.cel_cost import GIVEN, SHORT_BYTES
from anabranch.shared.contracts.errors import StepError
from anabranch.shared.contracts.expressions import ExpressionError
from anabranch.shared.contracts.limits import KIB, MIB


class Counted:
    """A meter that remembers."""

    def __init__(self) -> None:
        self.cost = 0

    def charge(self, cost: int) -> None:
        self.cost += cost


def test_a_step_has_four_values_and_no_other() -> None:
    """Also where the engine walks them like any map."""
    error = StepError.of("Boom", "it broke")
    step = StepValues(Step(StepStatus.FAILED, attempt=2, error=error), Reading(Counted()))
    assert dict(step) == {"status": "failed", "output": None, "error": error.model_dump(), "attempt": 2}
    assert (len(step), "output" in step, "progress" in step) == (4, True, False)
    assert (step.get("attempt"), step.get("progress"), step.get("progress", "none")) == (2, None, "none")
    with pytest.raises(KeyError):
        step["progress"]


def test_an_output_is_read_once_and_charged_by_its_bytes() -> None:
    """However often a template names it."""
    meter = Counted()
    step = StepValues(Step(StepStatus.SUCCEEDED, output=b'{"a":1}'), Reading(meter))
    assert (step["output"], step["output"]) == ({"a": 1}, {"a": 1})
    assert meter.cost == GIVEN * len(b'{"a":1}')


def test_an_output_of_many_parts_costs_more_than_one_long_text() -> None:
    """Each becomes an object."""
    parts, text = Counted(), Counted()
    many = orjson.dumps([{}] * SHORT_BYTES)
    Reading(parts).value_of(many)
    Reading(text).value_of(orjson.dumps("x" * (len(many) - 2)))
    assert parts.cost > 2 * text.cost


def test_what_is_read_of_outputs_is_bounded_in_all() -> None:
    """One template may not read more than an evaluation may cost."""
    reading, output = Reading(Counted()), orjson.dumps("x" * MIB)
    with pytest.raises(ExpressionError, match="the outputs it names take more than"):
        for _ in range(100):
            reading.value_of(output)


def test_large_outputs_read_lately_are_kept_up_to_a_weight() -> None:
    """A value that many steps share is read once; memory follows no run."""
    kept = values._ReadLately()
    first = orjson.dumps("a" * 700 * KIB)
    assert kept.value_of(first) is kept.value_of(first)
    for letter in "bcd":
        kept.value_of(orjson.dumps(letter * 700 * KIB))
    assert kept._bytes <= values._KEPT_BYTES
    assert first not in kept._values
