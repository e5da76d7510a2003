"""One decision in the making: what a record changes, kept beside the run until `commit`.

So the run stays as it is when deciding fails.
"""

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from heapq import heappop, heappush
from operator import neg
from typing import Any, Final

from anabranch.services.orchestrator.core.effects import Append, Channel, DropTimer, Effect, SetTimer
from anabranch.services.orchestrator.core.graph import Node
from anabranch.services.orchestrator.core.state import Run, Step, StopReason
from anabranch.services.orchestrator.core.status import IN_FLIGHT, TERMINAL, StepStatus
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import Encoded, encode
from anabranch.shared.contracts.errors import StepError
from anabranch.shared.contracts.ids import event_id
from anabranch.shared.contracts.limits import COST_PER_TURN, MAX_TURN_BYTES, MAX_WINDOW_BYTES, STEPS_PER_TURN
from anabranch.shared.contracts.times import rfc3339

SOURCE: Final = "/anabranch/orchestrator"

_FEW: Final = 8  # steps that are put into their places one by one; more are sorted in

Unsaid = Callable[..., m.RunEvent]
"""A run event but for its `seq` and what was `queued` with it."""

_STEP_EVENT: Final = {
    StepStatus.RUNNING: "StepStarted",
    StepStatus.WAITING: "StepRetrying",
    StepStatus.SUCCEEDED: "StepSucceeded",
    StepStatus.FAILED: "StepFailed",
    StepStatus.TIMED_OUT: "StepTimedOut",
    StepStatus.CANCELLED: "StepCancelled",
    StepStatus.SKIPPED: "StepSkipped",
}


@dataclass(slots=True)
class Budget:
    """How much more one record may lead to: steps to settle, cost of expressions, bytes to append.

    The last step may exceed it, as it cannot be split.
    """

    steps: int
    cost: int
    bytes: int

    @property
    def is_spent(self) -> bool:
        """Whether the rest is another record's."""
        return self.steps <= 0 or self.cost <= 0 or self.bytes <= 0

    def charge(self, cost: int) -> None:
        """Take off what was evaluated."""
        self.cost -= cost


class Turn:
    """Everything one record changes in a run. Reads see the changes; the run sees them at `commit`."""

    __slots__ = (
        "_event", "_queued", "_ready", "_taken", "_unhappy", "_unmet", "at", "budget", "changed",
        "continued", "effects", "ended", "error", "held", "in_flight", "in_flight_bytes", "is_sampled", "open", "run",
        "seq", "stop", "swept", "trace_id",
    )  # fmt: skip

    def __init__(self, run: Run, at: int) -> None:
        self.run = run
        self.at = max(at, run.at)
        self.seq = run.seq
        self.stop = run.stop
        self.error = run.error
        self.in_flight = run.in_flight
        self.in_flight_bytes = run.in_flight_bytes
        self.held = run.held
        self.open = run.open
        self.continued = run.continued
        self.swept = run.swept
        self.ended = False
        self.budget = Budget(STEPS_PER_TURN, COST_PER_TURN, MAX_TURN_BYTES)
        self.trace_id = run.trace_id
        self.is_sampled = run.is_sampled
        self.changed: dict[int, Step] = {}
        self.effects: list[Effect] = []
        self._unmet: dict[int, int] = {}
        self._unhappy: dict[int, int] = {}
        self._ready: list[int] = []
        self._taken = 0
        self._queued: list[m.QueuedStep] = []
        self._event: Unsaid | None = None

    # --- reading --------------------------------------------------------------------------------------------------

    def step(self, index: int) -> Step:
        """Return the step as it is after what has been changed so far."""
        return self.changed.get(index) or self.run.steps[index]

    def node(self, index: int) -> Node:
        """Return the step as the definition has it."""
        return self.run.pipeline.steps[index]

    def unhappy(self, index: int) -> int:
        """Return how many of a step's needs ended so that `succeeded()` does not hold."""
        return self._unhappy.get(index, self.run.unhappy[index])

    @property
    def is_stopped_for_good(self) -> bool:
        """Whether a cancel or the run's own limit has stopped the run."""
        return self.stop is not None and self.stop.reason is not StopReason.FAIL_FAST

    @property
    def has_window(self) -> bool:
        """Whether one more step may be in flight."""
        return self.in_flight < self.run.submission.settings.window and self.in_flight_bytes < MAX_WINDOW_BYTES

    # --- changing steps -------------------------------------------------------------------------------------------

    def move(self, index: int, after: Step) -> None:
        """Put the step where it is from now on; counters, dependents and its timer follow."""
        before = self.step(index)
        self.changed[index] = after
        self.in_flight += (after.status in IN_FLIGHT) - (before.status in IN_FLIGHT)
        self.in_flight_bytes += after.sent - before.sent
        if (
            after.output is not before.output
            or after.error is not before.error
            or after.progress is not before.progress
        ):
            self.held += after.held - before.held
        if before.due_at is not None or after.due_at is not None:
            self._move_timer(self.node(index).id, before, after)
        if after.status in TERMINAL:
            self.open -= 1
            self._release_dependents(index, happy=self.node(index).satisfies(after.status))

    def _move_timer(self, step_id: str, before: Step, after: Step) -> None:
        old = before.timer_id(step_id)
        new = after.timer_id(step_id)
        if before.due_at is not None and (after.due_at is None or old != new):
            self.effects.append(DropTimer(old))
        if after.due_at is not None and (after.due_at != before.due_at or old != new):
            self.effects.append(SetTimer(new, after.due_at))

    def _release_dependents(self, index: int, *, happy: bool) -> None:
        run = self.run
        for dependent in run.pipeline.dependents[index]:
            left = self._unmet.get(dependent, run.unmet[dependent]) - 1
            self._unmet[dependent] = left
            if not happy:
                self._unhappy[dependent] = self.unhappy(dependent) + 1
            if not left and self._is_pending(dependent):
                heappush(self._ready, dependent)

    def next_ready(self) -> int | None:
        """Take the first pending step, in the order of the definition, that has no unmet need."""
        self._pass_over_cancelled()
        backlog = self.run.backlog
        waiting = backlog[-1 - self._taken] if self._taken < len(backlog) else None
        if self._ready and (waiting is None or self._ready[0] < waiting):
            return heappop(self._ready)
        if waiting is not None:
            self._taken += 1
        return waiting

    @property
    def has_ready(self) -> bool:
        """Whether `next_ready` has a step to take."""
        self._pass_over_cancelled()
        return bool(self._ready) or self._taken < len(self.run.backlog)

    def _pass_over_cancelled(self) -> None:
        """Drop the steps that a stop cancelled while they waited for the window: a restored run does not know them."""
        if self.stop is None:
            return
        backlog = self.run.backlog
        while self._ready and not self._is_pending(self._ready[0]):
            heappop(self._ready)
        while self._taken < len(backlog) and not self._is_pending(backlog[-1 - self._taken]):
            self._taken += 1

    def _is_pending(self, index: int) -> bool:
        return self.step(index).status is StepStatus.PENDING

    # --- effects --------------------------------------------------------------------------------------------------

    def encode(self, message: m.Message, message_id: str) -> Encoded:
        """Return the message as a record caused by the one at hand."""
        return encode(
            message, message_id=message_id, source=SOURCE, at_ms=self.at, trace_id=self.trace_id,
            is_sampled=self.is_sampled,
        )  # fmt: skip

    def append(self, channel: Channel, key: str, record: Encoded, step_type: str = "") -> None:
        """Have a record appended."""
        self.budget.bytes -= len(record.value)
        self.effects.append(Append(channel, key, record.value, record.headers, step_type))

    def emit(self, event: "Unsaid") -> None:
        """Append the run's next event: as the last one of the turn it also says what was queued."""
        self._say(())
        self.seq += 1
        self._event = event

    def _say(self, queued: tuple[m.QueuedStep, ...]) -> None:
        """Append the event that was held back in case steps are queued behind it."""
        event, self._event = self._event, None
        if event is not None:
            self.append(Channel.RUN_EVENTS, self.run.id, self.encode_event(event(seq=self.seq, queued=queued or None)))

    def encode_event(self, event: m.RunEvent) -> Encoded:
        """Return a run event as a record."""
        return self.encode(event, event_id(self.run.id, event.seq))

    def change(
        self,
        index: int,
        step: Step,
        *,
        output: Any = None,
        event_type: str | None = None,
        waiting_on: str | None = None,
    ) -> None:
        """Move the step and say so in a run event. `output` is the value of the step's own."""
        node = self.run.pipeline.steps[index]
        self.emit(
            partial(
                m.StepChanged,
                type=event_type or _STEP_EVENT[step.status],
                run_id=self.run.id,
                at=rfc3339(self.at),
                step=node.id,
                uses=node.uses,
                status=step.status,
                attempt=step.attempt,
                queued_at=_time(step.queued_at),
                started_at=_time(step.started_at),
                finished_at=_time(step.finished_at),
                output=output,
                error=step.error,
                progress=step.progress,
                waiting_on=waiting_on,
            )
        )
        self.move(index, step)

    def note_queued(self, index: int, attempt: int) -> None:
        """Remember that a command was appended; the turn's last event says so."""
        node = self.run.pipeline.steps[index]
        self._queued.append(m.QueuedStep(node.id, node.uses, attempt))

    def flush(self) -> None:
        """Append what is held back: the last event, with what was queued."""
        queued, self._queued = tuple(self._queued), []
        if queued and self._event is None:
            self.emit(partial(m.StepsQueued, run_id=self.run.id, at=rfc3339(self.at)))
        self._say(queued)

    def fail_run(self, error: StepError) -> None:
        """Remember why the run fails; the first reason stays."""
        self.error = self.error or error

    # --- the end --------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Make the run what this turn decided. Nothing here can fail."""
        run = self.run
        run.at, run.seq, run.stop, run.error = self.at, self.seq, self.stop, self.error
        run.in_flight, run.open, run.continued, run.swept = self.in_flight, self.open, self.continued, self.swept
        run.in_flight_bytes, run.held = self.in_flight_bytes, self.held
        for index, step in self.changed.items():
            run.steps[index] = step
        for index, count in self._unmet.items():
            run.unmet[index] = count
        for index, count in self._unhappy.items():
            run.unhappy[index] = count
        if self._taken:
            del run.backlog[-self._taken :]
        if len(self._ready) > _FEW:
            run.backlog.extend(self._ready)
            run.backlog.sort(reverse=True)
        else:
            for index in self._ready:
                insort(run.backlog, index, key=neg)


def finished(step: Step, status: StepStatus, at: int, **changes: object) -> Step:
    """Return the step in a terminal status, its timer and its doubts gone."""
    return replace(
        step,
        status=status,
        finished_at=at,
        due_at=None,
        suspected=False,
        refusals=0,
        sent=0,
        **changes,  # type: ignore[arg-type]
    )


def _time(at_ms: int | None) -> str | None:
    return None if at_ms is None else rfc3339(at_ms)
