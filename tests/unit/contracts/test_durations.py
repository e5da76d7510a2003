"""Durations are read exactly, within a limit, and written back so that they read the same."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.shared.contracts.durations import DurationError, format_duration, parse_duration
from anabranch.shared.contracts.limits import MAX_WAIT_S


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("15m", 900.0),
        ("1h30m", 5400.0),
        ("2d", 172800.0),
        ("1.5s", 1.5),
        ("0s", 0.0),
        (20, 20.0),
        (0.25, 0.25),
    ],
)
def test_a_duration_is_so_many_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "15",
        "15 m",
        "30m1h",
        "1h1h",
        "-1s",
        "1w",
        "m",
        "1e3s",
        "٣s",
        True,
        None,
        [],
        -1,
        float("nan"),
        "31d",
        "9" * 99 + "s",
    ],
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(DurationError):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=MAX_WAIT_S * 1_000_000))
def test_a_written_duration_reads_the_same_to_the_microsecond(microseconds: int) -> None:
    assert round(parse_duration(format_duration(microseconds / 1e6)) * 1e6) == microseconds


@given(st.text())
def test_any_text_is_a_duration_or_a_duration_error(text: str) -> None:
    with contextlib.suppress(DurationError):
        assert 0 <= parse_duration(text) <= MAX_WAIT_S
