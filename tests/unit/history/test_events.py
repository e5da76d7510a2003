"""How long run events gather at the broker before they are read."""

import pytest

from anabranch.services.history.events import by_load, whenever_any


@pytest.mark.parametrize(("events", "expected_ms"), [(0, 0), (1, 0.125), (8, 1), (80, 10), (160, 20), (2_000, 20)])
def test_rest_grows_with_what_was_read_up_to_the_setting(events: int, expected_ms: float) -> None:
    """One event is followed at once, many are followed by many."""
    assert by_load(0.02)(events) * 1000 == pytest.approx(expected_ms)


def test_no_rest_is_taken_when_none_is_set() -> None:
    """Whoever sets 0 wants every event as it comes."""
    assert by_load(0)(2_000) == 0


@pytest.mark.parametrize(("events", "expected_s"), [(0, 0), (1, 0.1), (2_000, 0.1)])
def test_what_nobody_waits_for_gathers_whenever_any_was_read(events: int, expected_s: float) -> None:
    """The first event after a quiet moment is read at once, and the next ones together."""
    assert whenever_any(0.1)(events) == expected_s
