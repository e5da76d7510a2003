"""Times on the wire."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from anabranch.shared.contracts.times import rfc3339


def test_milliseconds_are_written_with_microseconds_in_utc() -> None:
    """The form that never changes its length, so that text order is time order."""
    assert rfc3339(0) == "1970-01-01T00:00:00.000000Z"
    assert rfc3339(1_770_000_000_007) == "2026-02-02T02:40:00.007000Z"
    assert rfc3339(1_770_000_000_999) == "2026-02-02T02:40:00.999000Z"
    assert rfc3339(1_770_000_001_000) == "2026-02-02T02:40:01.000000Z"
    assert rfc3339(-1) == "1969-12-31T23:59:59.999000Z"


@given(st.integers(0, 4_000_000_000_000), st.integers(0, 4_000_000_000_000))
def test_text_reads_back_and_sorts_as_the_time_does(one: int, other: int) -> None:
    """Whatever the milliseconds."""
    assert datetime.fromisoformat(rfc3339(one)) == datetime.fromtimestamp(one // 1000, UTC).replace(
        microsecond=one % 1000 * 1000
    )
    assert (rfc3339(one) < rfc3339(other)) == (one < other)
