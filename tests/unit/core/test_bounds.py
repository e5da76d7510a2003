"""What goes out was measured: no worker and no client makes a record that cannot be appended."""

import pytest

from anabranch.services.orchestrator.core.effects import Append
from anabranch.services.orchestrator.core.graph import DefinitionRefused
from anabranch.shared.contracts.errors import ErrorType
from anabranch.shared.contracts.limits import (
    MAX_ERROR_MESSAGE_CHARS,
    MAX_MESSAGE_BYTES,
    MAX_PROGRESS_BYTES,
    MAX_STEP_INPUT_BYTES,
    MAX_STEP_OUTPUT_BYTES,
)
from tests.support.builders import (
    ARun,
    a_run,
    a_step,
    a_submission,
    a_transform,
    failed,
    lease_due,
    renewed,
    started,
    succeeded,
)

MIB = 1024 * 1024


def test_output_that_is_too_large_fails_the_step() -> None:
    """The step fails with `PayloadTooLarge`; nothing of the output is kept."""
    run = a_run().takes(succeeded("a", "x" * MAX_STEP_OUTPUT_BYTES))
    assert run.events[-2].error.type == ErrorType.PAYLOAD_TOO_LARGE
    assert run.events[-2].output is None
    assert run.end.status == "failed"


def test_output_just_below_the_limit_is_handed_on() -> None:
    """The limit is of the event's bytes."""
    run = a_run({"a": a_step(), "b": a_step("a")}).takes(succeeded("a", "x" * (MAX_STEP_OUTPUT_BYTES - 1000)))
    assert run.statuses == {"a": "succeeded", "b": "queued"}


def test_input_that_is_too_large_fails_the_step() -> None:
    """Two outputs within the limit may make an input beyond it."""
    both = {"x": "${{ steps.a.output }}", "y": "${{ steps.a.output }}"}
    half = "x" * (MAX_STEP_INPUT_BYTES // 2 - 100)
    run = a_run({"a": a_step(), "b": a_step("a", with_=both)}).takes(succeeded("a", half))
    assert run.statuses == {"a": "succeeded", "b": "failed"}
    assert run.end.error is not None
    assert run.end.error.type == ErrorType.PAYLOAD_TOO_LARGE


def test_outputs_of_the_run_that_are_too_large_fail_it() -> None:
    """Each step's output is within its limit, the run's is not."""
    names = [f"s{i}" for i in range(5)]
    outputs = {name: f"${{{{ steps.{name}.output }}}}" for name in names}
    run = a_run(names, outputs=outputs)
    for name in names:
        run.take(succeeded(name, "x" * (MAX_STEP_OUTPUT_BYTES - 1000)))
    assert (run.end.status, run.end.outputs) == ("failed", None)


def test_outputs_that_cannot_be_evaluated_fail_the_run() -> None:
    """Every step succeeded; the run says which expression it was."""
    run = a_run(outputs={"o": "${{ steps.a.output.x }}"}).takes(succeeded("a", 1))
    assert run.end.status == "failed"
    assert run.end.error is not None
    assert run.end.error.type == ErrorType.EXPRESSION_ERROR
    assert run.end.error.message.startswith("`outputs`: ")


def test_error_of_a_worker_that_does_not_cut_it_is_cut() -> None:
    """Message, type and details each have a limit, whoever sent them."""
    huge = failed("a", "T" * MIB, message="m" * 2 * MIB, details=["d" * 2 * MIB])
    run = a_run().takes(huge)
    error = run.events[-2].error
    assert len(error.message) == MAX_ERROR_MESSAGE_CHARS
    assert len(error.type) == 256
    assert error.details == {"omitted": "takes 2097156 bytes; at most 16384 are allowed"}
    assert all(len(record.value) < 20_000 for record in run.outputs)


def test_progress_that_is_too_large_is_not_taken_up() -> None:
    """The lease is renewed, the last progress stays."""
    run = a_run().takes(started("a"), renewed("a", progress=1), renewed("a", progress="x" * MAX_PROGRESS_BYTES))
    assert run.step("a").progress == 1
    assert run.step("a").due_at == run.at + 10_000


def test_submission_whose_first_event_would_be_too_large_is_refused() -> None:
    """A run begins and fails, and its events can be appended."""
    run = ARun()
    run.takes(a_submission({"a": a_step()}, inputs={"x": "x" * MAX_MESSAGE_BYTES}))
    assert [event.type for event in run.events] == ["RunStarted", "RunFailed"]
    assert run.end.error is not None
    assert run.end.error.type == ErrorType.PAYLOAD_TOO_LARGE
    assert all(len(record.value) < 2_000 for record in run.outputs)
    assert run.is_over


def test_definition_that_never_passed_the_gateway_is_refused() -> None:
    """`decide` raises and changes nothing; `abandon` starts the run and fails it, so that its client hears of it."""
    run = ARun()
    message = a_submission({"a": a_step("nobody")})
    with pytest.raises(DefinitionRefused, match="KeyError") as raised:
        run.partition.decide(message, run.at)
    decision = run.partition.abandon(message, raised.value, run.at)
    run.partition.commit(decision, run.at)
    run.act(decision)
    assert [event.type for event in run.events] == ["RunStarted", "RunFailed"]
    assert run.end.error is not None
    assert run.end.error.message == "deciding SubmitRun raised DefinitionRefused; see the dead letters"


def test_engine_error_about_a_run_that_nobody_knows_changes_nothing() -> None:
    """There is nothing to fail."""
    run = ARun()
    assert run.partition.abandon(succeeded("a"), KeyError(), run.at).effects == ()


def test_command_that_takes_its_workers_down_is_dead_lettered_once() -> None:
    """After the last allowed loss the step fails with `WorkerLost`, and an operator finds what it was."""
    run = a_run({"a": a_step(with_={"v": "${{ inputs.v }}"})}, inputs={"v": 7})
    for attempt in range(1, 6):
        run.takes(started("a", attempt), *()).fire(f"lease/a/{attempt}")
        run.fire(f"lease/a/{attempt}")
    assert run.end.error is not None
    assert run.end.error.type == ErrorType.WORKER_LOST
    assert [c.attempt for c in run.commands] == [1, 2, 3, 4, 5]
    letters = [record for record in run.outputs if record.channel == "dead_letters"]
    assert len(letters) == 1
    assert isinstance(letters[0], Append)
    assert run.ignores(lease_due("a", 5)) == "unknown_run"


def test_transform_whose_value_cannot_be_evaluated_fails_with_the_place() -> None:
    """The core answers transforms itself, their errors too."""
    run = a_run({"a": a_transform("${{ 1 / 0 }}")})
    assert run.statuses == {"a": "failed"}
    assert run.end.error is not None
    assert run.end.error.type == ErrorType.EXPRESSION_ERROR
