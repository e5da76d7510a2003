"""Where handlers run, and what a step type may be."""

import asyncio
import os
import threading
from functools import partial
from typing import Any

import pytest
import structlog

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.guard import Failure, Returned
from anabranch.services.steps.invoke import HandlerProcessDied, invoker
from anabranch.services.steps.step_type import StepTypeInvalid, step_type
from anabranch.shared.contracts.ids import new_run_id
from anabranch.shared.runtime.opentelemetry_spans import Spans
from anabranch.shared.runtime.tracing import start_tracing
from tests.support.apart import Given, Where, apart
from tests.support.collector import Collector
from tests.support.spanned import apart as apart_seen
from tests.support.spanned import spanned
from tests.support.spanned import threaded as threaded_seen

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@step_type("threaded", runs_in="thread")
def threaded(given: Given, context: StepContext) -> Where:
    context.heartbeat({"in": "thread"})
    return Where(thread=threading.current_thread().name, pid=os.getpid(), key=context.idempotency_key)


def a_context(run_id: str = "r", **more: Any) -> StepContext:
    return StepContext(
        run_id=run_id, step="s", attempt=1, tenant="t", deadline=60, clock=lambda: 0, log=structlog.get_logger(), **more
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


@pytest.mark.parametrize("step", [spanned, threaded_seen, apart_seen], ids=["loop", "thread", "process"])
async def test_a_handler_finds_its_span_wherever_it_runs(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another process it is one below; a failure is said of it, and a trace that is not sampled has none."""
    async with Collector() as collector:
        for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "20"}.items():
            monkeypatch.setenv(name, value)
        spans = start_tracing("test", "here-1", os.environ, structlog.get_logger())
        assert spans is not None
        context = partial(a_context, run_id=new_run_id(), trace_id=TRACE)
        async with invoker(step, 1, spans=spans) as invoke:
            seen = await invoke({"value": 5}, context())
            failed = await invoke({"fails": True}, context())
            unsampled = await invoke({}, context(is_sampled=False))
            name = f"handler {step.name}"
            received = await collector.until(lambda spans: sum(span.name == name for span in spans) == 2, 30)
            said = "handler" if step is not apart_seen else "process"
            await collector.until(lambda spans: [s for s in spans if s.attributes.get("said") == 5], 30)
        await spans.close()
        received = collector.spans
    assert isinstance(seen, Returned)
    assert isinstance(unsampled, Returned)
    assert isinstance(failed, Failure)
    (current,) = (span for span in received if span.attributes.get("said") == 5)
    assert (seen.value["trace_id"], seen.value["span_id"]) == (TRACE, current.span_id)
    assert current.name.startswith(said)
    good, bad = sorted((span for span in received if span.name == name), key=lambda span: span.start_ns)
    assert current in (good,) or current.parent_id == good.span_id
    assert (good.error, bad.error) == ("", "ValueError: no such thing")
    assert bad.attributes["error.type"] == "ValueError"
    assert (unsampled.value["trace_id"], unsampled.value["is_sampled"]) == (TRACE, False)


@pytest.mark.parametrize("broken", ["begin", "end", "write"])
async def test_a_span_that_cannot_be_written_changes_no_answer(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor of spans that the handler's own module adds may raise, for instance."""

    def raise_something(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    spans = start_tracing("test", "here-1", os.environ, structlog.get_logger())
    assert spans is not None
    monkeypatch.setattr(Spans, broken, raise_something)
    async with invoker(threaded_seen, 1, spans=spans) as invoke:
        seen = await invoke({"value": 5}, a_context(new_run_id()))
        failed = await invoke({"fails": True}, a_context(new_run_id()))
    await spans.close()
    assert isinstance(seen, Returned)
    assert seen.value["value"] == 5
    assert isinstance(failed, Failure)
    assert failed.error_type == "ValueError"
