"""Retry as a pure decision: policy, attempt and error in, a delay or the end out."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, assert_never

from pydantic import BaseModel, ConfigDict, Field

from anabranch.shared.contracts.limits import MAX_WAIT_S


class Jitter(StrEnum):
    """How a delay is spread ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015)."""

    FULL = "full"  # 0 to the delay
    EQUAL = "equal"  # half the delay, and 0 to the other half
    NONE = "none"


class RetryPolicy(BaseModel):
    """How often and when a step is tried again. One attempt unless it says more."""

    model_config = ConfigDict(frozen=True)

    max_attempts: int = Field(default=1, ge=1, le=1000)
    initial_s: float = Field(default=1.0, ge=0, le=MAX_WAIT_S)
    factor: float = Field(default=2.0, ge=1, le=100)
    max_s: float = Field(default=60.0, ge=0, le=MAX_WAIT_S)
    jitter: Jitter = Jitter.FULL
    retry_on: tuple[str, ...] = ()
    when: str | None = None  # CEL over `error` and `attempt`; the caller evaluates it


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Try again after `delay_s` seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not try again; `reason` says why in words."""

    reason: str


RetryDecision = RetryAfter | GiveUp

_STEPS_OF_CHANCE: Final = 2**64


def chance(*parts: object) -> float:
    """Return a number in [0, 1) that is a stable hash of its arguments: jitter without randomness."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / _STEPS_OF_CHANCE


def backoff_s(policy: RetryPolicy, tries: int, draw: float) -> float:
    """Return the delay in seconds after the try number `tries` (from 1), spread by `draw` in [0, 1)."""
    exponent = min(tries - 1, 64)  # 100**64 is still a float
    delay = min(policy.initial_s * policy.factor**exponent, policy.max_s)
    match policy.jitter:
        case Jitter.FULL:
            return delay * draw
        case Jitter.EQUAL:
            return delay / 2 + delay / 2 * draw
        case Jitter.NONE:
            return delay
        case _:
            assert_never(policy.jitter)


def decide_retry(
    policy: RetryPolicy, *, tries: int, error_type: str, terminal: bool, after_s: float | None, draw: float
) -> RetryDecision:
    """Decide whether a failed try, number `tries` (from 1, lost workers not counted), is followed by another.

    `after_s` is the least delay the handler asked for, in seconds.
    """
    if terminal:
        return GiveUp("the error is terminal")
    if tries >= policy.max_attempts:
        return GiveUp(f"{tries} of {policy.max_attempts} attempts are used")
    if policy.retry_on and error_type not in policy.retry_on:
        return GiveUp(f"{error_type} is not among retry_on")
    return RetryAfter(min(max(backoff_s(policy, tries, draw), after_s or 0.0), float(MAX_WAIT_S)))
