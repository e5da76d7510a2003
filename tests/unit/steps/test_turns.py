"""What is large has turns of the loop for itself: many large commands and answers do not hold it one after another."""

import asyncio
from collections.abc import Callable

import pytest
from pydantic import BaseModel

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.step_type import StepType, step_type
from anabranch.services.steps.turns import Turns
from anabranch.shared.contracts.messages import RunStep

from .fakes import World, a_command, a_world, an_old_command, running

_COMMANDS = 40
_TEXT = "x" * 100_000
_PER_TURN = 2  # one that is the last of its turn, and one that begins the next


class Given(BaseModel):
    """What to say, and whether to wait for the others before."""

    text: str = ""
    makes: int = 0
    waits: bool = False


class Said(BaseModel):
    """What was said."""

    text: str


def saying(together: asyncio.Event) -> StepType[Given, Said]:
    """A step type that says what it is given, or makes it, at once or when all are told."""

    @step_type("echo", concurrency=_COMMANDS)
    async def echo(given: Given, context: StepContext) -> Said:
        if given.waits:
            await together.wait()
        return Said(text=given.text or "x" * given.makes)

    return echo


async def answered_per_turn(world: World, together: asyncio.Event) -> list[int]:
    """Return how many answers were given in each turn of the loop, until there are all."""
    counts, before = [], 0
    for _ in range(100_000):
        await asyncio.sleep(0)
        now = len([record for record in world.results.appended if b"AttemptSucceeded" in record.value[:200]])
        counts.append(now - before)
        before = now
        if now == _COMMANDS:
            return counts
        if len(world.worker.in_hand()) == _COMMANDS:
            together.set()
    raise AssertionError(f"{before} of {_COMMANDS} were answered")


@pytest.mark.parametrize(
    "made",
    [
        lambda step: a_command(step, text=_TEXT),
        lambda step: an_old_command(step, text=_TEXT),
        lambda step: a_command(step, text=_TEXT, waits=True),
        lambda step: a_command(step, makes=100_000),
        lambda step: a_command(step, makes=100_000, waits=True),
    ],
    ids=["new", "recalled", "ended together", "large answers", "large answers together"],
)
async def test_large_commands_take_turns(made: Callable[[str], RunStep]) -> None:
    """Whatever brought them together, no turn of the loop has more than a few large answers."""
    together = asyncio.Event()
    serves = saying(together)
    async with running(a_world(serves=serves, concurrency=_COMMANDS)) as world:
        for number in range(_COMMANDS):
            world.send(made(f"s{number}"))
        counts = await answered_per_turn(world, together)
    assert max(counts) <= _PER_TURN


async def test_small_ones_share_a_turn_and_large_ones_end_it() -> None:
    """Small records are not counted; a turn that is spent is over in the next one."""
    turns = Turns()
    for _ in range(1000):
        turns.spend(4096)
    assert not turns.is_spent
    turns.spend(100_000)
    assert turns.is_spent
    await turns.next()
    assert not turns.is_spent
