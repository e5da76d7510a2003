"""What a run is between two records of its log: its steps, its counters, and why it is stopping."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import PlainValidator
from pydantic_core import to_json

from anabranch.services.orchestrator.core.graph import Pipeline
from anabranch.services.orchestrator.core.status import IN_FLIGHT, TERMINAL, StepStatus
from anabranch.shared.contracts.codec import trace_id_or
from anabranch.shared.contracts.errors import StepError
from anabranch.shared.contracts.ids import timer_id
from anabranch.shared.contracts.messages import RunSettings, SubmitRun

# Timers of a run, and kinds of timers of a step.
RUN_TIMEOUT: Final = "run-timeout"
GRACE: Final = "grace"
RETRY: Final = "retry"
LEASE: Final = "lease"
SEND: Final = "send"

_TIMER_OF: Final = {StepStatus.WAITING: RETRY, StepStatus.QUEUED: SEND}


class StopReason(StrEnum):
    """Why a run starts nothing new."""

    FAIL_FAST = "fail_fast"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


Output = Annotated[bytes, PlainValidator(to_json)]
"""An output's JSON; a step of the changelog has it as it is."""


def size_of(error: StepError) -> int:
    """Return how many bytes of its run's limit an error takes."""
    details = 0 if error.details is None else len(to_json(error.details))
    return len(error.type.encode()) + len(error.message.encode()) + details


@dataclass(slots=True)
class Step:
    """One node of a run. Times are milliseconds of broker time.

    A value, never changed: `PENDING` is every run's. It is not declared frozen since making a frozen one takes three
    times as long, and every step of every run is made twice.
    """

    status: StepStatus = StepStatus.PENDING
    attempt: int = 0
    losses: int = 0  # attempts lost with their worker; they do not count as tries
    given_back: int = 0  # attempts that a stopping worker gave back; neither do they
    queued_at: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    output: Output | None = None
    error: StepError | None = None
    due_at: int | None = None  # of its one timer: waiting, its retry; running, its lease; queued, when it is sent again
    suspected: bool = False  # the lease has lapsed once
    cancelling: bool = False  # its worker was told to stop
    progress: Any = None
    sent: int = 0  # bytes of its command while it is in flight
    refusals: int = 0  # times that its topic did not take this attempt's command

    @property
    def is_held_back(self) -> bool:
        """Whether its command was refused, and is to be sent again."""
        return self.status is StepStatus.QUEUED and self.due_at is not None

    @property
    def tries(self) -> int:
        """How many attempts count against the retry policy."""
        return self.attempt - self.losses - self.given_back

    @property
    def held(self) -> int:
        """How many bytes of its run's limit it takes."""
        held = 0 if self.output is None else len(self.output)
        if self.error is not None:
            held += size_of(self.error)
        if self.progress is not None:
            held += len(to_json(self.progress))
        return held

    def queued(self, at: int, sent: int = 0) -> "Step":
        """Return the step with its next attempt sent out at `at`, in a command of `sent` bytes.

        Written out, as `succeeded` is: `dataclasses.replace` takes twice the time, and every step goes this way.
        """
        return Step(
            StepStatus.QUEUED, self.attempt + 1, self.losses, self.given_back, at, None, self.finished_at, self.output,
            None, None, False, self.cancelling, None, sent,
        )  # fmt: skip

    def succeeded(self, at: int, started_at: int, output: bytes | None) -> "Step":
        """Return the step ended at `at` with its output."""
        return Step(
            StepStatus.SUCCEEDED, self.attempt, self.losses, self.given_back, self.queued_at, started_at, at, output,
            None, None, False, self.cancelling, self.progress,
        )  # fmt: skip

    def timer_id(self, step: str) -> str:
        """Return the id of the step's one timer, which its status tells."""
        return timer_id(_TIMER_OF.get(self.status, LEASE), step, self.attempt)


PENDING: Final = Step()


@dataclass(frozen=True, slots=True)
class Stop:
    """The run is stopping since `at_ms`, for this reason."""

    reason: StopReason
    at_ms: int
    message: str
    grace_over: bool = False  # the workers that have not answered are no longer waited for

    @property
    def is_for_good(self) -> bool:
        """Whether a cancel or the run's own limit stopped it: nothing starts any more, and nothing stops it again."""
        return self.reason is not StopReason.FAIL_FAST

    def grace_ends_at(self, settings: RunSettings) -> int | None:
        """When the workers' answers are no longer waited for, milliseconds of broker time."""
        return None if self.grace_over else self.at_ms + round(1000 * settings.cancel_grace_s)


@dataclass(slots=True)
class Run:
    """One execution of a pipeline.

    `unmet`, `unhappy`, `backlog`, `in_flight`, `open` and `held` follow from `steps`: they are what makes a transition
    touch only the step it concerns. Steps are known by their index in the pipeline's order.
    """

    submission: SubmitRun
    pipeline: Pipeline
    started_at: int
    at: int
    seq: int = 0
    continued: int = 0  # number of the `ContinueRun` that is awaited or was the last
    swept: int = 0  # while stopping: every step before this one has been looked at
    stop: Stop | None = None
    error: StepError | None = None
    quarantined: bool = False  # not even failing it worked; nothing touches it any more
    steps: list[Step] = field(default_factory=list)
    unmet: list[int] = field(default_factory=list)  # needs that are not terminal yet
    unhappy: list[int] = field(default_factory=list)  # needs that ended so that `succeeded()` does not hold
    backlog: list[int] = field(default_factory=list)  # pending steps without unmet needs, last first
    in_flight: int = 0
    in_flight_bytes: int = 0  # of the commands of steps in flight
    held: int = 0  # bytes of inputs, labels, outputs, errors and progress
    open: int = 0  # steps that are not terminal
    id: str = field(init=False)
    trace_id: str = field(init=False)
    is_sampled: bool = field(init=False)

    def __post_init__(self) -> None:
        """Keep the ids at hand: every effect names them."""
        self.id = self.submission.run_id
        self.trace_id = trace_id_or(self.submission.trace_id, self.id)
        self.is_sampled = self.submission.sampled is not False

    @classmethod
    def begin(cls, submission: SubmitRun, pipeline: Pipeline, at: int) -> "Run":
        """Return a run none of whose steps has moved."""
        return cls(
            submission=submission,
            pipeline=pipeline,
            started_at=at,
            at=at,
            steps=[PENDING] * len(pipeline.steps),
            unmet=list(pipeline.need_counts),
            unhappy=[0] * len(pipeline.steps),
            backlog=list(pipeline.roots_last_first),
            open=len(pipeline.steps),
            held=_held_from_the_start(submission),
        )

    @property
    def timeout_at(self) -> int:
        """When the run times out, milliseconds of broker time."""
        return self.started_at + round(1000 * (self.pipeline.timeout_s or self.submission.settings.run_timeout_s))

    @property
    def grace_ends_at(self) -> int | None:
        """When a stopping run no longer waits for its workers' answers, milliseconds of broker time."""
        return None if self.stop is None else self.stop.grace_ends_at(self.submission.settings)

    @property
    def is_stopped_for_good(self) -> bool:
        """Whether a cancel or the run's own limit stopped it."""
        return self.stop is not None and self.stop.is_for_good

    def timers(self) -> dict[str, int]:
        """Return every timer the run has armed: its id and when it is due, milliseconds of broker time."""
        due = {} if self.is_stopped_for_good else {RUN_TIMEOUT: self.timeout_at}
        if (grace := self.grace_ends_at) is not None:
            due[GRACE] = grace
        for node, step in zip(self.pipeline.steps, self.steps, strict=True):
            if step.due_at is not None:
                due[step.timer_id(node.id)] = step.due_at
        return due

    def recount(self) -> None:
        """Derive the counters from the steps, after a restore."""
        pipeline = self.pipeline
        self.unmet = list(pipeline.need_counts)
        self.unhappy = [0] * len(self.steps)
        self.in_flight = self.in_flight_bytes = self.open = 0
        self.held = _held_from_the_start(self.submission)
        for index, step in enumerate(self.steps):
            self.held += step.held
            self.in_flight_bytes += step.sent
            if step.status not in TERMINAL:
                self.open += 1
                self.in_flight += step.status in IN_FLIGHT
                continue
            happy = pipeline.steps[index].satisfies(step.status)
            for dependent in pipeline.dependents[index]:
                self.unmet[dependent] -= 1
                self.unhappy[dependent] += not happy
        pending = (i for i, step in enumerate(self.steps) if step.status is StepStatus.PENDING)
        self.backlog = sorted((i for i in pending if not self.unmet[i]), reverse=True)


def _held_from_the_start(submission: SubmitRun) -> int:
    return len(to_json((submission.inputs, submission.labels)))
