"""A service's life: start, be ready, stop. `run_service` is the last line of every `__main__`."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, NoReturn, TypeVar

from aiohttp import web
from prometheus_client import CollectorRegistry
from structlog.typing import FilteringBoundLogger

from anabranch.shared.runtime.deadline import Deadline
from anabranch.shared.runtime.settings import Settings

SettingsT = TypeVar("SettingsT", bound=Settings)

__all__ = ["Deadline", "Service", "run_service"]


class Service(Generic[SettingsT]):
    """What `main` is given: settings, log, metrics registry, readiness, and when to stop."""

    name: str
    settings: SettingsT
    log: FilteringBoundLogger
    registry: CollectorRegistry
    stopping: asyncio.Event
    deadline: Deadline | None

    def ready_when(self, name: str, check: Callable[[], bool | str]) -> None:
        """Make readiness depend on a check; a string says why not."""
        raise NotImplementedError

    def routes(self) -> web.Application:
        """Return an application with `/healthz`, `/readyz` and `/metrics`."""
        raise NotImplementedError

    async def fail(self, error: BaseException) -> None:
        """End the process with exit code 1 and one line that says why."""
        raise NotImplementedError


def run_service(
    name: str,
    settings: SettingsT,
    main: Callable[[Service[SettingsT]], Awaitable[None]],
    *,
    app: Callable[[Service[SettingsT]], web.Application] | None = None,
) -> NoReturn:
    """Run `main` until SIGTERM or SIGINT, then exit."""
    raise NotImplementedError
