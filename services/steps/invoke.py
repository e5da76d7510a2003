"""Where a handler runs: in the event loop, in a thread, or in a process."""

import asyncio
import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.guard import Failure, Guard, Outcome, Returned, failure_of, to_bytes
from anabranch.services.steps.step_type import StepType
from anabranch.services.steps.tracing import TracedInvoke
from anabranch.services.steps.turns import Turns
from anabranch.services.steps.worker import Invoke
from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.contracts.hiding import Hiding
from anabranch.shared.runtime.log import configure_logging, get_logger, hide_from_logs
from anabranch.shared.runtime.settings import Settings
from anabranch.shared.runtime.tracing import continuing, outgoing_headers, start_tracing

if TYPE_CHECKING:
    from anabranch.shared.runtime.opentelemetry_spans import Spans


class HandlerProcessDied(AnabranchError):
    """The process that ran a handler ended, by a crash or for want of memory; the attempt failed and may be retried."""


@asynccontextmanager
async def invoker(
    step_type: StepType[Any, Any], concurrency: int, turns: Turns | None = None, *, spans: "Spans | None" = None
) -> AsyncIterator[Invoke]:
    """Provide the call of a step type's handler, with the threads or processes it needs, for as long as it is used.

    A thread or process cannot be stopped: an attempt that is cancelled or timed out is answered at once, what runs it
    goes on to its end and keeps its place until then. With `spans` each attempt is run within a span of its own.
    """

    def traced(invoke: Invoke) -> Invoke:
        return invoke if spans is None else TracedInvoke(invoke, spans, step_type.name)

    match step_type.runs_in:
        case "loop":
            yield traced(Guard(step_type, turns).in_loop)
        case "thread":
            pool: Executor = ThreadPoolExecutor(concurrency, thread_name_prefix=step_type.name)
            yield traced(_InThread(step_type, pool, is_traced=spans is not None))
            pool.shutdown(wait=False, cancel_futures=True)
        case "process":
            processes = _InProcess(step_type, concurrency)
            yield traced(processes)
            processes.stop()


class _InThread:
    def __init__(self, step_type: StepType[Any, Any], pool: Executor, *, is_traced: bool) -> None:
        self._guard = Guard(step_type)
        self._pool = pool
        self._is_traced = is_traced

    async def __call__(self, given: object, context: StepContext) -> Outcome:
        loop = asyncio.get_running_loop()
        if self._is_traced:  # the current span is a context variable
            return await loop.run_in_executor(self._pool, copy_context().run, self._guard.here, given, context)
        return await loop.run_in_executor(self._pool, self._guard.here, given, context)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What of a context travels to another process."""

    run_id: str
    step: str
    attempt: int
    tenant: str
    remaining_s: float
    hidden: tuple[str, ...]
    trace_id: str
    traceparent: str  # of the current span; nothing where tracing is off


class _InProcess:
    def __init__(self, step_type: StepType[Any, Any], concurrency: int) -> None:
        self._module, self._name = step_type.handler.__module__, step_type.handler.__qualname__
        if self._module == "__main__" and (spec := sys.modules["__main__"].__spec__) is not None:
            self._module = spec.name
        self._concurrency = concurrency
        self._pool = self._new_pool()

    async def __call__(self, given: object, context: StepContext) -> Outcome:
        about = _Attempt(
            context.run_id, context.step, context.attempt, context.tenant, context.remaining_s(),
            context.hiding.values, context.trace_id, outgoing_headers().get("traceparent", ""),
        )  # fmt: skip
        pool = self._pool
        try:
            answer = await asyncio.get_running_loop().run_in_executor(
                pool, _run_in_process, self._module, self._name, given, about
            )
        except BrokenProcessPool as error:
            if self._pool is pool:  # the first to notice
                self._pool = self._new_pool()
            raise HandlerProcessDied(f"the process that ran {context.step} ended") from error
        return Returned(orjson.loads(answer)) if isinstance(answer, bytes) else answer

    def stop(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        # Spawned: a fork would copy the event loop, its sockets and its threads.
        return ProcessPoolExecutor(self._concurrency, mp_context=multiprocessing.get_context("spawn"))


def _run_in_process(module: str, name: str, given: object, about: _Attempt) -> bytes | Failure:
    """Run an attempt in a process of the pool. What goes back over the pipe is bytes and plain text."""
    try:
        guard = _guard_of(module, name)
    except BaseException as error:  # noqa: BLE001  what importing the handler's module raises
        return failure_of(error)
    context = StepContext(
        run_id=about.run_id,
        step=about.step,
        attempt=about.attempt,
        tenant=about.tenant,
        deadline=time.monotonic() + about.remaining_s,
        clock=time.monotonic,
        log=structlog.get_logger(),
        trace_id=about.trace_id,
    )
    context.hiding = Hiding(about.hidden)
    hide_from_logs(context.hiding)
    with continuing(f"process of {name}", about.traceparent):
        outcome = guard.here(given, context)
    return to_bytes(outcome)


@lru_cache(maxsize=1)  # a process serves one type
def _guard_of(module: str, name: str) -> Guard[Any, Any]:
    step_type: StepType[Any, Any] = getattr(importlib.import_module(module), name)
    settings = Settings()
    configure_logging(f"steps.{step_type.name}", settings)
    start_tracing(f"steps.{step_type.name}", settings.instance, os.environ, get_logger(), at_exit=True)
    return Guard(step_type)
