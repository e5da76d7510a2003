"""The `misdeeds` step type: a handler that does whatever a handler should not do.

`python -m tests.hostile.misdeeds` serves it. It harms its own attempt; that its worker and the others live is the bar.
What takes a process down for certain (`os._exit`, an endless loop, all memory) is not among it.
"""

import argparse
import asyncio
import os
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, field_validator

from anabranch.steps import RetryableError, StepContext, TerminalError, serve, step_type

NICE: Final = 10  # of attackers and of the handlers they wrote: they would have machines of their own


class Given(BaseModel):
    """Which misdeed."""

    model_config = ConfigDict(extra="allow")

    kind: str = "none"
    text: Any = ""

    @field_validator("text", mode="before")
    @classmethod
    def _careless(cls, value: Any) -> Any:
        return value.strip() if value is None else value  # as people write them


class Done(BaseModel):
    """Whatever came of it."""

    value: Any = None


class _Base(BaseException):
    """Not an `Exception`."""


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


def _deep(levels: int) -> Any:
    made: Any = 1
    for _ in range(levels):
        made = [made]
    return made


@step_type("misdeeds", description="Does what a handler should not do.", concurrency=16)
async def misdeeds(given: Given, context: StepContext) -> Done:
    """Misbehave."""
    return await _DEEDS[given.kind](given, context)


async def _raises(error: BaseException) -> Done:
    raise error


async def _gives(value: Any) -> Done:
    return Done.model_construct(value=value)


async def _exits(given: Given, context: StepContext) -> Done:
    sys.exit(3)


async def _parses(given: Given, context: StepContext) -> Done:
    argparse.ArgumentParser().parse_args(["--no-such-option"])
    return Done()


async def _takes_the_next_of_none(given: Given, context: StepContext) -> Done:
    return next(iter([]))


async def _cancels_itself(given: Given, context: StepContext) -> Done:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)
    return Done()


async def _reports_deep(given: Given, context: StepContext) -> Done:
    context.heartbeat(_deep(260))
    await asyncio.sleep(3)
    return Done()


async def _recurses(given: Given, context: StepContext) -> Done:
    return await _recurses(given, context)


async def _leaves_tasks(given: Given, context: StepContext) -> Done:
    _LEFT_OVER.append(asyncio.create_task(asyncio.sleep(30), name="left over"))
    return Done()


def _cycle() -> Any:
    made: list[Any] = []
    made.append(made)
    return made


_LEFT_OVER: deque[Any] = deque(maxlen=100)
_ODD = os.fsdecode(b"caf\xe9.csv")
_DEEDS: dict[str, Callable[[Given, StepContext], Awaitable[Done]]] = {
    "none": lambda given, _: _gives(given.text),
    "base-exception": lambda *_: _raises(_Base("not an Exception")),
    "exit": _exits,
    "argparse": _parses,
    "interrupt": lambda *_: _raises(KeyboardInterrupt()),
    "generator-exit": lambda *_: _raises(GeneratorExit()),
    "stop-iteration": _takes_the_next_of_none,
    "cancels-itself": _cancels_itself,
    "unprintable": lambda *_: _raises(_Unprintable()),
    "undecodable": lambda *_: _gives(_ODD),
    "surrogate-error": lambda *_: _raises(ValueError(_ODD)),
    "bytes": lambda *_: _gives(b"\x00\xff"),
    "deep-output": lambda *_: _gives(_deep(260)),
    "deep-details": lambda *_: _raises(TerminalError("deep", details=_deep(260))),
    "deep-progress": _reports_deep,
    "cyclic-output": lambda *_: _gives(_cycle()),
    "huge-output": lambda *_: _gives("x" * 20_000_000),
    "huge-error": lambda *_: _raises(ValueError("x" * 20_000_000)),
    "retry-odd": lambda *_: _raises(RetryableError("later", after="1s")),  # type: ignore[arg-type]
    "terminal-odd": lambda *_: _raises(TerminalError("no", error_type=404)),  # type: ignore[arg-type]
    "group": lambda *_: _raises(BaseExceptionGroup("many", [_Base(), _Unprintable()])),
    "recursion": _recurses,
    "leaves-tasks": _leaves_tasks,
}
KINDS = tuple(_DEEDS)


if __name__ == "__main__":
    os.nice(NICE)
    serve(misdeeds)
