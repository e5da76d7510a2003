"""The statuses of steps and runs, and the named sets of them that rules speak of."""

from enum import StrEnum
from typing import Final


class StepStatus(StrEnum):
    """Where a step stands."""

    PENDING = "pending"  # its needs are not terminal, or the window is full
    QUEUED = "queued"  # its command is appended, or held back until its topic takes it
    RUNNING = "running"  # a worker holds it under a lease
    WAITING = "waiting"  # for its next attempt
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


TERMINAL: Final = frozenset(
    {StepStatus.SUCCEEDED, StepStatus.FAILED, StepStatus.TIMED_OUT, StepStatus.CANCELLED, StepStatus.SKIPPED}
)
DISPATCHED: Final = frozenset({StepStatus.QUEUED, StepStatus.RUNNING})
IN_FLIGHT: Final = DISPATCHED | {StepStatus.WAITING}
UNSUCCESSFUL: Final = frozenset({StepStatus.FAILED, StepStatus.TIMED_OUT})


class RunStatus(StrEnum):
    """Where a run stands."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


TERMINAL_RUN: Final = (RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.TIMED_OUT)
