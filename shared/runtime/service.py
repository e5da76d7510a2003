"""A service's life: start, be ready, stop. `run_service` is the last line of every `__main__`.

1. `/healthz`, `/readyz` and `/metrics` answer from the first moment; ready is another matter.
2. `main` runs until `stopping` is set by SIGTERM, SIGINT or nobody.
3. From then on it has `stop_timeout_s` to finish or hand back what it holds; it returns; the listener closes; exit code
0.

An error out of `main`, `fail(error)`, and an overrun of the time are exit code 1, each with one line that says why. A
second signal ends the process at once, and so does whatever stops the event loop from within: nothing can be finished
without it.
"""

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar

import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry
from structlog.typing import FilteringBoundLogger

from anabranch.shared.contracts.text import writable
from anabranch.shared.runtime.allocation import give_memory_back
from anabranch.shared.runtime.deadline import Deadline
from anabranch.shared.runtime.errors import KafkaRefused, UnusableSettings
from anabranch.shared.runtime.listener import Listener
from anabranch.shared.runtime.log import configure_logging, get_logger, switch_level
from anabranch.shared.runtime.metrics import new_registry
from anabranch.shared.runtime.ops import Check, Readiness, add_ops_routes
from anabranch.shared.runtime.process_metrics import ProcessMetrics
from anabranch.shared.runtime.settings import Settings, unknown_names
from anabranch.shared.runtime.stacks import write_stacks
from anabranch.shared.runtime.tracebacks import leaves_of
from anabranch.shared.runtime.tracing import start_tracing

if TYPE_CHECKING:
    from anabranch.shared.runtime.opentelemetry_spans import Spans

SettingsT = TypeVar("SettingsT", bound=Settings)
T = TypeVar("T")

__all__ = ["Deadline", "Service", "run_service"]

# Objects made and not freed between two looks of the collector (CPython: 700): a burst makes tens of thousands that
# reference counting frees.
_COLLECT_AFTER: Final = 20_000

_FAILED: Final = 1
_KILLED: Final = 130  # as a shell reports a process that an interrupt ended

# After a failure nothing may be acknowledged or committed any more: only sockets are closed.
_FAIL_TIMEOUT_S: Final = 5.0
# The loop's own time-outs come first; they know more.
_WATCHDOG_MARGIN_S: Final = 5.0
# Open streams are cut when main has returned: whatever had to be finished, main has finished.
_LISTENER_TIMEOUT_S: Final = 1.0


class StoppedEarlyError(Exception):
    """The service was told to stop before `main` had anything to hand back."""


class Service(Generic[SettingsT]):
    """What `main` is given: settings, log, metrics registry, readiness, and when to stop."""

    def __init__(self, name: str, settings: SettingsT) -> None:
        self.name = name
        self.settings = settings
        self.log: FilteringBoundLogger = get_logger()
        self.registry: CollectorRegistry = new_registry()
        self._process = ProcessMetrics(name, self.registry)
        self.spans: Spans | None = None
        """What spans are written with; None where tracing is off."""
        self.stopping = asyncio.Event()
        self.deadline: Deadline | None = None
        self.port: int | None = None
        self.in_hand: Callable[[], Sequence[str]] = tuple
        """What is named if the process ends before its time: who may have done it."""
        self.last_words: Callable[[str], None] | None = None
        """Is told why, once, if something is in hand when the process ends before its time; it may take a moment."""
        self._readiness = Readiness()
        self._readiness.add("service", self._is_running)
        self._failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._first_error: BaseException | None = None
        self._listener: web.AppRunner | None = None

    def ready_when(self, name: str, check: Check) -> None:
        """Make readiness depend on a check; False or a string, which says why, is not ready."""
        self._readiness.add(name, check)

    def routes(self) -> web.Application:
        """Return an application with `/healthz`, `/readyz` and `/metrics`."""
        return self._with_ops(web.Application())

    async def fail(self, error: BaseException) -> None:
        """End the process with exit code 1 and one line that says why; `main` is cancelled. The first error counts."""
        if not self._failed.done():
            _end_anyway(_FAIL_TIMEOUT_S)
            self._failed.set_result(error)

    def reason(self, error: BaseException) -> BaseException:
        """Return why the process ends: not what closing its clients raises after that."""
        return self._failed.result() if self._failed.done() else self._first_error or error

    @property
    def is_failing(self) -> bool:
        """Whether `fail` was called: `main` is cancelled because of it."""
        return self._failed.done()

    def end_within(self, timeout_s: float, error: BaseException) -> None:
        """End the process with exit code 1 when so much time is over: `main` has failed, and closes what it can.

        What `fail` was told counts before `error`, which is then only how `main` was cancelled.
        """
        in_hand = self.in_hand()
        self._first_error = self._first_error or error

        def end() -> None:
            _say_why(self, self.reason(error), in_hand)
            _exit_now(_FAILED)

        timer = threading.Timer(timeout_s, end)
        timer.daemon = True
        timer.start()

    def stop(self) -> None:
        """Begin to stop, as SIGTERM does."""
        if not self.stopping.is_set():
            self.deadline = Deadline.after(self.settings.stop_timeout_s)
            _end_anyway(self.settings.stop_timeout_s)
            self.stopping.set()

    async def unless_stopping(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what the work returns; when the service is told to stop before, end `main` in good order instead.

        For what may take long before there is anything to hand back: waiting for Kafka, for instance.
        """
        doing = asyncio.create_task(work, name="unless stopping")
        stopping = asyncio.create_task(self.stopping.wait(), name="stopping")
        try:
            await _first_of(doing, stopping)
            if not doing.done():
                raise StoppedEarlyError
            return doing.result()
        finally:
            stopping.cancel()
            doing.cancel()

    async def stop_listening(self) -> None:
        """Close the HTTP listener once its requests are answered, for a `main` that must outlive them."""
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.cleanup()

    def _is_running(self) -> bool | str:
        return "stopping" if self.stopping.is_set() else True

    def _with_ops(self, app: web.Application) -> web.Application:
        add_ops_routes(app, self._readiness, self.registry)
        return app

    async def _listen(self, app: web.Application) -> None:
        self._listener = Listener(self._with_ops(app), shutdown_timeout=_LISTENER_TIMEOUT_S)
        await self._listener.setup()
        self.port = await self._listener.listen(self.settings.http_host, self.settings.http_port)
        self.log.info("listening", host=self.settings.http_host, port=self.port)


Main = Callable[[Service[SettingsT]], Awaitable[None]]
AppFactory = Callable[[Service[SettingsT]], web.Application]


def run_service(
    name: str, settings: SettingsT, main: Main[SettingsT], *, app: AppFactory[SettingsT] | None = None
) -> NoReturn:
    """Run `main` until SIGTERM or SIGINT, then exit: 0 when it stopped in time, 1 when not or when something failed.

    `app` makes the HTTP application, to which the three routes are added; without it they are all there is.
    """
    configure_logging(name, settings)
    give_memory_back()
    _tune_collector()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        living: list[Service[SettingsT]] = []
        try:
            code = runner.run(_live(living, name, settings, main, app))
        except BaseException as error:  # the loop was stopped from within: it would not run to close anything
            for service in living:
                _say_why(service, service.reason(error), service.in_hand())
                _exit_now(_FAILED)
            raise
    sys.exit(code)


def _tune_collector() -> None:
    """Look for cyclic garbage seldom: what a service keeps is large and acyclic, and every look walks through it."""
    gc.collect()
    gc.freeze()  # modules and classes stay anyway
    gc.set_threshold(_COLLECT_AFTER, 20, 50)


async def _live(
    living: list[Service[SettingsT]],
    name: str,
    settings: SettingsT,
    main: Main[SettingsT],
    app: AppFactory[SettingsT] | None,
) -> int:
    service = Service(name, settings)
    living.append(service)
    _listen_to_signals(service)
    _report_unknown_names(service)
    try:
        service.spans = start_tracing(name, settings.instance, os.environ, service.log, service._process)
        await service._listen(app(service) if app else web.Application())
        await _run_main(service, main)
    except Exception as error:  # noqa: BLE001  the last place where an error can be said
        _say_why(service, service.reason(error), service.in_hand())
        code = _FAILED
    else:
        service.log.info("stopped")
        code = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(2 * _LISTENER_TIMEOUT_S):
            await service.stop_listening()
    if service.spans is not None:
        await service.spans.close()
    return code


async def _run_main(service: Service[SettingsT], main: Main[SettingsT]) -> None:
    running = asyncio.create_task(_awaited(main(service)), name="main")
    looking = asyncio.create_task(service._process.keep_looking(), name="event-loop lag")
    stopping = asyncio.create_task(service.stopping.wait(), name="stopping")
    await _first_of(running, stopping, service._failed)
    stopping.cancel()
    looking.cancel()
    if not running.done() and not service._failed.done():
        await _first_of(running, service._failed, timeout=service.deadline.remaining() if service.deadline else 0.0)
    if service._failed.done():
        await _abandon(service, running)
        raise service._failed.result()
    if not running.done():
        _overrun(service)
    with suppress(StoppedEarlyError):
        running.result()
    if not service.stopping.is_set():
        raise RuntimeError("main returned although nothing asked the service to stop")


async def _first_of(*futures: "asyncio.Future[Any]", timeout: float | None = None) -> None:
    await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


async def _awaited(main: Awaitable[None]) -> None:
    await main


async def _abandon(service: Service[SettingsT], running: "asyncio.Task[None]") -> None:
    running.cancel()
    done, _ = await asyncio.wait({running}, timeout=_FAIL_TIMEOUT_S)
    if not done:
        _say_why(service, service._failed.result())
        _overrun(service)
    elif not running.cancelled():
        running.exception()  # what main says about being cancelled is not why the process ends


def _overrun(service: Service[SettingsT]) -> NoReturn:
    """End the process from here: a task that ignores its cancellation would hold the loop's end too."""
    service.log.error("did not stop in time", stop_timeout_s=service.settings.stop_timeout_s, hanging=list(_hanging()))
    _exit_now(_FAILED)


def _end_anyway(timeout_s: float) -> None:
    """End the process a little after that time even when the loop is blocked, or a thread that the loop waits for."""

    def end() -> None:
        frames = sys._current_frames().items()
        others = [frame for number, frame in frames if number != threading.get_ident()]
        hanging = [f"a thread at {frame.f_code.co_filename}:{frame.f_lineno}" for frame in others]
        get_logger().error("did not stop in time", stop_timeout_s=timeout_s, hanging=hanging)
        _exit_now(_FAILED)

    timer = threading.Timer(timeout_s + _WATCHDOG_MARGIN_S, end)
    timer.daemon = True
    timer.start()


def _hanging() -> Iterator[str]:
    for task in asyncio.all_tasks():
        if task is not asyncio.current_task():
            frames = task.get_stack(limit=1)
            where = f" at {frames[0].f_code.co_filename}:{frames[0].f_lineno}" if frames else ""
            yield task.get_name() + where


def _listen_to_signals(service: Service[SettingsT]) -> None:
    def on_signal(number: signal.Signals) -> None:
        if service.stopping.is_set():
            service.log.warning("a second signal: ending at once", signal=number.name)
            _exit_now(_KILLED)
        service.log.info("stopping", signal=number.name)
        service.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    loop.add_signal_handler(signal.SIGUSR1, lambda: service.log.warning("log level", level=switch_level()))
    loop.add_signal_handler(signal.SIGUSR2, _show_stacks, service)


def _show_stacks(service: Service[SettingsT]) -> None:
    count = write_stacks(asyncio.all_tasks(), sys.stderr)
    service.log.warning("stacks are written to stderr", tasks=count)


def _exit_now(code: int) -> NoReturn:
    sys.stdout.flush()
    os._exit(code)


def _report_unknown_names(service: Service[SettingsT]) -> None:
    if unknown := unknown_names(type(service.settings), os.environ):
        service.log.warning("settings that this service does not know", names=unknown)


def _say_why(service: Service[SettingsT], error: BaseException, in_hand: Sequence[str] = ()) -> None:
    why = "; ".join(f"{type(leaf).__name__}: {_words(leaf)}" for leaf in leaves_of(error))
    suspects = {"in_hand": in_hand} if in_hand else {}
    try:
        service.log.error("failed", why=why, exc_info=None if _is_operators(error) else error, **suspects)
    except BaseException:  # noqa: BLE001  an exception of somebody else's that cannot be shown: it is said all the same
        service.log.error("failed", why=why, **suspects)  # noqa: TRY400  showing it is what failed
    last_words, service.last_words = service.last_words, None
    if in_hand and last_words is not None:
        last_words(why)


def _is_operators(error: BaseException) -> bool:
    """Whether `why` says all: what to change is a setting, and no line of the program."""
    return all(isinstance(leaf, (KafkaRefused, UnusableSettings)) for leaf in leaves_of(error))


def _words(error: BaseException) -> str:
    try:
        return writable(str(error))
    except BaseException:  # noqa: BLE001  as above
        return "(it has no text)"
