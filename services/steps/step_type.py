"""A step type: a name, and a handler from a typed input to a typed output."""

import inspect
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_type_hints

from pydantic import BaseModel, TypeAdapter

from anabranch.services.steps.context import StepContext
from anabranch.shared.contracts.messages import StepTypeAnnounced

In = TypeVar("In", bound=BaseModel)
Out = TypeVar("Out", bound=BaseModel)

RunsIn = Literal["loop", "thread", "process"]
Lifespan = Callable[[], AbstractAsyncContextManager[Any]]


@dataclass(frozen=True, slots=True)
class StepType(Generic[In, Out]):
    """What a step service serves. `concurrency` is how many handlers of it run at once in one process."""

    name: str
    version: str
    description: str
    input_model: type[In]
    output_model: type[Out]
    handler: Callable[[In, StepContext], Any]
    runs_in: RunsIn
    concurrency: int
    lifespan: Lifespan | None

    def input_of(self) -> Callable[[object], In]:
        """Return what validates an input: `model_validate` without its options, which cost as much as a small model."""
        return TypeAdapter(self.input_model).validator.validate_python

    def output_of(self) -> Callable[[object], Out]:
        """Return what validates an output."""
        return TypeAdapter(self.output_model).validator.validate_python

    def announcement(self) -> StepTypeAnnounced:
        """Return what the gateway checks pipelines against."""
        return StepTypeAnnounced(
            name=self.name,
            version=self.version,
            description=self.description,
            input_schema=self.input_model.model_json_schema(mode="validation"),
            output_schema=self.output_model.model_json_schema(mode="serialization"),
        )


class StepTypeInvalid(TypeError):
    """A handler that cannot be a step type: the message says what to change."""


# Async handlers mostly wait; a thread or a process each costs memory and a core.
_CONCURRENCY: dict[RunsIn, int] = {"loop": 64, "thread": 8, "process": 2}


def step_type(
    name: str,
    *,
    version: str = "1",
    description: str = "",
    runs_in: RunsIn = "loop",
    concurrency: int | None = None,
    lifespan: Lifespan | None = None,
) -> Callable[[Callable[[In, StepContext], Awaitable[Out] | Out]], StepType[In, Out]]:
    """Make a handler `(input: In, context: StepContext) -> Out` the step type `name`.

    `runs_in` is where it runs: `loop` for `async def`, `thread` or `process` for a blocking `def`. `lifespan` opens
    what all attempts share (a session, a pool) and closes it at the stop; handlers find it in `context.resource`.
    """

    def register(handler: Callable[[In, StepContext], Awaitable[Out] | Out]) -> StepType[In, Out]:
        input_model, output_model = _models_of(name, handler)
        if inspect.iscoroutinefunction(handler) is not (runs_in == "loop"):
            raise StepTypeInvalid(
                f"step type {name}: an `async def` handler runs in the loop, a `def` in a thread or process"
            )
        return StepType(
            name=name,
            version=version,
            description=description or inspect.getdoc(handler) or "",
            input_model=input_model,
            output_model=output_model,
            handler=handler,
            runs_in=runs_in,
            concurrency=concurrency or _CONCURRENCY[runs_in],
            lifespan=lifespan,
        )

    return register


def _models_of(name: str, handler: Callable[..., Any]) -> tuple[type[Any], type[Any]]:
    hints = get_type_hints(handler)
    parameters = list(inspect.signature(handler).parameters)
    models = (hints.get(parameters[0]) if parameters else None, hints.get("return"))
    for side, model in zip(("input", "output"), models, strict=True):
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise StepTypeInvalid(
                f"step type {name}: annotate the handler's {side} with a pydantic model, not {model!r}"
            )
    return models[0], models[1]  # type: ignore[return-value]  # the loop has just checked both
