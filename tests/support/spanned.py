"""`python -m tests.support.spanned`: a step service whose handlers find the current span, wherever they run."""

import asyncio
import os

from pydantic import BaseModel

from anabranch.steps import RetryableError, StepContext, serve, step_type


class Given(BaseModel):
    """What to say in the span."""

    value: int = 0
    fails: bool = False
    fail_attempts: int = 0
    sleep_s: float = 0


class Seen(BaseModel):
    """The current span, and the process that saw it."""

    value: int
    trace_id: str
    span_id: str
    is_sampled: bool
    pid: int


def look(given: Given) -> Seen:
    """Say something in the current span, and open one below it."""
    from opentelemetry import trace

    span = trace.get_current_span()
    span.set_attribute("said", given.value)
    with trace.get_tracer("tests").start_as_current_span("work of the handler"):
        pass
    if given.fails:
        raise ValueError("no such thing")
    context = span.get_span_context()
    return Seen(
        value=given.value, trace_id=f"{context.trace_id:032x}", span_id=f"{context.span_id:016x}",
        is_sampled=context.trace_flags.sampled, pid=os.getpid(),
    )  # fmt: skip


@step_type("spanned")
async def spanned(given: Given, context: StepContext) -> Seen:
    """Look in the event loop; so many attempts fail first."""
    seen = look(given)
    await asyncio.sleep(given.sleep_s)
    if context.attempt <= given.fail_attempts:
        raise RetryableError(f"attempt {context.attempt} fails", error_type="NotYet")
    return seen


@step_type("threaded", runs_in="thread")
def threaded(given: Given, context: StepContext) -> Seen:
    """Look in a thread."""
    return look(given)


@step_type("apart", runs_in="process")
def apart(given: Given, context: StepContext) -> Seen:
    """Look in another process."""
    return look(given)


if __name__ == "__main__":
    serve(spanned)
