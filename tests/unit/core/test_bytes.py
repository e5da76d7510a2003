"""What a run holds, what one record leads to and what is in flight are bounded in bytes, whatever is asked for."""

from dataclasses import dataclass, field

import pytest

from anabranch.services.orchestrator.core.changelog import restore, take_changes
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.errors import ErrorType
from anabranch.shared.contracts.limits import (
    KIB,
    MAX_MESSAGE_BYTES,
    MAX_RUN_BYTES,
    MAX_STEP_INPUT_BYTES,
    MAX_STEP_OUTPUT_BYTES,
    MAX_TURN_BYTES,
    MAX_WINDOW_BYTES,
)
from tests.support.builders import (
    RETRIES,
    RUN,
    ARun,
    a_step,
    a_submission,
    a_transform,
    cancel_run,
    continued,
    failed,
    renewed,
    retry_due,
    started,
    succeeded,
)

ONE_RECORD = MAX_TURN_BYTES + MAX_STEP_INPUT_BYTES + 2 * MAX_STEP_OUTPUT_BYTES + MAX_MESSAGE_BYTES
"""A turn, the step that was over it, the record's own event, and the run's last."""


@dataclass
class Scales:
    """A run that answers its own continues and weighs what each record leads to."""

    run: ARun = field(default_factory=ARun)
    heaviest: int = 0
    most_held: int = 0
    most_in_flight: int = 0
    commands: list[m.RunStep] = field(default_factory=list)
    failures: list[m.StepChanged] = field(default_factory=list)
    end: m.RunEnded | None = None

    def take(self, *messages: m.RunMessage) -> "Scales":
        waiting = list(messages)
        while waiting:
            self.run.take(waiting.pop(0))
            self.heaviest = max(self.heaviest, sum(len(record.value) for record in self.run.outputs))
            waiting[:0] = [m.INBOX.validate_json(r.value) for r in self.run.outputs if r.channel == "inbox"]  # type: ignore[misc]
            self._note()
        return self

    def _note(self) -> None:
        for record in self.run.outputs:
            if record.channel == "commands":
                self.commands.append(m.COMMANDS.validate_json(record.value))
            elif record.channel == "run_events":
                event = m.RUN_EVENTS.validate_json(record.value)
                if isinstance(event, m.StepChanged) and event.error is not None:
                    self.failures.append(event)
                elif isinstance(event, m.RunEnded):
                    self.end = event
        self.run.outputs.clear()
        if (run := self.run.partition.runs.get(RUN)) is not None:
            self.most_held = max(self.most_held, run.held)
            self.most_in_flight = max(self.most_in_flight, run.in_flight_bytes)

    def answer_all(self, output: object = None) -> "Scales":
        while self.commands:
            command = self.commands.pop(0)
            self.take(succeeded(command.step, output, attempt=command.attempt))
        return self


def many(count: int, **more: object) -> dict[str, object]:
    return {f"s{i}": a_step(**more) for i in range(count)}  # type: ignore[arg-type]


SHARED = {"with_": {"x": "${{ inputs.x }}"}}


def test_a_small_definition_does_not_make_megabytes_of_commands_at_once() -> None:
    """Each of 1,500 steps is given the same 250 KB: a few at a time, and a few at a time are in flight."""
    scales = Scales().take(a_submission(many(300, **SHARED), inputs={"x": "x" * 250 * KIB}))
    assert scales.heaviest <= ONE_RECORD
    assert len(scales.commands) == pytest.approx(MAX_WINDOW_BYTES / (250 * KIB), abs=2)
    scales.answer_all()
    assert scales.most_in_flight <= MAX_WINDOW_BYTES + MAX_STEP_INPUT_BYTES
    assert scales.end is not None
    assert scales.end.status == "succeeded"


def test_a_retry_keeps_its_share_of_what_is_in_flight() -> None:
    """All that wait for their next attempt may be sent out in the same moment."""
    scales = Scales().take(a_submission(many(100, retry=RETRIES, **SHARED), inputs={"x": "x" * 250 * KIB}))
    for command in tuple(scales.commands):
        scales.take(failed(command.step))
    assert scales.most_in_flight <= MAX_WINDOW_BYTES + MAX_STEP_INPUT_BYTES
    for command in tuple(scales.commands):
        scales.run.armed.pop(f"retry/{command.step}/1")
        scales.run.at += 1_000
        scales.take(retry_due(command.step))
    assert scales.most_in_flight <= MAX_WINDOW_BYTES + MAX_STEP_INPUT_BYTES


def test_values_that_the_core_makes_itself_are_bounded_by_turn_and_by_run() -> None:
    """Each of 1,000 transforms returns the same 250 KB: they go on by continues until the run is full."""
    steps = {f"s{i}": a_transform("${{ inputs.x }}", continue_on_error=True) for i in range(1_000)}
    scales = Scales().take(a_submission(steps, inputs={"x": "x" * 250 * KIB}))
    assert scales.heaviest <= ONE_RECORD
    assert MAX_RUN_BYTES - 300 * KIB <= scales.most_held <= MAX_RUN_BYTES + 1_000 * KIB
    assert {event.error.type for event in scales.failures if event.error} == {ErrorType.PAYLOAD_TOO_LARGE}
    assert scales.end is not None


def test_a_step_whose_output_does_not_fit_any_more_says_what_the_run_holds() -> None:
    """The run may go on: a smaller output fits."""
    scales = Scales().take(a_submission(many(40, continue_on_error=True)))
    for number in range(33):
        scales.take(succeeded(f"s{number}", "x" * (MAX_STEP_OUTPUT_BYTES - 100)))
    [event] = scales.failures
    assert event.error is not None
    assert (event.step, event.output, event.error.type) == ("s32", None, ErrorType.PAYLOAD_TOO_LARGE)
    held = 32 * (MAX_STEP_OUTPUT_BYTES - 98) + 7
    assert event.error.message.startswith(
        f"its output takes {MAX_STEP_OUTPUT_BYTES - 98} bytes and the run holds {held} already; a run may hold"
    )
    scales.take(succeeded("s33", {"ok": True}))
    assert len(scales.failures) == 1


def test_errors_and_progress_of_a_full_run_are_kept_short() -> None:
    """10,000 steps that fail with all the details they may have hold no more than the run may."""
    run = Scales().take(a_submission(many(1_900, continue_on_error=True)))
    for _ in range(1_900):
        command = run.commands.pop(0)
        run.take(started(command.step), renewed(command.step, progress="p" * 4_000))
        run.take(failed(command.step, message="m" * 4_000, details="d" * 16_000))
    assert run.most_held <= MAX_RUN_BYTES + 1_900 * 400
    assert run.end is not None
    last = run.failures[-1].error
    assert last is not None
    assert (last.type, len(last.message)) == ("Boom", 200)
    assert set(last.details) == {"omitted"}


def test_what_is_replaced_no_longer_counts() -> None:
    """The error of an attempt is gone with the next attempt, the command's share with its answer."""
    scales = Scales().take(a_submission({"a": a_step(retry=RETRIES), "b": a_step()}))
    run = scales.run.partition.runs[RUN]
    before, in_flight = run.held, run.in_flight_bytes
    scales.take(failed("a", details="d" * 1_000))
    assert run.held > before + 1_000
    assert run.in_flight_bytes == in_flight
    scales.run.fire("retry/a/1")
    assert run.held == before
    scales.take(succeeded("a", "x", attempt=2), succeeded("b"))
    assert scales.end is not None


def test_a_restored_run_knows_what_it_holds() -> None:
    """From its steps, submission and all."""
    scales = Scales().take(a_submission(many(4), inputs={"x": [1.5, "é"]}))
    scales.take(succeeded("s0", {"x": [1e22, "é", None]}), started("s1"), renewed("s1", progress={"p": 1}))
    scales.take(failed("s2", details={"d": [1]}))
    run = scales.run.partition.runs[RUN]
    restored, _ = restore({k: v for k, v in take_changes(scales.run.partition, 1) if v is not None})
    again = restored.runs[RUN]
    assert (again.held, again.in_flight_bytes, again.steps) == (run.held, run.in_flight_bytes, run.steps)


def test_a_stop_of_many_waiting_steps_goes_turn_by_turn() -> None:
    """Each says what it failed with: all of them at once would be megabytes. None of them is sent out meanwhile."""
    wide = a_submission(many(800, retry=RETRIES), settings=m.RunSettings(window=800))
    scales = Scales().take(wide)
    for command in scales.commands:
        scales.take(failed(command.step, message="m" * 4_000, details="d" * 12_000))
    run = scales.run
    run.take(cancel_run())
    assert sum(len(record.value) for record in run.outputs) <= ONE_RECORD
    late = next(name for name, due in run.armed.items() if name.startswith("retry/") and due)
    run.outputs.clear()
    run.fire(late)
    assert not run.commands
    scales.take(continued(run.run.continued))
    assert scales.end is not None
    assert scales.end.status == "cancelled"
