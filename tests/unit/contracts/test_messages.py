"""Messages: told apart by `type`, tolerant of what a later version adds, strict about what would hurt."""

from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import Undecodable, decode
from anabranch.shared.contracts.errors import StepError
from anabranch.shared.contracts.limits import MAX_ERROR_MESSAGE_CHARS

STARTED: dict[str, Any] = {
    "type": "AttemptStarted",
    "run_id": "r",
    "step": "a",
    "attempt": 1,
    "lease_s": 1,
    "worker": "w",
}


def test_field_that_this_version_does_not_know_is_tolerated() -> None:
    """Versions are mixed during a rolling upgrade."""
    assert m.INBOX.validate_python(STARTED | {"mood": "fine"}) == m.INBOX.validate_python(STARTED)


def test_message_is_frozen() -> None:
    """What was said stays said."""
    message = m.CancelRun(run_id="r")
    with pytest.raises(ValidationError):
        message.run_id = "other"  # type: ignore[misc]


@pytest.mark.parametrize("change", [{"type": "Nonsense"}, {"attempt": "x"}, {"lease_s": -1}, {"lease_s": 1e300}])
def test_record_that_is_no_message_becomes_a_value(change: dict[str, Any]) -> None:
    """It says what is wrong, and raises nothing."""
    record = TypeAdapter(dict).dump_json(STARTED | change)
    assert isinstance(decode(m.INBOX, record), Undecodable)


@pytest.mark.parametrize("run_id", ["a/b", "", "_checkpoint", "x" * 65, "a b"])
def test_run_cannot_begin_under_an_id_that_would_part_keys(run_id: str) -> None:
    """`<run_id>/<step>` must stay readable."""
    with pytest.raises(ValidationError):
        m.SubmitRun(run_id=run_id, tenant="t", definition="{}")


def test_every_inbox_message_is_one_to_a_run_or_a_renewal_of_leases() -> None:
    """`LeasesRenewed` is the only record that concerns many runs; each sees its `LeaseRenewed`."""
    inbox = set(get_args(get_args(m.InboxMessage)[0]))
    assert inbox - set(get_args(m.RunMessage)) == {m.LeasesRenewed}
    assert set(get_args(m.RunMessage)) - inbox == {m.LeaseRenewed}


def test_type_of_every_message_is_its_name_but_for_events_that_share_a_shape() -> None:
    """`ce_type` is the name of the shape, `type` says which event it is."""
    for cls in [*get_args(m.RunMessage), m.LeasesRenewed, m.RunStep, m.CancelStep, m.RunStarted, m.StepsQueued]:
        assert cls.model_fields["type"].default == cls.__name__


def test_end_types_are_those_of_run_ended() -> None:
    """Whoever waits for a run's end waits for these."""
    assert set(get_args(m.RunEnded.model_fields["type"].annotation)) == m.RUN_ENDED_TYPES


def test_error_message_is_cut_to_the_limit() -> None:
    """Whatever a handler raised."""
    assert len(StepError.of("T", "x" * 10_000).message) == MAX_ERROR_MESSAGE_CHARS
