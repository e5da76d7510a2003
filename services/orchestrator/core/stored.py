"""A run as its partition's changelog has it: not compiled before it is first decided on, or not understood at all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field

from anabranch.services.orchestrator.core.graph import Pipeline
from anabranch.services.orchestrator.core.state import GRACE, RUN_TIMEOUT, Run, Step, Stop
from anabranch.shared.contracts.errors import StepError
from anabranch.shared.contracts.messages import SubmitRun

_YEAR_10000: Final = 253_402_300_800_000  # no time of a run, which its events say in RFC 3339, can be later

Time = Annotated[int, Field(ge=0, lt=_YEAR_10000)]
"""Milliseconds of broker time."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a run is beside its submission and its steps."""

    seq: Annotated[int, Field(ge=0)]
    at: Time
    started_at: Time
    continued: int = 0
    stop: Stop | None = None
    error: StepError | None = None
    quarantined: bool = False
    timeout_at: Time = 0  # follows from the definition, which need not be compiled for it

    @classmethod
    def of(cls, run: Run) -> "Head":
        """Return the head of a run."""
        return cls(run.seq, run.at, run.started_at, run.continued, run.stop, run.error, run.quarantined, run.timeout_at)


@dataclass(frozen=True, slots=True)
class Stored:
    """A run that nobody has decided on since it was restored."""

    submission: SubmitRun
    head: Head
    steps: Mapping[str, Step]

    def awaken(self, pipeline: Pipeline) -> Run:
        """Return the run. Raises `KeyError` when a step is not one of the pipeline's."""
        head = self.head
        run = Run.begin(self.submission, pipeline, head.started_at)
        run.at, run.seq, run.continued = head.at, head.seq, head.continued
        run.stop, run.error, run.quarantined = head.stop, head.error, head.quarantined
        for step_id, step in self.steps.items():
            run.steps[pipeline.index[step_id]] = step
        run.recount()
        return run

    def timers(self) -> dict[str, int]:
        """Return the timers that the run has armed, as `Run.timers` does; one that is early does no harm."""
        if self.head.quarantined:
            return {}
        stop = self.head.stop
        due = {} if stop is not None and stop.is_for_good else {RUN_TIMEOUT: self.head.timeout_at}
        if stop is not None and (grace := stop.grace_ends_at(self.submission.settings)) is not None:
            due[GRACE] = grace
        for step_id, step in self.steps.items():
            if step.due_at is not None:
                due[step.timer_id(step_id)] = step.due_at
        return due


@dataclass(frozen=True, slots=True)
class Broken:
    """A run of which this version makes nothing: the next message to it, whatever it says, ends it as failed."""

    submission: SubmitRun  # its own, or one that says no more than the id
    head: Head
    names: tuple[str, ...]  # of its records beside the head
    reason: str
