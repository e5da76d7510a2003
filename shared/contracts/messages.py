"""Every message on every topic. Commands are imperative, events past tense; unknown fields are tolerated on the wire.

Times inside are integer milliseconds of broker time (`at_ms`); run events, which anyone may read, say RFC 3339 (`at`).
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from anabranch.shared.contracts.api_keys import Scope
from anabranch.shared.contracts.errors import StepError
from anabranch.shared.contracts.limits import (
    DEFAULT_RUN_TIMEOUT_S,
    DEFAULT_STEP_TIMEOUT_S,
    DEFAULT_WINDOW,
    MAX_CANCEL_REASON_CHARS,
    MAX_WAIT_S,
)
from anabranch.shared.contracts.secrets import SecretText

RunId = Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z_.-]{0,63}$")]
"""A run's id where a run begins: it is part of keys and of other ids, so it must not hold what parts them."""

SpanId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]

LeaseSeconds = Annotated[float, Field(ge=0, le=MAX_WAIT_S)]

Milliseconds = Annotated[int, Field(ge=0, le=253_402_300_799_999)]
"""A time that can be written: until the end of the year 9999 (RFC 3339 §5.6 has four digits)."""


class Message(BaseModel):
    """Base of what travels as a record's value: JSON, told apart by `type`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    says_what_a_handler_gave: ClassVar[bool] = False  # then whoever decides on it looks at how deep that is

    type: str


# --- pipelines.inbox: everything that can change a run --------------------------------------------------------


class RunSettings(BaseModel):
    """What a decision depends on beside the log: stamped into the submission by the gateway, never read later."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    window: int = Field(default=DEFAULT_WINDOW, ge=1)  # steps in flight at once
    run_timeout_s: float = Field(default=DEFAULT_RUN_TIMEOUT_S, gt=0, le=MAX_WAIT_S)
    step_timeout_s: float = Field(default=DEFAULT_STEP_TIMEOUT_S, gt=0, le=MAX_WAIT_S)
    suspect_s: float = Field(default=5.0, ge=0, le=MAX_WAIT_S)  # between a lapsed lease and the next attempt
    cancel_grace_s: float = Field(default=10.0, ge=0, le=MAX_WAIT_S)  # how long a stopping run waits for its workers
    max_losses: int = Field(default=5, ge=0)  # lost workers after which a step fails with WorkerLost


class SubmitRun(Message):
    """Start a run. `definition` is the pipeline as canonical JSON text: it is compiled once per content."""

    type: Literal["SubmitRun"] = "SubmitRun"
    run_id: RunId
    tenant: str
    definition: str
    inputs: dict[str, Any] = {}
    labels: dict[str, str] = {}
    revision: int | None = None
    body_hash: str = ""  # of what the client sent, so that a key with another body is recognised
    keep_s: int = 0  # how long a repeat must be recognised after the run's end; 0: no key was given
    trace_id: str = ""
    parent_span: SpanId | None = None  # in that trace: of the request, or of who sent it
    sampled: bool | None = None  # False: nobody writes spans of the run (W3C Trace Context §3.2.2.5)
    settings: RunSettings = RunSettings()


class CancelRun(Message):
    """Stop a run: nothing new starts, what runs is cancelled."""

    type: Literal["CancelRun"] = "CancelRun"
    run_id: RunId
    reason: str = Field(default="cancelled by request", max_length=MAX_CANCEL_REASON_CHARS)


class AttemptStarted(Message):
    """A worker holds this attempt under a lease of `lease_s` seconds from this record's broker time."""

    type: Literal["AttemptStarted"] = "AttemptStarted"
    run_id: str
    step: str
    attempt: int
    lease_s: LeaseSeconds
    worker: str


class AttemptSucceeded(Message):
    """The handler returned `output` after `duration_ms`."""

    says_what_a_handler_gave: ClassVar[bool] = True

    type: Literal["AttemptSucceeded"] = "AttemptSucceeded"
    run_id: str
    step: str
    attempt: int
    output: Any = None
    duration_ms: int = 0


class AttemptFailed(Message):
    """The handler raised. `terminal`: not to be retried; `retry_after_s`: not before; `timed_out`: by its own limit."""

    says_what_a_handler_gave: ClassVar[bool] = True

    type: Literal["AttemptFailed"] = "AttemptFailed"
    run_id: str
    step: str
    attempt: int
    error: StepError
    terminal: bool = False
    timed_out: bool = False
    retry_after_s: float | None = None
    duration_ms: int = 0


class AttemptCancelled(Message):
    """The worker stopped the handler, or never started it, because it was told to."""

    type: Literal["AttemptCancelled"] = "AttemptCancelled"
    run_id: str
    step: str
    attempt: int
    duration_ms: int = 0


class Lease(BaseModel):
    """One attempt that a worker still holds, and what its handler last said of its progress."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str
    step: str
    attempt: int
    progress: Any = None


class LeasesRenewed(Message):
    """A worker still holds these attempts, all of runs in the partition this record was written to.

    A `lease_s` of 0 gives them back: the worker stops, and the next attempt may start at once.
    """

    says_what_a_handler_gave: ClassVar[bool] = True

    type: Literal["LeasesRenewed"] = "LeasesRenewed"
    worker: str
    lease_s: LeaseSeconds
    leases: tuple[Lease, ...]


class LeaseRenewed(Message):
    """One lease of a `LeasesRenewed`, as the run it concerns sees it. Never on the wire."""

    type: Literal["LeaseRenewed"] = "LeaseRenewed"
    run_id: str
    step: str
    attempt: int
    lease_s: float
    progress: Any = None


class CommandRefused(Message):
    """This sending of an attempt's command could not be written to its topic, and why; `too_large`: it never can be.

    It may be wrong: a command whose acknowledgement was lost is in its topic all the same.
    """

    type: Literal["CommandRefused"] = "CommandRefused"
    run_id: str
    step: str
    attempt: int
    sending: int = 0  # of the command, as it says
    reason: str
    too_large: bool = False


class TimerFired(Message):
    """A timer of the run is due. It means something only if it is still current when it is read back."""

    type: Literal["TimerFired"] = "TimerFired"
    run_id: str
    timer_id: str


class ContinueRun(Message):
    """Go on with an expansion too large for one turn."""

    type: Literal["ContinueRun"] = "ContinueRun"
    run_id: str
    number: int


RunMessage = (
    SubmitRun
    | CancelRun
    | AttemptStarted
    | AttemptSucceeded
    | AttemptFailed
    | AttemptCancelled
    | LeaseRenewed
    | CommandRefused
    | TimerFired
    | ContinueRun
)
"""What `decide` takes: a message to one run."""

InboxMessage = Annotated[
    SubmitRun
    | CancelRun
    | AttemptStarted
    | AttemptSucceeded
    | AttemptFailed
    | AttemptCancelled
    | LeasesRenewed
    | CommandRefused
    | TimerFired
    | ContinueRun,
    Field(discriminator="type"),
]

# --- pipelines.steps.<type> and pipelines.control --------------------------------------------------------------


class RunStep(Message):
    """Run one attempt of a step. `at_ms` is the broker time of the record that caused it."""

    type: Literal["RunStep"] = "RunStep"
    run_id: str
    step: str
    attempt: int
    uses: str
    tenant: str
    input: Any = None
    secrets: tuple[SecretText, ...] | None = None  # where in the input they belong; there it holds null
    timeout_s: float
    at_ms: Milliseconds
    trace_id: str = ""
    sampled: bool | None = None  # as its submission says
    sending: int | None = None  # from 1: the command was refused so often before, and is sent again


class CancelStep(Message):
    """Stop this attempt if it is in hand; answer `AttemptCancelled` if it is, or when it arrives."""

    type: Literal["CancelStep"] = "CancelStep"
    run_id: str
    step: str
    attempt: int


# --- pipelines.run-events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QueuedStep:
    """An attempt whose command was appended. A dataclass, since every step has one and a model costs three times it."""

    step: str
    uses: str
    attempt: int


class RunEvent(Message):
    """A fact about a run. `seq` counts from 1 without gap; a repeat has the same `seq` and the same bytes.

    `queued` are the attempts whose commands the same decision appended: from now on their steps are queued. The
    decision's last event carries them, so that a step costs two events, not three.
    """

    run_id: str
    seq: int
    at: str
    queued: tuple[QueuedStep, ...] | None = None


class RunStarted(RunEvent):
    """The run was taken up; `steps` says of each step what it uses, in the order of the definition."""

    type: Literal["RunStarted"] = "RunStarted"
    pipeline: str
    revision: int | None = None
    tenant: str
    inputs: dict[str, Any]
    labels: dict[str, str] = {}
    body_hash: str = ""
    rules: int = 1  # the version of the rules it is decided under, until an orchestrator with others takes it over
    steps: dict[str, str]


class StepsQueued(RunEvent):
    """One decision's commands, when nothing else happened to say it with."""

    type: Literal["StepsQueued"] = "StepsQueued"


class StepChanged(RunEvent):
    """A step as it is from now on: the whole of it, so that a reader overwrites what it knew."""

    type: Literal[
        "StepStarted",
        "StepProgressed",
        "StepHeldBack",
        "StepRetrying",
        "StepSucceeded",
        "StepFailed",
        "StepTimedOut",
        "StepCancelled",
        "StepSkipped",
    ]
    step: str
    uses: str
    status: str
    attempt: int
    queued_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    output: Any = None
    error: StepError | None = None
    progress: Any = None
    waiting_on: str | None = None


class RunEnded(RunEvent):
    """The run's last event."""

    type: Literal["RunSucceeded", "RunFailed", "RunCancelled", "RunTimedOut"]
    status: str
    started_at: str
    outputs: Any = None
    error: StepError | None = None


RunEventMessage = Annotated[RunStarted | StepsQueued | StepChanged | RunEnded, Field(discriminator="type")]

RUN_ENDED_TYPES: Final = frozenset({"RunSucceeded", "RunFailed", "RunCancelled", "RunTimedOut"})

# --- pipelines.step-types, pipelines.definitions, pipelines.dead-letters -----------------------------------------


class StepTypeAnnounced(Message):
    """A step service serves this type: what its input and output look like, as JSON Schema."""

    type: Literal["StepTypeAnnounced"] = "StepTypeAnnounced"
    name: str
    version: str
    description: str = ""
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]


class ApiKeyIssued(Message):
    """An API key as it is from now on: its hash, never the key. Once revoked it does not work again."""

    type: Literal["ApiKeyIssued"] = "ApiKeyIssued"
    id: str
    hash: str = Field(pattern="^[0-9a-f]{64}$")
    tenant: str = Field(min_length=1)
    scopes: tuple[Scope, ...]
    name: str = ""
    created_at: str
    expires_at: str | None = None
    revoked_at: str | None = None


class ApiKeyUsed(Message):
    """When an API key last opened something, within a minute. A record of its own: it cannot undo a revocation."""

    type: Literal["ApiKeyUsed"] = "ApiKeyUsed"
    id: str
    used_at: str


def use_key_of(key_id: str) -> str:
    """Return the record key of an API key's last use; that of the key itself is its id."""
    return f"{key_id}/used"


class PipelineDefined(Message):
    """A revision of a named pipeline."""

    type: Literal["PipelineDefined"] = "PipelineDefined"
    tenant: str
    name: str
    revision: int
    definition: str


class DeadLetter(Message):
    """A record that could not be handled: where it stood, what it was byte for byte, and why."""

    type: Literal["DeadLetter"] = "DeadLetter"
    topic: str
    partition: int
    offset: int
    at_ms: int
    key_base64: str | None = None  # left out of the record, like every null
    value_base64: str | None = None
    headers: dict[str, str] = {}
    service: str
    error_type: str
    error_message: str
    traceback: str | None = None


INBOX: Final[TypeAdapter[InboxMessage]] = TypeAdapter(InboxMessage)
COMMANDS: Final[TypeAdapter[RunStep]] = TypeAdapter(RunStep)
CONTROL: Final[TypeAdapter[CancelStep]] = TypeAdapter(CancelStep)
RUN_EVENTS: Final[TypeAdapter[RunEventMessage]] = TypeAdapter(RunEventMessage)
STEP_TYPES: Final[TypeAdapter[StepTypeAnnounced]] = TypeAdapter(StepTypeAnnounced)
DEFINITIONS: Final[TypeAdapter[PipelineDefined]] = TypeAdapter(PipelineDefined)
ApiKeyMessage = Annotated[ApiKeyIssued | ApiKeyUsed, Field(discriminator="type")]
API_KEYS: Final[TypeAdapter[ApiKeyMessage]] = TypeAdapter(ApiKeyMessage)
DEAD_LETTERS: Final[TypeAdapter[DeadLetter]] = TypeAdapter(DeadLetter)
