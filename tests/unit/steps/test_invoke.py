"""Where handlers run, and what a step type may be."""

import asyncio
import os
import threading
from typing import Any

import pytest
import structlog

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.guard import Returned
from anabranch.services.steps.invoke import HandlerProcessDied, invoker
from anabranch.services.steps.step_type import StepTypeInvalid, step_type
from tests.support.apart import Given, Where, apart


@step_type("threaded", runs_in="thread")
def threaded(given: Given, context: StepContext) -> Where:
    context.heartbeat({"in": "thread"})
    return Where(thread=threading.current_thread().name, pid=os.getpid(), key=context.idempotency_key)


def a_context() -> StepContext:
    return StepContext(
        run_id="r", step="s", attempt=1, tenant="t", deadline=60, clock=lambda: 0, log=structlog.get_logger()
    )


async def test_a_blocking_handler_runs_in_a_thread_and_may_tell_its_progress() -> None:
    context = a_context()
    async with invoker(threaded, 2) as invoke:
        where = await invoke({}, context)
    assert where == Returned({"thread": "threaded_0", "pid": os.getpid(), "key": "r/s"})
    assert context.progress == {"in": "thread"}


async def test_a_computing_handler_runs_in_a_process_whose_death_fails_the_attempt_only() -> None:
    async with invoker(apart, 1) as invoke:
        with pytest.raises(HandlerProcessDied):
            await invoke({"dies": True}, a_context())
        where = await invoke({}, a_context())
    assert isinstance(where, Returned)
    assert where.value.pop("pid") != os.getpid()
    assert where.value == {"thread": "60", "key": "r/s"}


def test_a_handler_without_models_is_refused_with_what_to_do() -> None:
    with pytest.raises(StepTypeInvalid, match="annotate the handler's input with a pydantic model"):

        @step_type("bad")
        async def bad(given: dict[str, Any], context: StepContext) -> Where:
            raise NotImplementedError


def test_a_blocking_handler_in_the_loop_is_refused() -> None:
    with pytest.raises(StepTypeInvalid, match="`async def`"):

        @step_type("bad")
        def bad(given: Given, context: StepContext) -> Where:
            raise NotImplementedError


@pytest.mark.parametrize("progress", ["x" * 5000, object()])
def test_progress_that_cannot_travel_is_refused_where_it_is_told(progress: object) -> None:
    with pytest.raises(ValueError, match=r"bytes as JSON|serialize"):
        a_context().heartbeat(progress)


async def test_the_loop_is_not_blocked_by_a_thread() -> None:
    release = threading.Event()

    @step_type("waits", runs_in="thread")
    def waits(given: Given, context: StepContext) -> Where:
        release.wait(5)
        return Where(thread="", pid=0, key="")

    async with invoker(waits, 1) as invoke:
        waiting = asyncio.create_task(invoke({}, a_context()))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        release.set()
        assert await waiting == Returned({"thread": "", "pid": 0, "key": ""})
