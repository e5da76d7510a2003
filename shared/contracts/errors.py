"""The error tree: what authors of handlers raise, what a step's error looks like, and whose types are ours."""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from anabranch.shared.contracts.limits import MAX_ERROR_MESSAGE_CHARS


class AnabranchError(Exception):
    """Base of every error that Anabranch raises on purpose."""


class TerminalError(AnabranchError):
    """Raised by a handler: the step fails now, whatever its retry policy says.

    `error_type` is the type the run shows, the class name by default; `details` must be JSON.
    """

    def __init__(self, message: str, *, error_type: str | None = None, details: Any = None) -> None:
        super().__init__(message)
        self.error_type = error_type or type(self).__name__
        self.details = details


class RetryableError(AnabranchError):
    """Raised by a handler: try again by the step's policy, not before `after` seconds."""

    def __init__(
        self, message: str, *, after: float | None = None, error_type: str | None = None, details: Any = None
    ) -> None:
        super().__init__(message)
        self.after_s = after
        self.error_type = error_type or type(self).__name__
        self.details = details


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
        """Return the error with its message cut to the limit."""
        return cls(type=error_type, message=message[:MAX_ERROR_MESSAGE_CHARS], details=details)
