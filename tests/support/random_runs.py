"""Random pipelines and random lives of their runs: what workers, clients, timers and a bad day may do to them.

A life is drawn from one `random.Random`, so that a seed is a test case: `live(random.Random(7))` is always the same.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from anabranch.services.orchestrator.core.decide import Decision
from anabranch.services.orchestrator.core.effects import Append, Channel
from anabranch.services.orchestrator.core.partition import Partition
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.messages import RunSettings
from tests.support.builders import (
    ARun,
    a_submission,
    cancel_run,
    cancelled,
    continued,
    decoded,
    failed,
    fired,
    gave_back,
    refused,
    renewed,
    started,
    succeeded,
)

_CONDITIONS = (
    None, None, None, "succeeded()", "failed()", "always()", "!failed()", "true", "inputs.n > 1", "inputs.gone.x == 1",
)  # fmt: skip
_VALUES = (
    1, "text", "${{ inputs.n + 1 }}", "${{ {'b': 1, 'a': [inputs.n, null], 'c': {'y': 1.0, 'x': 'z'}} }}",
    "${{ 1 / 0 }}", ["${{ run.id }}", {"k": "n=${{ inputs.n }}"}],
)  # fmt: skip
_OUTPUTS: tuple[Any, ...] = (None, 0, 1.5, "x", [], {"b": 1, "a": [None, {"z": "ü"}]}, {"ok": True}, 2**60)


def random_submission(chance: random.Random, *, largest: int = 12) -> m.SubmitRun:
    """Return a run of a random graph under random rules."""
    steps: dict[str, Any] = {}
    for number in range(chance.randint(1, largest)):
        steps[f"s{number}"] = _random_step(chance, list(steps))
    outputs = chance.choice(({}, {"n": "${{ inputs.n }}"}, {"o": "${{ steps.s0.output }}"}, {"bad": "${{ 1 / 0 }}"}))
    settings = RunSettings(
        window=chance.choice((1, 2, 3, 256)),
        run_timeout_s=chance.choice((20, 60, 900)),
        suspect_s=chance.choice((0, 1, 5)),
        cancel_grace_s=chance.choice((0, 2, 10)),
        max_losses=chance.choice((1, 2, 5)),
    )
    return a_submission(
        steps, inputs={"n": chance.randint(0, 3), "gone": {}}, fail_fast=chance.random() < 0.5, outputs=outputs,
        settings=settings, keep_s=chance.choice((0, 3600)),
    )  # fmt: skip


def _random_step(chance: random.Random, before: list[str]) -> dict[str, Any]:
    needs = chance.sample(before, min(len(before), chance.choice((0, 0, 1, 1, 2, 3))))
    step: dict[str, Any] = {"uses": "simulate", "needs": needs}
    condition = chance.choice(_CONDITIONS)
    if needs and chance.random() < 0.2:
        condition = f"{chance.choice(('failed', 'succeeded'))}('{needs[0]}')"
    if condition is not None:
        step["if"] = condition
    step["continue_on_error"] = chance.random() < 0.2
    if chance.random() < 0.3:
        return step | {"uses": "transform", "with": {"value": chance.choice(_VALUES)}}
    if needs and chance.random() < 0.4:
        step["with"] = {"v": f"${{{{ steps.{needs[0]}.{chance.choice(('output', 'status', 'error', 'output.a'))} }}}}"}
    if chance.random() < 0.4:
        step["retry"] = {
            "max_attempts": chance.randint(1, 3),
            "initial": "1s",
            "jitter": chance.choice(("full", "none")),
        }
        if chance.random() < 0.3:
            step["retry"]["if"] = chance.choice(("attempt < 2", "error.type == 'Boom'", "error.details.x == 1"))
    return step


@dataclass
class Life:
    """One run, record by record: the inbox it took, and everything that came out."""

    submission: m.SubmitRun
    run: ARun = field(default_factory=ARun)
    inbox: list[tuple[m.RunMessage, int]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    seen: int = 0  # of the outputs: what the world has reacted to
    world: list[m.RunMessage] = field(default_factory=list)  # on its way to the inbox
    on_record: Callable[["Life", Decision], None] | None = None

    def take(self, message: m.RunMessage, after_ms: int = 0) -> None:
        """Take one record."""
        self.inbox.append((message, self.run.at + after_ms))
        decision = self.run.take(message, after_ms)
        self.decisions.append(decision)
        if self.on_record is not None:
            self.on_record(self, decision)


def live(chance: random.Random, on_record: Callable[[Life, Decision], None] | None = None, **more: Any) -> Life:
    """Return the whole life of a random run. Raises `AssertionError` when it does not end."""
    life = Life(random_submission(chance, **more), on_record=on_record)
    life.take(life.submission)
    trouble = chance.choice((0.0, 0.1, 0.4))
    for _ in range(3000):
        if life.run.is_over:
            break
        _react(life, chance, trouble)
        _next_record(life, chance, trouble)
    assert life.run.is_over, f"the run never ends: {life.run.run!r}"
    for message in chance.sample(life.inbox, min(3, len(life.inbox))):  # the echo
        life.take(message[0], chance.randint(0, 1000))
    return life


def _react(life: Life, chance: random.Random, trouble: float) -> None:
    """Put what workers answer to new outputs on its way."""
    new = life.run.outputs[life.seen :]
    life.seen = len(life.run.outputs)
    for record in new:
        match record.channel:
            case Channel.COMMANDS:
                life.world += _answers(decoded(m.COMMANDS, record), chance, trouble)
            case Channel.CONTROL if chance.random() >= trouble:
                told = decoded(m.CONTROL, record)
                life.world.append(cancelled(told.step, told.attempt, duration_ms=chance.choice((0, 500))))
            case Channel.INBOX:
                life.world.append(decoded(m.INBOX, record))  # type: ignore[arg-type]


def _answers(command: m.RunStep, chance: random.Random, trouble: float) -> list[m.RunMessage]:
    step, attempt = command.step, command.attempt
    answers: list[m.RunMessage] = []
    if chance.random() < trouble / 4:  # wrongly, sometimes: then an answer follows
        answers.append(refused(step, attempt, sending=command.sending or 0, too_large=chance.random() < 0.1))
        if chance.random() < 0.7:
            return answers * chance.choice((1, 2))
    if chance.random() < 0.4:
        answers.append(started(step, attempt, lease_s=chance.choice((0, 1, 10))))
        answers += [renewed(step, attempt, progress=chance.choice((None, 1, {"d": 2})))] * chance.randint(0, 2)
    if chance.random() < trouble:  # lost: its lease lapses, or the run's time does
        return answers if chance.random() < 0.7 else [*answers, gave_back(step, attempt)]
    if chance.random() < 0.7:
        answers.append(succeeded(step, chance.choice(_OUTPUTS), attempt=attempt, duration_ms=chance.randint(0, 5000)))
    else:
        answers.append(
            failed(
                step, chance.choice(("Boom", "AttemptTimeout")), attempt=attempt, terminal=chance.random() < 0.2,
                timed_out=chance.random() < 0.3, details=chance.choice((None, {"x": 1})),
                retry_after_s=chance.choice((None, 0, 3)),
            )
        )  # fmt: skip
    if chance.random() < trouble:
        answers.append(answers[-1])
    return answers


def _next_record(life: Life, chance: random.Random, trouble: float) -> None:
    draw = chance.random()
    if draw < 0.02 * (trouble > 0):
        life.take(cancel_run())
    elif draw < trouble * 0.5:
        life.take(_nonsense(life, chance), chance.choice((0, 1, 50)))
    elif life.world and (draw < 0.9 or not life.run.armed):
        at = 0 if chance.random() < 0.7 else chance.randrange(len(life.world))
        life.take(life.world.pop(at), chance.choice((0, 0, 1, 400, -5)))
    elif life.run.armed:
        _fire(life, chance)


def _fire(life: Life, chance: random.Random) -> None:
    name, due = min(life.run.armed.items(), key=lambda timer: (timer[1], timer[0]))
    late = chance.choice((0, 0, 7, 3000))
    if chance.random() < 0.1:  # the host's clock runs ahead: early by broker time
        life.take(fired(name))
        return
    del life.run.armed[name]
    life.take(fired(name), max(0, due - life.run.at) + late)


def _nonsense(life: Life, chance: random.Random) -> m.RunMessage:
    """A repeat, an old attempt, a message of nobody's step."""
    if chance.random() < 0.6:
        return chance.choice(life.inbox)[0]
    step, attempt = f"s{chance.randint(0, 12)}", chance.randint(0, 3)
    return chance.choice(
        (
            started(step, attempt), succeeded(step, "late", attempt=attempt), failed(step, attempt=attempt),
            renewed(step, attempt, lease_s=chance.choice((0, 10))), fired(f"lease/{step}/{attempt}"),
            fired(f"retry/{step}/{attempt}"), fired("grace"), fired("run-timeout"), continued(attempt),
        )
    )  # fmt: skip


def outputs_of(decisions: list[Decision]) -> list[Append]:
    """Return everything that the decisions appended, in order."""
    return [effect for decision in decisions for effect in decision.effects if isinstance(effect, Append)]


def decide_again(inbox: list[tuple[m.RunMessage, int]]) -> list[Decision]:
    """Return what the same records mean to a partition that knows nothing."""
    partition, decisions = Partition(), []
    for message, at in inbox:
        decision = partition.decide(message, at)
        partition.commit(decision, at)
        decisions.append(decision)
    return decisions
