"""Large runs go by `ContinueRun`, a turn at a time, and cost per step what small ones cost. Counted, never timed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from unittest import mock

import pytest

from anabranch.services.orchestrator.core.decide import Decision
from anabranch.services.orchestrator.core.effects import Append
from anabranch.services.orchestrator.core.turn import Turn
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.limits import MAX_STEPS, STEPS_PER_TURN
from anabranch.shared.contracts.messages import RunSettings
from tests.support.builders import SETTINGS, ARun, a_step, a_submission, a_transform, cancel_run, cancelled, succeeded

WINDOW = 256


@dataclass
class Meter:
    """A run and what its records cost: moves of steps, effects, reads of steps, the largest of each per record."""

    submission: m.SubmitRun
    run: ARun = field(default_factory=ARun)
    records: int = 0
    moves: int = 0
    most_moves: int = 0
    effects: int = 0
    most_effects: int = 0
    reads: int = 0
    commands: list[tuple[str, int]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    itself: list[m.RunMessage] = field(default_factory=list)
    end: str = ""

    def take(self, message: m.RunMessage) -> Decision:
        reads = 0
        step = Turn.step

        def counted(turn: Turn, index: int) -> object:
            nonlocal reads
            reads += 1
            return step(turn, index)

        with mock.patch.object(Turn, "step", counted):
            decision = self.run.take(message)
        moved = 0 if decision.turn is None else len(decision.turn.changed)
        self.records += 1
        self.moves += moved
        self.most_moves = max(self.most_moves, moved)
        self.effects += len(decision.effects)
        self.most_effects = max(self.most_effects, len(decision.effects))
        self.reads += reads
        for record in self.run.outputs:
            self._note(record)
        self.run.outputs.clear()
        return decision

    def _note(self, record: Append) -> None:
        match record.channel:
            case "commands":
                command = m.COMMANDS.validate_json(record.value)
                self.commands.append((command.step, command.attempt))
            case "control":
                self.told.append(m.CONTROL.validate_json(record.value).step)
            case "inbox":
                self.itself.append(m.INBOX.validate_json(record.value))  # type: ignore[arg-type]
            case "run_events" if (event := m.RUN_EVENTS.validate_json(record.value)).type in m.RUN_ENDED_TYPES:
                self.end = event.type

    def go_on(self) -> "Meter":
        while self.itself:
            self.take(self.itself.pop(0))
        return self

    def to_the_end(self) -> "Meter":
        """Answer every command in its order, and every continue, until the run is over."""
        self.take(self.submission)
        while not self.end:
            self.go_on()
            if self.commands:
                step, attempt = self.commands.pop(0)
                self.take(succeeded(step, {"ok": True}, attempt=attempt))
        return self


def _fan_out(size: int, settings: RunSettings = SETTINGS) -> m.SubmitRun:
    steps = {"source": a_step()} | {f"s{i}": a_step("source") for i in range(size - 2)}
    join = a_step(*[name for name in steps if name != "source"])
    return a_submission(steps | {"join": join}, settings=settings)


def _chain(size: int, settings: RunSettings = SETTINGS) -> m.SubmitRun:
    return a_submission({f"s{i}": a_step(*([f"s{i - 1}"] if i else [])) for i in range(size)}, settings=settings)


def _two_layers(size: int, settings: RunSettings = SETTINGS) -> m.SubmitRun:
    half = size // 2
    first = {f"a{i}": a_step() for i in range(half)}
    return a_submission(first | {f"b{i}": a_step(f"a{i}") for i in range(half)}, settings=settings)


Shape = Callable[[int, RunSettings], m.SubmitRun]


@pytest.mark.parametrize("shape", [_fan_out, _chain, _two_layers])
def test_cost_per_step_is_flat(shape: Shape) -> None:
    """A step of a run with 4,000 steps moves, reads and appends no more than one of a run with 40."""
    small, large = (Meter(shape(size, RunSettings(window=4))).to_the_end() for size in (40, 4_000))
    assert small.end == large.end == "RunSucceeded"
    for cost in ("moves", "reads", "effects", "records"):
        assert getattr(large, cost) / 4_000 <= 1.2 * getattr(small, cost) / 40, cost
    assert large.most_moves <= 1 + 4


def test_run_of_ten_thousand_steps_ends_within_its_window() -> None:
    """The largest fan-out there may be: a window's worth at first, then one for one."""
    meter = Meter(_fan_out(MAX_STEPS)).to_the_end()
    assert meter.end == "RunSucceeded"
    assert meter.most_moves <= STEPS_PER_TURN + 1
    assert meter.most_effects <= 2 * STEPS_PER_TURN


def test_chain_of_ten_thousand_transforms_goes_on_by_continues() -> None:
    """The core answers them itself: no worker gives the partition a rest, the turns do."""
    steps = {f"s{i}": a_transform(i, *([f"s{i - 1}"] if i else [])) for i in range(MAX_STEPS)}
    meter = Meter(a_submission(steps)).to_the_end()
    assert meter.end == "RunSucceeded"
    assert meter.most_moves <= STEPS_PER_TURN
    assert meter.records == -(-MAX_STEPS // STEPS_PER_TURN)


def test_window_larger_than_a_turn_fills_turn_by_turn() -> None:
    """Whatever window was stamped, a turn settles `STEPS_PER_TURN` steps at most."""
    steps = {f"s{i}": a_step() for i in range(1_000)}
    meter = Meter(a_submission(steps, settings=RunSettings(window=1_000)))
    meter.take(meter.submission)
    meter.go_on()
    assert len(meter.commands) == 1_000
    assert meter.most_moves == STEPS_PER_TURN


def test_mass_cancel_goes_turn_by_turn_and_reads_each_step_a_few_times() -> None:
    """10,000 pending steps are cancelled 256 at a time, what runs is told to stop in the first turn."""
    meter = Meter(a_submission({f"s{i}": a_step() for i in range(MAX_STEPS)}))
    meter.take(meter.submission)
    meter.go_on()
    meter.reads = meter.records = meter.most_moves = 0
    meter.take(cancel_run())
    assert len(meter.told) == WINDOW
    meter.go_on()
    assert meter.most_moves <= STEPS_PER_TURN + WINDOW
    assert meter.records <= MAX_STEPS / STEPS_PER_TURN + 1
    assert meter.reads <= 8 * MAX_STEPS
    for step in meter.told:
        meter.take(cancelled(step))
    assert meter.end == "RunCancelled"
