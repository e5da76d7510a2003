"""Small random pipelines, and what clients ask of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from pydantic import BaseModel

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.step_type import StepType, step_type
from anabranch.shared.contracts.errors import RetryableError, TerminalError
from anabranch.shared.contracts.ids import run_id_for_key
from anabranch.shared.contracts.limits import MAX_NESTING, MAX_STEP_OUTPUT_BYTES
from anabranch.shared.contracts.messages import RunSettings, SubmitRun

from .witness import Witness

USES = "work"
KEEP_S = 900  # how long a key is promised; longer than a simulation
RUN_TIMEOUT_S = 100_000.0  # a run that reaches it hangs
_WIDE = 30  # steps of a run that one record makes ready, each with an expression
_PIPELINES = 150  # compiling one costs more than running it

SETTINGS = RunSettings(
    run_timeout_s=RUN_TIMEOUT_S, step_timeout_s=300.0, suspect_s=2.0, cancel_grace_s=15.0, max_losses=5, window=4
)


class Order(BaseModel):
    """What a step is to do: take its time, fail at first or for good, take its worker down."""

    sleep_s: float = 0.0
    fail_first: int = 0
    is_terminal: bool = False
    kills_first: int = 0  # so often it takes its worker down with it
    given: Any = None
    odd: str = ""  # what it gives is not what a run can hold: one of `ODD`


class Done(BaseModel):
    """What a step returns. No two handlers return the same number, so that a mixed up result shows."""

    number: int
    given: Any = None


def _nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


ODD: Mapping[str, Any] = {
    "deep": _nested(70),
    "deeper": _nested(253),
    "at the limit": _nested(MAX_NESTING - 1),
    "large": "x" * (MAX_STEP_OUTPUT_BYTES + 1),
    "surrogate": "\udcff",
}


async def _work(order: Order, context: StepContext) -> Done:
    witness: Witness = context.resource
    number = await witness.handler(context, order.sleep_s, order.kills_first)
    if order.is_terminal:
        raise TerminalError(f"{context.step} never works")
    if context.attempt <= order.fail_first:
        raise RetryableError(f"{context.step} does not work yet")
    if order.odd:
        witness.gave(order.odd)
    return Done(number=number, given=ODD[order.odd] if order.odd else order.given)


def work() -> StepType[Order, Done]:
    """Return the step type that the workers serve."""
    return step_type(USES, concurrency=3)(_work)


@dataclass(frozen=True, slots=True)
class Submission:
    """What a client sends, when, and when it does so again."""

    at_s: float
    message: SubmitRun
    again_at_s: tuple[float, ...] = ()
    cancel_at_s: float | None = None


def submissions(random: Random, count: int, within_s: float) -> list[Submission]:
    """Return what the clients of one simulation ask for."""
    return [_submission(random, number, within_s) for number in range(count)]


def _submission(random: Random, number: int, within_s: float) -> Submission:
    at_s = random.random() * within_s
    keyed = random.random() < 0.75
    run_id = run_id_for_key("tenant", f"{number}-{random.random()}")
    message = SubmitRun(
        run_id=run_id, tenant="tenant", definition=_definition(random.randrange(_PIPELINES)),
        body_hash=f"body {number}", keep_s=KEEP_S if keyed else 0, settings=SETTINGS,
    )  # fmt: skip
    again = (at_s + random.choice((0.02, 1.0, 10.0, 60.0)) * random.random(), within_s + 60.0 * random.random())
    cancel = at_s + random.choice((0.0, 1.0, 15.0)) * random.random() if random.random() < 0.2 else None
    return Submission(at_s, message, again if keyed else (), cancel)


@lru_cache(maxsize=_PIPELINES)
def _definition(number: int) -> str:
    random = Random(number)
    names = [f"s{i}" for i in range(random.randint(2, 7))]
    steps = {name: _step(random, name, names[:i]) for i, name in enumerate(names)}
    if random.random() < 0.06:
        steps |= {f"w{i}": _evaluated(names[0]) for i in range(_WIDE)}
    pipeline: dict[str, Any] = {"name": f"p{number}", "steps": steps, "fail_fast": random.random() < 0.6}
    if random.random() < 0.1:
        pipeline["timeout"] = round(random.uniform(1, 20), 2)
    return json.dumps(pipeline)


def _evaluated(need: str) -> dict[str, Any]:
    value = f"${{{{ run.id + steps.{need}.status }}}}"  # what a plain path does not need: the engine
    return {"uses": "transform", "needs": [need], "if": "always()", "with": {"value": value}}


def _step(random: Random, name: str, before: list[str]) -> dict[str, Any]:
    needs = sorted(random.sample(before, min(len(before), random.choice((0, 1, 1, 2)))))
    if random.random() < 0.15:
        value: Any = {"from": name}
        if needs and random.random() < 0.3:
            value = f"${{{{ [[[[[[steps.{needs[0]}.output]]]]]] }}}}"  # of one at the limit: too deep
        return {"uses": "transform", "needs": needs, "with": {"value": value}}
    order: dict[str, Any] = {"sleep_s": _sleep_s(random), **_trouble(random)}
    step: dict[str, Any] = {"uses": USES, "needs": needs, "with": order, "continue_on_error": random.random() < 0.3}
    if "fail_first" in order:
        jitter = random.choice(("full", "none"))
        step["retry"] = {"max_attempts": random.choice((2, 3)), "initial": random.choice((0.05, 2)), "jitter": jitter}
    if random.random() < 0.12:
        step["timeout"] = random.choice((0.3, 2, 12))
    if needs and random.random() < 0.25:
        step["if"] = random.choice(("always()", "failed()", "succeeded()", f"steps.{needs[0]}.status == 'succeeded'"))
    elif needs and random.random() < 0.3:
        order["given"] = f"${{{{ steps.{needs[0]}.status }}}}"
    return step


def _trouble(random: Random) -> dict[str, Any]:
    kind = random.random()
    if kind < 0.25:
        return {"fail_first": random.choice((1, 1, 2, 9))}
    if kind < 0.3:
        return {"is_terminal": True}
    if kind < 0.33:
        return {"kills_first": random.choice((1, 1, 2, 99))}
    if kind < 0.38:
        return {"odd": random.choice(sorted(ODD))}
    return {}


def _sleep_s(random: Random) -> float:
    kind = random.random()
    if kind < 0.6:
        return round(random.uniform(0.0, 0.2), 3)
    if kind < 0.9:
        return round(random.uniform(0.3, 5.0), 2)
    return round(random.uniform(8.0, 30.0), 1)
