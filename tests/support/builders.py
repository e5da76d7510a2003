"""Builders of what the core is tested with: submissions, the messages of one run, and a run that takes them.

`a_run(a=..., b=...)` begins a run; `run.take(succeeded("a"))` decides one record, commits it and keeps what came out.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import TypeAdapter

from anabranch.services.orchestrator.core.decide import Decision
from anabranch.services.orchestrator.core.effects import Append, Channel, DropTimer, SetTimer
from anabranch.services.orchestrator.core.partition import Partition
from anabranch.services.orchestrator.core.state import Run, Step
from anabranch.services.orchestrator.core.transitions import Ignore
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import decode
from anabranch.shared.contracts.errors import StepError
from anabranch.shared.contracts.ids import timer_id
from anabranch.shared.contracts.messages import RunSettings

RUN = "0192f0c3-0000-7000-8000-000000000001"
T0 = 1_770_000_000_000
"""Broker time of a run's first record, milliseconds."""

RETRIES = {"max_attempts": 3, "initial": "1s", "factor": 1, "jitter": "none"}
SETTINGS = RunSettings()

T = TypeVar("T")


# --- definitions and submissions ------------------------------------------------------------------------------------


def a_step(*needs: str, uses: str = "simulate", **more: Any) -> dict[str, Any]:
    """Return one step of a definition; `if_` and `with_` stand for `if` and `with`."""
    own = {name.rstrip("_"): value for name, value in more.items()}
    return {"uses": uses, **({"needs": list(needs)} if needs else {}), **own}


def a_transform(value: Any, *needs: str, **more: Any) -> dict[str, Any]:
    """Return a step that the core answers itself."""
    return a_step(*needs, uses="transform", with_={"value": value}, **more)


def a_definition(steps: Mapping[str, Any], **pipeline: Any) -> str:
    """Return a definition's canonical text."""
    return json.dumps({"name": "p", **pipeline, "steps": dict(steps)}, sort_keys=False)


def a_submission(
    steps: Mapping[str, Any],
    *,
    run_id: str = RUN,
    inputs: dict[str, Any] | None = None,
    keep_s: int = 0,
    body_hash: str = "hash",
    settings: RunSettings = SETTINGS,
    **pipeline: Any,
) -> m.SubmitRun:
    """Return the record that starts a run of these steps."""
    return m.SubmitRun(
        run_id=run_id, tenant="t", definition=a_definition(steps, **pipeline), inputs=inputs or {},
        keep_s=keep_s, body_hash=body_hash, settings=settings,
    )  # fmt: skip


# --- messages -------------------------------------------------------------------------------------------------------


def started(step: str, attempt: int = 1, lease_s: float = 10, run_id: str = RUN) -> m.AttemptStarted:
    """Return a worker's word that it holds the attempt."""
    return m.AttemptStarted(run_id=run_id, step=step, attempt=attempt, lease_s=lease_s, worker="w")


def succeeded(
    step: str, output: Any = None, *, attempt: int = 1, duration_ms: int = 0, run_id: str = RUN
) -> m.AttemptSucceeded:
    """Return the result of an attempt whose handler returned."""
    return m.AttemptSucceeded(run_id=run_id, step=step, attempt=attempt, output=output, duration_ms=duration_ms)


def failed(step: str, error_type: str = "Boom", *, attempt: int = 1, run_id: str = RUN, **more: Any) -> m.AttemptFailed:
    """Return the result of an attempt whose handler raised."""
    error = StepError(type=error_type, message=more.pop("message", "no luck"), details=more.pop("details", None))
    return m.AttemptFailed(run_id=run_id, step=step, attempt=attempt, error=error, **more)


def timed_out(step: str, *, attempt: int = 1, run_id: str = RUN) -> m.AttemptFailed:
    """Return the result of an attempt that took longer than its own limit."""
    return failed(step, "AttemptTimeout", attempt=attempt, run_id=run_id, timed_out=True)


def cancelled(step: str, attempt: int = 1, duration_ms: int = 0, run_id: str = RUN) -> m.AttemptCancelled:
    """Return a worker's word that it stopped the attempt."""
    return m.AttemptCancelled(run_id=run_id, step=step, attempt=attempt, duration_ms=duration_ms)


def renewed(
    step: str, attempt: int = 1, lease_s: float = 10, progress: Any = None, run_id: str = RUN
) -> m.LeaseRenewed:
    """Return a worker's word that it still holds the attempt."""
    return m.LeaseRenewed(run_id=run_id, step=step, attempt=attempt, lease_s=lease_s, progress=progress)


def gave_back(step: str, attempt: int = 1, run_id: str = RUN) -> m.LeaseRenewed:
    """Return a stopping worker's word that the next attempt may start at once."""
    return renewed(step, attempt, lease_s=0, run_id=run_id)


def refused(step: str, attempt: int = 1, reason: str = "no such topic", **more: Any) -> m.CommandRefused:
    """Return the log's word that the attempt's command could not be written."""
    return m.CommandRefused(run_id=more.pop("run_id", RUN), step=step, attempt=attempt, reason=reason, **more)


def send_due(step: str, attempt: int = 1) -> m.TimerFired:
    """Return the end of the pause before a refused command is sent again."""
    return fired(timer_id("send", step, attempt))


def fired(name: str, run_id: str = RUN) -> m.TimerFired:
    """Return the record of a timer that came due."""
    return m.TimerFired(run_id=run_id, timer_id=name)


def retry_due(step: str, attempt: int = 1) -> m.TimerFired:
    """Return the end of the delay before the next attempt."""
    return fired(timer_id("retry", step, attempt))


def lease_due(step: str, attempt: int = 1) -> m.TimerFired:
    """Return the end of a lease, or of the doubt that follows it."""
    return fired(timer_id("lease", step, attempt))


def run_timeout() -> m.TimerFired:
    """Return the end of the run's time."""
    return fired("run-timeout")


def grace_ends() -> m.TimerFired:
    """Return the end of a stopping run's patience."""
    return fired("grace")


def cancel_run(run_id: str = RUN) -> m.CancelRun:
    """Return a client's wish to stop the run."""
    return m.CancelRun(run_id=run_id)


def continued(number: int, run_id: str = RUN) -> m.ContinueRun:
    """Return the record that goes on with a large expansion."""
    return m.ContinueRun(run_id=run_id, number=number)


# --- a partition that takes them ------------------------------------------------------------------------------------


def decoded(adapter: TypeAdapter[T], record: Append) -> T:
    """Return the message in an appended record."""
    message = decode(adapter, record.value)
    assert not hasattr(message, "reason"), message
    return message  # type: ignore[return-value]


@dataclass
class ARun:
    """A partition with the run `run_id` under test: what it took, what came out, and the timers that are armed."""

    run_id: str = RUN
    partition: Partition = field(default_factory=Partition)
    at: int = T0
    outputs: list[Append] = field(default_factory=list)
    armed: dict[str, int] = field(default_factory=dict)
    last: Decision | None = None
    read: int = 0  # of `to_itself`

    def take(self, message: m.RunMessage, after_ms: int = 0) -> Decision:
        """Decide the message `after_ms` later than the last one, commit it, and return what was decided."""
        self.at += after_ms
        decision = self.partition.decide(message, self.at)
        self.partition.commit(decision, self.at)
        self.act(decision)
        self.last = decision
        return decision

    def act(self, decision: Decision) -> None:
        """Keep what was appended, and set and drop timers."""
        for effect in decision.effects:
            match effect:
                case Append():
                    self.outputs.append(effect)
                case SetTimer():
                    self.armed[effect.timer_id] = effect.due_ms
                case DropTimer():
                    self.armed.pop(effect.timer_id, None)
        if decision.ended:
            self.armed.clear()

    def takes(self, *messages: m.RunMessage) -> "ARun":
        """Take the messages one after the other, none of which may be ignored."""
        for message in messages:
            assert self.take(message).ignored is None, message
        return self

    def ignores(self, message: m.RunMessage, after_ms: int = 0) -> Ignore | None:
        """Take the message and return why it changed nothing."""
        return self.take(message, after_ms).ignored

    def fire(self, name: str) -> Decision:
        """Let an armed timer come due."""
        due = self.armed.pop(name)
        self.at = max(self.at, due)
        return self.take(fired(name, self.run_id))

    def go_on(self) -> "ARun":
        """Take every message the run has sent to itself, until it sends no more."""
        while self.read < len(self.to_itself):
            self.read += 1
            self.take(self.to_itself[self.read - 1])
        return self

    @property
    def run(self) -> Run:
        """The run, which must not have ended."""
        return self.partition.runs[self.run_id]

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self.run_id not in self.partition.runs

    def step(self, name: str) -> Step:
        """Return a step of the run that has not ended."""
        return self.run.steps[self.run.pipeline.index[name]]

    def of(self, channel: Channel) -> list[Append]:
        """Return what was appended there."""
        return [output for output in self.outputs if output.channel is channel]

    @property
    def events(self) -> list[Any]:
        """The run's events."""
        return [decoded(m.RUN_EVENTS, record) for record in self.of(Channel.RUN_EVENTS)]

    @property
    def commands(self) -> list[m.RunStep]:
        """The commands sent out."""
        return [decoded(m.COMMANDS, record) for record in self.of(Channel.COMMANDS)]

    @property
    def cancels(self) -> list[tuple[str, int]]:
        """The attempts that workers were told to stop: step and attempt."""
        told = [decoded(m.CONTROL, record) for record in self.of(Channel.CONTROL)]
        return [(message.step, message.attempt) for message in told]

    @property
    def to_itself(self) -> list[m.RunMessage]:
        """The messages to the run itself."""
        return [decoded(m.INBOX, record) for record in self.of(Channel.INBOX)]  # type: ignore[misc]

    @property
    def statuses(self) -> dict[str, str]:
        """The status of every step, as the events tell it."""
        known: dict[str, str] = {}
        for event in self.events:
            match event:
                case m.RunStarted():
                    known = dict.fromkeys(event.steps, "pending")
                case m.StepChanged():
                    known[event.step] = event.status
            known |= {queued.step: "queued" for queued in event.queued or ()}
        return known

    @property
    def end(self) -> m.RunEnded:
        """The run's last event."""
        last = self.events[-1]
        assert isinstance(last, m.RunEnded)
        return last


def a_run(
    steps: Mapping[str, Any] | Iterable[str] | None = None, *, settings: RunSettings = SETTINGS, **more: Any
) -> ARun:
    """Return a run that has begun: of these steps, or of one step per name, or of the single step `a`.

    Keywords are of the pipeline (`fail_fast`, `outputs`, …) or of the submission (`inputs`, `keep_s`).
    """
    if not isinstance(steps, Mapping):
        steps = {name: a_step() for name in (steps or ("a",))}
    run = ARun()
    run.takes(a_submission(steps, settings=settings, **more))
    return run
