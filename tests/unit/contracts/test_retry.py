"""Retry as a pure decision."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.shared.contracts.limits import MAX_WAIT_S
from anabranch.shared.contracts.retry import (
    GiveUp,
    Jitter,
    RetryAfter,
    RetryDecision,
    RetryPolicy,
    backoff_s,
    chance,
    decide_retry,
)

FAILED: dict[str, Any] = {"tries": 1, "error_type": "Boom", "terminal": False, "after_s": None, "draw": 0.5}


@pytest.mark.parametrize(
    ("policy", "change", "verdict"),
    [
        ({}, {}, GiveUp("1 of 1 attempts are used")),
        ({"max_attempts": 2}, {}, RetryAfter(0.5)),
        ({"max_attempts": 2}, {"terminal": True}, GiveUp("the error is terminal")),
        ({"max_attempts": 2}, {"tries": 2}, GiveUp("2 of 2 attempts are used")),
        ({"max_attempts": 2, "retry_on": ("Other",)}, {}, GiveUp("Boom is not among retry_on")),
        ({"max_attempts": 2, "retry_on": ("Boom",)}, {}, RetryAfter(0.5)),
        ({"max_attempts": 2}, {"after_s": 7}, RetryAfter(7)),
        ({"max_attempts": 2}, {"after_s": -7}, RetryAfter(0.5)),
        ({"max_attempts": 2}, {"after_s": 1e300}, RetryAfter(MAX_WAIT_S)),
        ({"max_attempts": 9, "jitter": "none"}, {"tries": 4}, RetryAfter(8.0)),
        ({"max_attempts": 9, "jitter": "equal"}, {"tries": 4}, RetryAfter(6.0)),
        ({"max_attempts": 9, "jitter": "none", "max_s": 5}, {"tries": 4}, RetryAfter(5.0)),
        ({"max_attempts": 1000, "jitter": "none", "factor": 100}, {"tries": 999}, RetryAfter(60.0)),
    ],
)
def test_verdict_follows_policy_tries_and_error(
    policy: dict[str, Any], change: dict[str, Any], verdict: RetryDecision
) -> None:
    """The delay, or why there is no other try."""
    assert decide_retry(RetryPolicy(**policy), **FAILED | change) == verdict


@given(st.builds(RetryPolicy), st.sampled_from(Jitter), st.integers(1, 1000), st.floats(0, 1, exclude_max=True))
def test_delay_is_never_negative_nor_longer_than_the_policys(
    policy: RetryPolicy, jitter: Jitter, tries: int, draw: float
) -> None:
    """Whatever is drawn."""
    assert 0 <= backoff_s(policy.model_copy(update={"jitter": jitter}), tries, draw) <= policy.max_s


@given(st.lists(st.text()), st.integers())
def test_chance_is_a_stable_hash_in_the_unit_interval(parts: list[str], number: int) -> None:
    """The same arguments, the same draw, in every process."""
    assert 0 <= chance(*parts, number) < 1
    assert chance(*parts, number) == chance(*parts, number)


def test_chance_tells_its_arguments_apart() -> None:
    """Run, step and attempt each matter; the value is the same for ever."""
    assert len({chance("r", "a", 1), chance("r", "a", 2), chance("r", "b", 1), chance("s", "a", 1)}) == 4
    assert chance("ra", 1) != chance("r", "a1")
    assert round(chance("r", "a", 1), 6) == 0.882439
