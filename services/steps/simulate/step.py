"""For trying out pipelines and for load tests."""

import asyncio
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.duration import Duration
from anabranch.services.steps.step_type import step_type
from anabranch.shared.contracts.errors import RetryableError, TerminalError


class Simulation(BaseModel):
    """What to act out."""

    model_config = ConfigDict(extra="forbid")

    sleep: Duration = Field(0.0, description="How long to sleep first: 500ms, 2s, or seconds.")
    fail_attempts: int | None = Field(
        None, ge=0, description="So many attempts fail; without it all do if `error` or `terminal` is given, else none."
    )
    error: str | None = Field(None, description="The type of the failure; SimulatedError without it.")
    terminal: bool = Field(False, description="Whether the failure is one that is not to be retried.")
    value: Any = Field(None, description="What to output.")


class Simulated(BaseModel):
    """What came of it."""

    value: Any = None


@step_type("simulate", description="Sleep, fail the first attempts, return a value.", concurrency=256)
async def simulate(given: Simulation, context: StepContext) -> Simulated:
    """Act out a step."""
    if given.sleep:
        await asyncio.sleep(given.sleep)
    if _fails(given, context.attempt):
        failure = TerminalError if given.terminal else RetryableError
        raise failure(f"simulated failure of attempt {context.attempt}", error_type=given.error or "SimulatedError")
    return Simulated(value=given.value)


def _fails(given: Simulation, attempt: int) -> bool:
    if given.fail_attempts is None:
        return given.error is not None or given.terminal
    return attempt <= given.fail_attempts
