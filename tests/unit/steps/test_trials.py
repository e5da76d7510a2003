"""What was in hand when a worker ended is tried alone, and only what was alone is to blame."""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from random import Random

import pytest

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.ports import Take
from anabranch.services.steps.step_type import StepType, step_type
from anabranch.shared.contracts.messages import AttemptFailed, AttemptStarted, RunStep

from .fakes import Echo, FakeMemory, Order, World, a_command, a_world, an_old_command, now_ms, running
from .virtual import run


def deadly_type(begun: Counter[str], deaths: Callable[[], None]) -> StepType[Order, Echo]:
    """A step type that takes its worker down where it is told `bomb`."""

    @step_type("echo")
    async def echo(order: Order, context: StepContext) -> Echo:
        begun[context.step] += 1
        await asyncio.sleep(order.sleep_s)
        if order.text == "bomb":
            deaths()
            await asyncio.sleep(3600)
        return Echo(text=order.text)

    return echo


async def served_until_all_are_answered(commands: dict[str, RunStep]) -> "Served":
    """Serve commands by one worker after another, each taking up what those before did not answer."""
    served = Served()
    while set(commands) - set(served.answers):
        served.workers += 1
        assert served.workers < 60, "it never ends"
        died = asyncio.Event()
        world = a_world(serves=deadly_type(served.begun, died.set), memory=served.memory)
        async with running(world):
            for step, command in commands.items():
                if step not in served.answers and step not in served.leased:
                    world.send(command)
            with suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await died.wait()
            await world.crash()
        served.learn(world)
        for step, command in commands.items():
            if step in served.leased:  # the orchestrator dispatches another attempt
                update = {"attempt": command.attempt + 1, "at_ms": now_ms() + 600_000}
            else:  # it was there before the next worker
                update = {"at_ms": min(command.at_ms, now_ms() - 60_000)}
            commands[step] = command.model_copy(update=update)
        served.lost.update(served.leased)
        served.leased.clear()
    return served


class Served:
    """What became of each step, how often each was begun, and how many workers that took."""

    def __init__(self) -> None:
        self.memory = FakeMemory()
        self.begun: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.answers: dict[str, str] = {}
        self.leased: set[str] = set()
        self.workers = 0

    def learn(self, world: World) -> None:
        """Note the answers of a worker that ended, and the leases it left."""
        for message in world.results.messages():
            if isinstance(message, AttemptStarted):
                self.leased.add(message.step)
            else:
                self.leased.discard(message.step)
                self.answers[message.step] = message.error.type if isinstance(message, AttemptFailed) else message.type


@pytest.mark.parametrize("place", [0, 2, 5])
def test_beside_a_step_that_takes_its_worker_down_innocent_ones_begin_a_few_times_and_succeed(place: int) -> None:
    """Wherever it stands among them."""

    async def main() -> Served:
        commands = {f"n{number}": an_old_command(f"n{number}", sleep_s=0.3) for number in range(5)}
        steps = list(commands)
        steps.insert(place, "bomb")
        commands["bomb"] = an_old_command("bomb", text="bomb", sleep_s=0.1)
        return await served_until_all_are_answered({step: commands[step] for step in steps})

    served = run(main())
    assert served.answers.pop("bomb") == "WorkerLost"
    assert set(served.answers.values()) == {"AttemptSucceeded"}
    assert served.begun.pop("bomb") == 4  # once beside the others, three times alone
    assert max(served.begun.values()) <= 2


@pytest.mark.parametrize("seed", range(60))
def test_among_random_steps_only_those_that_take_their_worker_down_fail(seed: int) -> None:
    """Short and leased ones, old and fresh, several that take their worker down at once or later."""
    chance = Random(seed)

    async def main() -> Served:
        commands = {}
        for number in range(chance.randint(2, 12)):
            is_bomb = chance.random() < 0.25
            step = f"{'bomb' if is_bomb else 'n'}{number}"
            made = chance.choice((a_command, an_old_command))
            sleep_s = chance.choice((0, 0.1, 0.5) if is_bomb else (0, 0.1, 0.5, 0.9, 3))
            commands[step] = made(step, text="bomb" if is_bomb else "well", sleep_s=sleep_s)
        return await served_until_all_are_answered(commands)

    served = run(main())
    for step, answer in served.answers.items():
        assert answer == ("WorkerLost" if step.startswith("bomb") else "AttemptSucceeded"), step
    bombs = sum(step.startswith("bomb") for step in served.answers)
    assert max((times for step, times in served.lost.items() if step.startswith("n")), default=0) <= max(bombs, 1)


def test_nothing_begins_beside_a_suspect_and_its_trial_ends_with_its_lease() -> None:
    """Also no fresh command; a leased one goes on."""

    async def main() -> World:
        memory = FakeMemory()
        suspect = an_old_command("suspect", sleep_s=3)
        await memory.count_takes([_take(suspect)])
        async with running(a_world(memory=memory)) as world:
            world.send(a_command("long", sleep_s=60))
            await asyncio.sleep(2)  # it is leased
            world.send(suspect)
            await asyncio.sleep(0.2)
            world.send(a_command("fresh"))
            await asyncio.sleep(0.5)
            assert world.witness.started == ["long", "suspect"]
            assert memory.known[_take(suspect).attempt_id].alone == 0  # the long one may do it
            await asyncio.sleep(1)
            assert world.witness.started == ["long", "suspect", "fresh"]
        return world

    run(main())


def test_a_suspect_that_is_cancelled_while_it_waits_lets_the_others_go_on() -> None:
    """Its turn is nobody's then."""

    async def main() -> World:
        memory = FakeMemory()
        first, second = an_old_command("first", sleep_s=0.8), an_old_command("second")
        await memory.count_takes([_take(first), _take(second)])
        async with running(a_world(memory=memory)) as world:
            world.send(first)
            world.send(second)
            await asyncio.sleep(0.3)
            world.control.cancel(second)
            world.send(a_command("fresh"))
            await asyncio.sleep(2)
        return world

    world = run(main())
    assert world.witness.finished == ["first", "fresh"]
    assert sorted(kind for kind, _ in world.results.results()) == [
        "AttemptCancelled", "AttemptSucceeded", "AttemptSucceeded",
    ]  # fmt: skip


def _take(command: RunStep) -> Take:
    return Take(f"{command.run_id}/{command.step}/{command.attempt}", command.at_ms)
