"""What requests and answers look like: the models that the OpenAPI document is made of."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from anabranch.services.gateway.problems import Kind
from anabranch.shared.contracts.errors import StepError
from anabranch.shared.contracts.limits import MAX_BATCH_RUNS, MAX_IDEMPOTENCY_KEY_CHARS, MAX_LABEL_CHARS, MAX_LABELS
from anabranch.shared.contracts.messages import StepTypeAnnounced
from anabranch.shared.contracts.spec import PipelineSpec
from anabranch.shared.diagnosis.findings import Verdict

RunStatus = Literal["accepted", "running", "paused", "succeeded", "failed", "cancelled", "timed_out"]
StepStatus = Literal[
    "pending", "waiting", "queued", "running", "succeeded", "failed", "timed_out", "cancelled", "skipped"
]
AttemptStatus = Literal[
    "waiting", "queued", "running", "succeeded", "failed", "timed_out", "cancelled", "skipped", "lost"
]
LabelName = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LABEL_CHARS)]
LabelText = Annotated[str, StringConstraints(max_length=MAX_LABEL_CHARS)]
Time = Annotated[str, Field(description="RFC 3339 with microseconds.", json_schema_extra={"format": "date-time"})]


class SubmissionDocument(BaseModel):
    """What `POST /v1/runs` takes."""

    model_config = ConfigDict(extra="forbid")

    definition: PipelineSpec
    inputs: dict[str, JsonValue] | None = Field(default=None, description="They fit the schemas of the definition.")
    labels: Annotated[dict[LabelName, LabelText], Field(max_length=MAX_LABELS)] | None = None


class AcceptedDocument(BaseModel):
    """A run that was accepted."""

    model_config = ConfigDict(extra="forbid")  # tells it from a whole run

    id: str
    status: RunStatus


class RunOfBatchDocument(SubmissionDocument):
    """A run of a batch."""

    idempotency_key: str | None = Field(
        default=None,
        pattern=rf"^[\x21-\x7e]{{1,{MAX_IDEMPOTENCY_KEY_CHARS}}}$",
        description="Submissions with the same key are one run.",
    )


class BatchDocument(BaseModel):
    """What `POST /v1/runs:batch` takes."""

    model_config = ConfigDict(extra="forbid")

    runs: list[RunOfBatchDocument | JsonValue] = Field(
        min_length=1, max_length=MAX_BATCH_RUNS, description="What is no such run is refused alone, by its result."
    )


class StepDocument(BaseModel):
    """A step of a run."""

    uses: str
    status: StepStatus
    attempt: int
    queued_at: Time | None
    started_at: Time | None
    finished_at: Time | None
    output: JsonValue
    error: StepError | None
    waiting_on: str | None
    cached: bool


class RunDocument(BaseModel):
    """A run as it is known now."""

    id: str
    pipeline: str | None
    revision: int | None
    tenant: str | None
    status: RunStatus
    inputs: dict[str, JsonValue] | None
    outputs: JsonValue
    error: StepError | None
    labels: dict[str, str]
    created_at: Time | None
    started_at: Time | None
    finished_at: Time | None
    steps: dict[str, StepDocument]


class AttemptDocument(BaseModel):
    """An attempt of a step; `lost`: its worker fell silent, and another took the step."""

    attempt: int
    status: AttemptStatus
    queued_at: Time | None
    started_at: Time | None
    finished_at: Time | None
    queued_ms: int | None = Field(description="How long it waited for a worker, in milliseconds.")
    ran_ms: int | None = Field(description="How long its worker had it, in milliseconds.")
    error: StepError | None


class AttemptsDocument(BaseModel):
    """The attempts of a step, the first one first."""

    id: str
    step: str
    attempts: list[AttemptDocument]


class ListedRunDocument(BaseModel):
    """A run as a list shows it; `labels` are the beginnings of long ones."""

    id: str
    pipeline: str
    revision: int | None
    status: RunStatus
    labels: dict[str, str]
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    error_type: str | None


class RunsDocument(BaseModel):
    """A page of runs, the newest first; `next_cursor` is where the next one begins."""

    runs: list[ListedRunDocument]
    next_cursor: str | None
    counts: dict[str, int] | None = Field(default=None, description="Runs by status, as far as they are counted.")
    counts_are_all: bool | None = Field(default=None, description="Whether there are no more than these.")


class FiguresDocument(BaseModel):
    """What ended of a pipeline, or of one of its steps; durations in milliseconds, by the nearest rank."""

    pipeline: str
    step: str | None = None
    ended: int
    failed: int
    failure_rate: float
    p50_ms: int | None
    p95_ms: int | None


class StatisticsDocument(BaseModel):
    """Figures of a window; of its newest runs or steps alone unless `is_all`."""

    since: Time
    looked_at: int
    is_all: bool
    statistics: list[FiguresDocument]


class ValidatedDocument(BaseModel):
    """A definition that may run."""

    valid: Literal[True]
    name: str
    steps: int
    content_hash: str


class StepTypesDocument(BaseModel):
    """Every step type that a definition may use."""

    step_types: list[StepTypeAnnounced]


class FindingDocument(BaseModel):
    """What one look at the installation found, and what to do about it; nothing where all is well."""

    check: str
    verdict: Verdict
    says: str
    do: str


class DiagnosisDocument(BaseModel):
    """How the installation is: `is_well` unless something keeps runs from going on, or could not be looked at."""

    is_well: bool
    findings: list[FindingDocument]


class HealthDocument(BaseModel):
    """The process lives."""

    status: Literal["ok"]


class ReadinessDocument(BaseModel):
    """Whether the process can take runs, and what is missing."""

    status: Literal["ready", "not ready"]
    not_ready: dict[str, str]


class FaultDocument(BaseModel):
    """One thing that is wrong in a body."""

    pointer: str = Field(description="RFC 6901, into the body that was sent.")
    message: str
    line: int | None = None
    column: int | None = None


class ProblemDocument(BaseModel):
    """A problem (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(json_schema_extra={"enum": [kind.urn for kind in Kind]})
    title: str
    status: int
    detail: str
    instance: str = Field(description="Names this occurrence; of a 500 the log has it.")
    errors: list[FaultDocument] | None = None


class ResultDocument(BaseModel):
    """What became of a run of a batch: it was accepted, or refused by a problem."""

    status: int = Field(description="The HTTP status that the run would have been answered with alone.")
    run: AcceptedDocument | None = None
    problem: ProblemDocument | None = None
    retry_after: int | None = Field(default=None, description="Seconds after which it may be sent again.")


class BatchResultsDocument(BaseModel):
    """What became of each run of a batch, in its order."""

    accepted: int
    refused: int
    results: list[ResultDocument]
