"""What the gateway answers, as types. Fields that a newer gateway adds are ignored."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from anabranch.shared.contracts.errors import AnabranchError, StepError

SUCCEEDED: Final = "succeeded"
CANCELLED: Final = "cancelled"
ENDED: Final = frozenset({SUCCEEDED, "failed", "timed_out", CANCELLED, "skipped"})
"""Statuses that a run or a step does not leave."""


class Answer(BaseModel):
    """A document of the gateway, or a part of one."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Step(Answer):
    """One step of a run, as it stands."""

    uses: str = ""
    status: str = "pending"
    attempt: int = 0
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    output: Any = None
    error: StepError | None = None
    waiting_on: str | None = None
    cached: bool = False

    @property
    def ended(self) -> bool:
        """Whether the step stays as it is."""
        return self.status in ENDED

    def duration_s(self, now: datetime | None = None) -> float | None:
        """Return seconds from start to end, or from queueing to now while it goes on; None when it never started."""
        since = self.started_at or self.queued_at
        until = self.finished_at or (None if self.ended else now or datetime.now(UTC))
        return _seconds_between(since, until)


class Run(Answer):
    """One execution of a pipeline. What a submission is answered with has an id and a status only."""

    id: str
    status: str
    pipeline: str | None = None
    revision: int | None = None
    tenant: str | None = None
    inputs: dict[str, Any] | None = None
    outputs: dict[str, Any] | None = None
    error: StepError | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    steps: dict[str, Step] = Field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether the run stays as it is."""
        return self.status in ENDED

    @property
    def succeeded(self) -> bool:
        """Whether the run ended well."""
        return self.status == SUCCEEDED

    def counts(self) -> Counter[str]:
        """Return how many steps have which status."""
        return Counter(step.status for step in self.steps.values())

    def duration_s(self, now: datetime | None = None) -> float | None:
        """Return seconds from acceptance to the end, or to now while it goes on."""
        return _seconds_between(self.created_at or self.started_at, self.finished_at or now or datetime.now(UTC))


class ListedRun(Answer):
    """A run as a search lists it."""

    id: str
    pipeline: str
    revision: int | None = None
    status: str
    labels: dict[str, str] = Field(default_factory=dict)
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error_type: str | None = None

    def duration_s(self) -> float | None:
        """Return seconds from acceptance to the end, or to now while it goes on."""
        return _seconds_between(self.created_at, self.finished_at or datetime.now(UTC))


class RunsPage(Answer):
    """A page of runs, the newest first; `next_cursor` is where the next one begins."""

    runs: tuple[ListedRun, ...]
    next_cursor: str | None = None
    counts: dict[str, int] | None = None
    counts_are_all: bool | None = None


class Figures(Answer):
    """What ended of a pipeline, or of one of its steps."""

    pipeline: str
    step: str | None = None
    ended: int
    failed: int
    failure_rate: float
    p50_ms: int | None = None
    p95_ms: int | None = None


class Statistics(Answer):
    """Figures of a window; of its newest runs or steps alone unless `is_all`."""

    since: datetime
    looked_at: int
    is_all: bool
    statistics: tuple[Figures, ...]


class Attempt(Answer):
    """One attempt of a step."""

    attempt: int
    status: str
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    queued_ms: int | None = None
    ran_ms: int | None = None
    error: StepError | None = None


class StepType(Answer):
    """A step type that some step service announced."""

    name: str
    version: str = ""
    description: str = ""
    input_schema: dict[str, Any] = Field(default_factory=dict)
    output_schema: dict[str, Any] = Field(default_factory=dict)


class Fault(Answer):
    """One thing that is wrong with a request; line and column are from 1."""

    pointer: str = ""
    message: str
    line: int | None = None
    column: int | None = None


class Problem(Answer):
    """RFC 9457 problem details; `id` is the run's, when a submission's outcome is unknown or a run
    has ended, then as `run_status`."""

    type: str = "about:blank"
    title: str = ""
    status: int = 0
    detail: str = ""
    errors: tuple[Fault, ...] = ()
    id: str | None = None
    run_status: str | None = None


class ClientError(AnabranchError):
    """Base of what the client raises."""


class ProblemError(ClientError):
    """The gateway said no, and why."""

    def __init__(self, problem: Problem, *, retry_after_s: float | None = None) -> None:
        words = problem.detail or problem.title or "the gateway gave no reason"
        super().__init__(f"{words} (HTTP {problem.status})")
        self.problem = problem
        self.retry_after_s = retry_after_s

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed a little later."""
        return self.problem.status in (429, 502, 503, 504)


class GatewayUnreachableError(ClientError):
    """Nobody answered at the URL."""

    def __init__(self, url: str, reason: str = "") -> None:
        super().__init__(f"no gateway answers at {url}; start one with `anabranch up`")
        self.url = url
        self.reason = reason


class GatewayUntrustedError(ClientError):
    """Who answers at the URL may be somebody else."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"the gateway at {url} cannot be trusted ({reason}); see ANABRANCH_SSL_CAFILE")


def _seconds_between(since: datetime | None, until: datetime | None) -> float | None:
    if since is None or until is None:
        return None
    return max((until - since).total_seconds(), 0.0)  # two hosts' clocks may differ
