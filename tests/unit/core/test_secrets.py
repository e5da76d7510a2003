"""A secret is a name in a command, wherever the command goes; its value is nobody's here."""

from base64 import b64decode
from typing import Any

from anabranch.services.orchestrator.core.effects import Channel
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import decode
from anabranch.shared.contracts.errors import ErrorType
from anabranch.shared.contracts.secrets import SecretText
from tests.support.builders import (
    ARun,
    a_run,
    a_step,
    a_submission,
    a_transform,
    decoded,
    failed,
    refused,
    retry_due,
    send_due,
    succeeded,
)

GIVEN = {"headers": {"Authorization": "Bearer ${{ secrets.TOKEN }}"}, "null": None, "text": "${{ inputs.x }}"}
TEXTS = (SecretText("/headers/Authorization", ("Bearer ", "TOKEN", "")),)


def a_run_with_a_secret(**step: Any) -> ARun:
    """Return a run of one step that names a secret, beside an input that looks like one."""
    return a_run({"a": a_step(with_=GIVEN, **step)}, inputs={"x": "${{ secrets.OTHER }}"})


def assert_names_it(command: m.RunStep) -> None:
    """Assert that the command says where the secret belongs, and nothing of what the input says."""
    assert command.input == {"headers": {"Authorization": None}, "null": None, "text": "${{ secrets.OTHER }}"}
    assert command.secrets == TEXTS


def test_a_command_says_where_its_secrets_belong() -> None:
    """Beside the input, where no value of the input can stand."""
    (command,) = a_run_with_a_secret().commands
    assert_names_it(command)


def test_every_attempt_and_every_sending_says_it_again() -> None:
    """A retry and a command that was held back are the same."""
    run = a_run_with_a_secret(retry={"max_attempts": 2}).takes(refused("a"))
    run.fire(send_due("a").timer_id)
    run.takes(failed("a"))
    run.fire(retry_due("a").timer_id)
    assert [command.attempt for command in run.commands] == [1, 1, 2]
    for command in run.commands:
        assert_names_it(command)


def test_a_command_that_takes_its_workers_down_is_put_aside_with_names_only() -> None:
    """An operator may read dead letters, and send one again."""
    settings = m.RunSettings(max_losses=0, suspect_s=0)
    run = a_run({"a": a_step(with_=GIVEN)}, inputs={"x": ""}, settings=settings)
    run.takes(m.AttemptStarted(run_id=run.run_id, step="a", attempt=1, lease_s=1, worker="w"))
    while not run.is_over:
        run.fire(next(name for name in run.armed if name.startswith(("lease", "suspect"))))
    (letter,) = [decoded(m.DEAD_LETTERS, record) for record in run.of(Channel.DEAD_LETTERS)]
    command = decode(m.COMMANDS, b64decode(letter.value_base64 or ""))
    assert isinstance(command, m.RunStep)
    assert command.secrets == TEXTS


def test_what_the_engine_answers_itself_has_no_secret() -> None:
    """No gateway accepts such a definition; one that comes all the same fails its step, and shows nothing."""
    for steps in ({"a": a_transform("${{ secrets.TOKEN }}")}, {"a": a_step(with_={"x": "${{ secrets.TOKEN + '' }}"})}):
        run = a_run(steps)
        assert run.end.error is not None
        assert run.end.error.type == ErrorType.EXPRESSION_ERROR
    run = a_run({"a": a_step()}, outputs={"o": "${{ secrets.TOKEN }}"}).takes(succeeded("a"))
    assert (run.end.status, run.end.outputs) == ("failed", None)


def test_a_command_without_secrets_is_as_it_was() -> None:
    """Records of runs that name none have not one byte more."""
    run = ARun()
    run.takes(a_submission({"a": a_step(with_={"x": 1})}))
    (record,) = run.of(Channel.COMMANDS)
    assert b"secrets" not in record.value
