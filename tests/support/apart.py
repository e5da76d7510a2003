"""A step type whose handler runs in a process: it must be importable by name."""

import os

from pydantic import BaseModel

from anabranch.steps import StepContext, step_type


class Given(BaseModel):
    """What to do."""

    dies: bool = False
    says: str = ""


class Where(BaseModel):
    """Where the handler ran."""

    thread: str
    pid: int
    key: str


@step_type("apart", runs_in="process")
def apart(given: Given, context: StepContext) -> Where:
    """Tell where this runs, or end the process."""
    context.heartbeat()
    if given.says:
        context.log.error(given.says)
    if given.dies:
        os._exit(9)
    return Where(thread=f"{context.remaining_s():.0f}", pid=os.getpid(), key=context.idempotency_key)
