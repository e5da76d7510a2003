"""A turn evaluates until its budget is spent and goes on by a `ContinueRun`; what expressions see of the run itself."""

import json
from typing import Any
from unittest import mock

import pytest

from anabranch.services.orchestrator.core import turn
from anabranch.services.orchestrator.core.settle import RunValues
from anabranch.services.orchestrator.core.turn import Turn
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.limits import COST_PER_TURN, MAX_EXPRESSION_COST, MAX_TEMPLATE_COST, STEPS_PER_TURN
from anabranch.shared.contracts.programs import RUN_FIELDS
from tests.support.builders import (
    RETRIES,
    RUN,
    T0,
    ARun,
    a_step,
    a_submission,
    a_transform,
    continued,
    failed,
    retry_due,
    started,
    succeeded,
)

COSTLY = "size(range(9000).map(i, i)) > 0"
"""An expression that costs more than a turn has."""


def decided(run: ARun, message: m.RunMessage) -> Turn:
    """Return the turn that a record led to."""
    decision = run.take(message)
    assert decision.turn is not None
    return decision.turn


def events(run: ARun) -> list[dict[str, Any]]:
    """Return the run events so far."""
    return [json.loads(record.value) for record in run.outputs if record.channel == "run_events"]


def asks_to_continue(run: ARun) -> list[int]:
    """Return the numbers of the `ContinueRun`s so far."""
    return [json.loads(record.value)["number"] for record in run.outputs if record.channel == "inbox"]


@pytest.mark.parametrize(
    "step",
    [
        a_step(if_=COSTLY),
        a_step(with_={"value": "${{ " + COSTLY + " }}"}),
        a_transform("${{ " + COSTLY + " }}"),
        a_transform("${{ range(9000).filter(i, i in inputs.l) }}"),  # refused: telling so counts as well
    ],
)
def test_a_costly_step_ends_the_turn_and_the_run_goes_on(step: dict[str, Any]) -> None:
    """However many of them are ready at once, no turn evaluates more than its budget and one step's."""
    run = ARun()
    submission = a_submission(
        {f"s{n}": step | {"continue_on_error": True} for n in range(4)}, inputs={"l": [1] * 9_000}
    )
    changed = [len(decided(run, submission).changed)]
    for number in range(1, 4):
        assert asks_to_continue(run)[-1] == number
        changed.append(len(decided(run, continued(number)).changed))
    assert changed == [1, 1, 1, 1]


def test_no_record_evaluates_more_than_a_turn_and_a_step() -> None:
    """A retry's condition, the budget that is left, a step's condition and its input."""
    worst = 0
    costly = a_step(if_=COSTLY, with_={"value": ["${{ " + COSTLY + " }}"] * 3}, continue_on_error=True)
    costly["retry"] = {**RETRIES, "if": "size(range(9000).map(i, i)) > 0"}
    run = ARun()
    for message in (
        a_submission({f"s{n}": costly for n in range(3)}, outputs={"x": "${{ " + COSTLY + " }}"}),
        continued(1), continued(2), started("s0"), failed("s0"), retry_due("s0"), failed("s1"), continued(3),
    ):  # fmt: skip
        decision = run.take(message)
        if decision.turn is not None:
            worst = max(worst, COST_PER_TURN - decision.turn.budget.cost)
    assert COST_PER_TURN < worst <= COST_PER_TURN + 2 * MAX_EXPRESSION_COST + MAX_TEMPLATE_COST


def test_outputs_are_rendered_in_a_turn_of_their_own_when_the_last_one_is_spent() -> None:
    """The run stays open until they are, whatever comes in between."""
    run = ARun()
    run.take(a_submission({"a": a_step()}, outputs={"n": "${{ " + COSTLY + " }}"}))
    with mock.patch.object(turn, "COST_PER_TURN", 0):  # as if the result had cost all of it
        run.take(succeeded("a", {}))
    assert (asks_to_continue(run), events(run)[-1]["type"]) == ([1], "StepSucceeded")
    run.take(continued(1))
    assert (events(run)[-1]["type"], events(run)[-1]["outputs"]) == ("RunSucceeded", {"n": True})


def test_a_turn_of_plain_steps_is_as_long_as_it_was() -> None:
    """Paths, short conditions and texts cost next to nothing: 256 steps fit into a turn."""
    steps = {
        f"s{n}": a_step(
            if_="inputs.url != '' && inputs.n > 3", with_={"value": "${{ inputs.url }}", "sleep": "${{ 1 + 1 }}"}
        )
        for n in range(STEPS_PER_TURN)
    }
    run = ARun()
    decided_turn = decided(run, a_submission(steps, inputs={"url": "https://example.org", "n": 4}))
    assert len(decided_turn.changed) == STEPS_PER_TURN
    assert asks_to_continue(run) == []


@pytest.mark.parametrize("field", RUN_FIELDS)
def test_every_field_of_the_run_is_rendered(field: str) -> None:
    """The validator accepts no other fields than these: one list serves both."""
    run = ARun()
    submission = a_submission({"a": a_transform("${{ run." + field + " }}")}, outputs={"a": "${{ run." + field + " }}"})
    submission = submission.model_copy(update={"revision": 7, "labels": {"team": "x"}, "tenant": "t"})
    run.take(submission)
    at = "2026-02-02T02:40:00.000000Z"
    seen = RunValues(
        id=RUN, pipeline="p", revision=7, tenant="t", labels={"team": "x"}, status="running", created_at=at,
        started_at=at,
    )  # fmt: skip
    of_step, of_run = events(run)[-2:]
    assert T0 == 1_770_000_000_000
    assert of_step["output"] == getattr(seen, field)
    assert of_run["outputs"] == {"a": "succeeded" if field == "status" else getattr(seen, field)}
