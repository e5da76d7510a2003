"""Short handlers that come together share a task; nothing of one attempt reaches another through it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

import pytest

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.step_type import StepType, step_type
from anabranch.services.steps.worker import CancelledByStranger

from .fakes import RUN, Echo, FakeResults, Order, World, a_command, a_world, an_old_command, running
from .virtual import run

Act = Callable[[Order, StepContext], Awaitable[None]]
STEPS = ("a", "b", "c", "d")


def acting(act: Act) -> StepType[Order, Echo]:
    """A step type whose handler does this and says what it was told."""

    @step_type("echo")
    async def echo(order: Order, context: StepContext) -> Echo:
        await act(order, context)
        return Echo(text=order.text)

    return echo


async def served(act: Act, *, sleeps: tuple[str, ...] = ()) -> World:
    """A world in which one command for each of `STEPS` came, all at once, and was answered."""
    async with running(a_world(serves=acting(act))) as world:
        for step in STEPS:
            world.send(a_command(step, text=step, sleep_s=0.1 if step in sleeps else 0))
        await asyncio.sleep(0.5)
    return world


def test_handlers_that_return_at_once_share_a_task_which_has_the_name_of_the_attempt_it_runs() -> None:
    tasks: list[tuple[asyncio.Task[None] | None, str]] = []

    async def act(order: Order, context: StepContext) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append((task, task.get_name()))

    world = run(served(act))
    assert len({task for task, _ in tasks}) == 1
    assert [name.split("/", 1)[1] for _, name in tasks] == [f"{step}/1" for step in STEPS]
    assert [output["text"] for _, output in world.results.results()] == list(STEPS)


def test_a_handler_that_waits_holds_up_none_that_came_with_it() -> None:
    began: dict[str, float] = {}

    async def act(order: Order, context: StepContext) -> None:
        began[context.step] = asyncio.get_running_loop().time()
        await asyncio.sleep(order.sleep_s)

    world = run(served(act, sleeps=STEPS))
    assert len(set(began.values())) == 1  # on the virtual clock, which moves only when all wait
    assert len(world.results.results()) == len(STEPS)


def test_context_variables_that_a_handler_sets_are_unset_for_the_next() -> None:
    variable: ContextVar[list[str]] = ContextVar("variable")
    seen: list[list[str] | None] = []

    async def act(order: Order, context: StepContext) -> None:
        seen.append(variable.get(None))
        variable.set([])

    run(served(act))
    assert seen == [None] * len(STEPS)


def test_a_context_variable_of_the_process_is_the_same_for_all() -> None:
    """Also when a handler set another that is equal: it may be changed later."""
    variable: ContextVar[list[str]] = ContextVar("variable")
    mine: list[str] = []
    seen: list[list[str]] = []

    async def act(order: Order, context: StepContext) -> None:
        seen.append(variable.get())
        variable.set([])

    async def main() -> None:
        variable.set(mine)
        await served(act)

    run(main())
    assert [value is mine for value in seen] == [True] * len(STEPS)


def test_a_handler_that_cancels_its_own_task_and_returns_cancels_no_other() -> None:
    async def act(order: Order, context: StepContext) -> None:
        task = asyncio.current_task()
        assert task is not None
        if context.step == "b":
            task.cancel()
        else:
            await asyncio.sleep(0)

    world = run(served(act))
    assert [kind for kind, _ in world.results.results()] == ["AttemptSucceeded"] * len(STEPS)


class _Broken(FakeResults):
    def append(self, *record: object) -> None:
        raise RuntimeError("the outbox has failed")


def test_when_the_worker_goes_down_nothing_more_begins_of_what_came_together() -> None:
    began: list[str] = []

    async def act(order: Order, context: StepContext) -> None:
        began.append(context.step)

    async def main() -> BaseException | None:
        world = a_world(serves=acting(act))
        world.worker._sending._results = _Broken()
        task = asyncio.create_task(world.worker.run(world.stopping))
        await asyncio.sleep(0.6)
        for step in STEPS:
            world.send(a_command(step))
        await asyncio.wait([task])
        return task.exception()

    error = run(main())
    assert isinstance(error, BaseExceptionGroup)
    assert error.subgroup(RuntimeError) is not None
    assert began == ["a"]


def test_a_handler_that_cancels_its_own_task_fails_its_attempt_and_no_other() -> None:
    """Nobody asked for that cancellation, so it is the handler's own doing: its step is not queued for ever."""

    async def act(order: Order, context: StepContext) -> None:
        if context.step == "b":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        await asyncio.sleep(0.01)

    world = run(served(act))
    assert sorted(str(result) for _, result in world.results.results()) == [
        "CancelledError", "{'text': 'a'}", "{'text': 'c'}", "{'text': 'd'}",
    ]  # fmt: skip


def test_a_handler_that_cancels_its_neighbours_fails_their_attempts() -> None:
    """They may be retried; none is left without an answer."""

    async def act(order: Order, context: StepContext) -> None:
        if context.step == "d":
            for task in asyncio.all_tasks():
                if task.get_name().startswith(RUN):
                    task.cancel()
        await asyncio.sleep(0.1)

    world = run(served(act))
    assert [result for _, result in world.results.results()] == ["CancelledError"] * len(STEPS)
    assert {m.error.message.partition(",")[0] for m in world.results.messages() if m.type == "AttemptFailed"} == {
        "its task was cancelled by a handler"
    }


def _cancel_other_attempts() -> None:
    for task in asyncio.all_tasks():
        coroutine = task.get_coro()
        assert coroutine is not None
        if task is not asyncio.current_task() and coroutine.__qualname__.startswith(
            ("Worker._attempt", "Worker._run_re")
        ):
            task.cancel()


@pytest.mark.parametrize("are_old", [False, True])
def test_attempts_that_a_stranger_cancels_before_they_began_are_run(are_old: bool) -> None:
    """Also those whose task has not run yet, or looks up their past: none is lost, none fails."""
    cancelled: list[str] = []

    async def act(order: Order, context: StepContext) -> None:
        if not cancelled:
            cancelled.append(context.step)
            _cancel_other_attempts()
        await asyncio.sleep(0.01)

    async def main() -> World:
        async with running(a_world(serves=acting(act))) as world:
            make = an_old_command if are_old else a_command
            for number in range(3):
                for step in STEPS:
                    world.send((a_command if step == "a" else make)(f"{step}{number}", text=f"{step}{number}"))
            await asyncio.sleep(2)
        return world

    world = run(main())
    assert sorted(output["text"] for _, output in world.results.results()) == [
        f"{step}{number}" for step in STEPS for number in range(3)
    ]
    assert world.worker._busy == 0


@pytest.mark.parametrize("turn", range(12))
def test_whenever_a_stranger_cancels_no_attempt_is_lost(turn: int) -> None:
    """At each turn of the loop while commands are taken up, looked up, and begun."""
    began: list[str] = []

    async def act(order: Order, context: StepContext) -> None:
        began.append(context.step)
        await asyncio.sleep(0)

    async def main() -> World:
        async with running(a_world(serves=acting(act))) as world:
            for step in STEPS:
                world.send(a_command(step, text=step))
                world.send(an_old_command(f"old {step}", text=step))
            for _ in range(turn):
                await asyncio.sleep(0)
            before = set(began)
            _cancel_other_attempts()
            await asyncio.sleep(2)
            failed = {m.step for m in world.results.messages() if m.type == "AttemptFailed"}
            assert failed <= before  # who had begun may be retried
        return world

    world = run(main())
    assert len(world.results.results()) == 2 * len(STEPS)
    assert world.worker._busy == 0


def test_a_handler_that_cancels_the_workers_own_tasks_ends_the_worker() -> None:
    """Nothing can be relied on then: better a new process than one that takes nothing."""

    async def act(order: Order, context: StepContext) -> None:
        for task in asyncio.all_tasks():
            if task.get_name() == "worker: take commands":
                task.cancel()

    with pytest.raises(BaseExceptionGroup) as caught:
        run(served(act))
    assert caught.value.subgroup(CancelledByStranger) is not None


def test_a_coroutine_that_is_thrown_away_answers_nothing() -> None:
    """Its loop is gone, for instance, and the garbage collector closes it: that is no failure of the attempt."""
    world = a_world()

    async def main() -> None:
        async with running(world):
            world.send(a_command("a", sleep_s=60))
            await asyncio.sleep(0.1)
            (task,) = (task for task in asyncio.all_tasks() if task.get_name().startswith(RUN))
            coroutine = task.get_coro()
            assert coroutine is not None
            coroutine.close()

    with pytest.raises(ExceptionGroup, match="TaskGroup"):  # a task whose coroutine was closed by another
        run(main())
    assert world.results.results() == []
