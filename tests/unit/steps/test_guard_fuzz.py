"""Handlers that misbehave in ways drawn from a grammar, several together in one loop."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.step_type import StepType, step_type
from anabranch.shared.contracts.errors import RetryableError, TerminalError
from tests.support.oddities import ERRORS, ODDITIES, OddAnswer

from .fakes import Order, World, a_command, a_world, running
from .virtual import run

Misdeed = tuple[str, str]
_ENDS = ("return", "raise", "terminal", "retryable", "raise from", "cancel itself", "return self")
_ON_THE_WAY = ("sleep", "heartbeat", "spoil context", "swallow", "spoil input", "long sleep")

misdeeds = st.tuples(
    st.lists(st.tuples(st.sampled_from(_ON_THE_WAY), st.sampled_from(sorted(ODDITIES))), max_size=3),
    st.tuples(st.sampled_from(_ENDS), st.sampled_from(sorted(ODDITIES))),
)


def made(odd: str) -> Any:
    """Make an oddity, or the exception that making it raises."""
    try:
        return ODDITIES[odd]()
    except Exception as error:  # noqa: BLE001  what is refused where it is made
        return error


async def on_the_way(what: str, odd: str, order: Order, context: StepContext) -> None:
    """Do something that does not end the handler, unless it does."""
    match what:
        case "sleep" | "long sleep":
            await asyncio.sleep(0.01 if what == "sleep" else 3)
        case "heartbeat":
            context.heartbeat(made(odd))
        case "spoil context":
            for name in ("deadline", "resource", "run_id", "step", "attempt", "tenant"):
                setattr(context, name, made(odd))
        case "spoil input":
            order.__dict__["text"] = made(odd)
        case "swallow":
            with suppress(BaseException):
                await asyncio.sleep(0.01)


async def end(how: str, odd: str, order: Order) -> Any:
    """End the handler."""
    match how:
        case "raise":
            raise made(odd) if odd in ERRORS else OSError(made(odd))
        case "terminal":
            raise TerminalError("over", details=made(odd))
        case "retryable":
            raise RetryableError("again", after=made(odd))
        case "raise from":
            raise OSError(odd) from made(odd if odd in ERRORS else "OSError")
        case "cancel itself":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        case "return self":
            return order
    return OddAnswer(value=made(odd))


def misbehaving(plans: dict[str, tuple[list[Misdeed], Misdeed]]) -> StepType[Order, OddAnswer]:
    """A step type whose handler follows the plan of its step."""

    @step_type("echo")
    async def echo(order: Order, context: StepContext) -> OddAnswer:
        plan, (how, odd) = plans.get(context.step, ([], ("return", "null")))
        for what, one in plan:
            await on_the_way(what, one, order, context)
        return await end(how, odd, order)  # type: ignore[no-any-return]

    return echo


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(misdeeds, min_size=1, max_size=6), st.sampled_from([1.5, 2.5, 300]))
def test_whatever_handlers_do_each_attempt_is_answered_once_and_the_worker_goes_on(
    plans: list[tuple[list[Misdeed], Misdeed]], timeout_s: float
) -> None:
    """An innocent neighbour that came with them succeeds, and so does one that comes later."""
    by_step = {f"p{number}": plan for number, plan in enumerate(plans)}

    async def main() -> World:
        async with running(a_world(serves=misbehaving(by_step), lease_s=2.0)) as world:
            for step in (*by_step, "beside"):
                world.send(a_command(step, timeout_s=timeout_s))
            await asyncio.sleep(15)
            world.send(a_command("later"))
            await asyncio.sleep(1)
            assert world.running is not None
            assert not world.running.done()
        return world

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.unraisablehook", lambda _: None)  # pytest's own looks at rude objects
        world = run(main())
    answers = [m for m in world.results.messages() if m.type.startswith("Attempt") and m.type != "AttemptStarted"]
    assert sorted(answer.step for answer in answers) == sorted([*by_step, "beside", "later"])
    for answer in answers:
        assert answer.step in by_step or answer.type == "AttemptSucceeded"
