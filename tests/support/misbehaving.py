"""`python -m tests.support.misbehaving`: a step service whose handler does what no handler should."""

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel

from anabranch.steps import StepContext, serve, step_type


class Act(BaseModel):
    """What to do, after how many seconds."""

    act: str = "well"
    sleep_s: float = 0


class Done(BaseModel):
    """That it was done."""

    act: str


async def _exit_in_a_task() -> None:
    sys.exit(3)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _cancel_all() -> None:
    for task in asyncio.all_tasks():
        task.cancel()


def _cancel(name: str) -> None:
    (task,) = (task for task in asyncio.all_tasks() if task.get_name() == name)
    task.cancel()


def _task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None
    return task


STRAY: set[Any] = set()
ACTS: dict[str, Callable[[], Any]] = {
    "well": lambda: None,
    "block": lambda: time.sleep(1.2),
    "sys.exit": lambda: sys.exit(3),
    "interrupt": _interrupt,
    "next": lambda: next(iter([])),
    "cancel-itself": lambda: _task().cancel(),
    "close": lambda: asyncio.get_running_loop().close(),
    "_exit": lambda: os._exit(9),
    "segfault": lambda: ctypes.string_at(0),
    "stop": lambda: asyncio.get_running_loop().stop(),
    "exit-in-a-task": lambda: STRAY.add(asyncio.create_task(_exit_in_a_task())),
    "cancel-all": _cancel_all,
    "cancel-announcing": lambda: _cancel("keep announced"),
    "cancel-polling": lambda: _cancel("group reader: poll"),
}


@asynccontextmanager
async def _lifespan() -> AsyncIterator[None]:
    match os.environ.get("MISBEHAVING_LIFESPAN"):
        case "sys.exit":
            sys.exit(3)
        case "cancel":
            _task().cancel()
            await asyncio.sleep(0)
    yield
    if "MISBEHAVING_LIFESPAN" in os.environ:
        sys.exit(3)


@step_type("misbehaving", lifespan=_lifespan)
async def misbehaving(act: Act, context: StepContext) -> Done:
    """Misbehave."""
    await asyncio.sleep(act.sleep_s)
    ACTS[act.act]()
    await asyncio.sleep(0.05)
    return Done(act=act.act)


if __name__ == "__main__":
    serve(misbehaving)
