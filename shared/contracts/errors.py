"""The error tree: what authors of handlers raise, what a step's error looks like, and whose types are ours."""

from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from numbers import Real
from typing import Any, SupportsFloat

from pydantic import BaseModel, ConfigDict

from anabranch.shared.contracts.durations import DurationError, parse_duration
from anabranch.shared.contracts.limits import MAX_ERROR_MESSAGE_CHARS, MAX_ERROR_TYPE_CHARS
from anabranch.shared.contracts.text import writable


class AnabranchError(Exception):
    """Base of every error that Anabranch raises on purpose."""


class TerminalError(AnabranchError):
    """Raised by a handler: the step fails now, whatever its retry policy says.

    `error_type` is the type the run shows, the class name by default; `details` must be JSON. Raises `TypeError` when
    `error_type` is no text.
    """

    def __init__(self, message: str, *, error_type: str | None = None, details: Any = None) -> None:
        super().__init__(message)
        self.error_type = _type_or(error_type, type(self).__name__)
        self.details = details


class RetryableError(AnabranchError):
    """Raised by a handler: try again by the step's policy, not before `after`.

    `after` is a number of seconds, a `timedelta`, or a text such as `1m30s`. Raises `TypeError` for anything else, and
    `ValueError` for what is no duration (negative, NaN, longer than anything may wait).
    """

    def __init__(
        self,
        message: str,
        *,
        after: float | timedelta | Decimal | str | None = None,
        error_type: str | None = None,
        details: Any = None,
    ) -> None:
        super().__init__(message)
        self.after_s = None if after is None else _seconds(after)
        self.error_type = _type_or(error_type, type(self).__name__)
        self.details = details


def _type_or(error_type: object, default: str) -> str:
    if error_type is None:
        return default
    if not isinstance(error_type, str):
        raise TypeError(f"error_type is a text, not {type(error_type).__name__}: write it in quotes")
    return error_type or default


def _seconds(after: object) -> float:
    """Return the seconds of what means a duration."""
    if isinstance(after, timedelta):
        return parse_duration(after.total_seconds())
    if isinstance(after, str):
        return parse_duration(after)
    if isinstance(after, bool) or not isinstance(after, Real | Decimal):
        raise TypeError(f"after is a number of seconds, a timedelta or a text like 1m30s, not {type(after).__name__}")
    return parse_duration(_as_float(after))


def _as_float(number: SupportsFloat) -> float:
    try:
        return float(number)
    except OverflowError:
        raise DurationError("after is longer than anything may wait") from None


class ErrorType(StrEnum):
    """The types of ours in a step's or a run's `error.type`; any other is a handler's exception class."""

    ATTEMPT_TIMEOUT = "AttemptTimeout"
    STEP_TIMEOUT = "StepTimeout"
    QUEUE_TIMEOUT = "QueueTimeout"
    RUN_TIMEOUT = "RunTimeout"
    WORKER_LOST = "WorkerLost"
    PAYLOAD_TOO_LARGE = "PayloadTooLarge"
    EXPRESSION_ERROR = "ExpressionError"
    APPROVAL_REJECTED = "ApprovalRejected"
    CONCURRENCY_REJECTED = "ConcurrencyRejected"
    RECURSION_LIMIT = "RecursionLimit"
    ENGINE_ERROR = "EngineError"
    INPUT_INVALID = "InputInvalid"
    OUTPUT_INVALID = "OutputInvalid"


class StepError(BaseModel):
    """Why a step or a run did not succeed, in words its owner can act on."""

    model_config = ConfigDict(frozen=True)

    type: str
    message: str
    details: Any = None

    @classmethod
    def of(cls, error_type: str, message: str, details: Any = None) -> "StepError":
        """Return the error with its texts cut to their limits, and escaped where they cannot be encoded."""
        return cls(
            type=writable(error_type[:MAX_ERROR_TYPE_CHARS])[:MAX_ERROR_TYPE_CHARS],
            message=writable(message[:MAX_ERROR_MESSAGE_CHARS])[:MAX_ERROR_MESSAGE_CHARS],
            details=details,
        )
