"""Loggers of the simulation: one that is silent, one that prints what every process says, at which virtual time."""

from collections.abc import Callable
from typing import Any, cast

from structlog.typing import FilteringBoundLogger


class _Silent:
    def bind(self, **_: object) -> "_Silent":
        return self

    def debug(self, event: str, **_: object) -> None:
        """Say nothing."""

    info = warning = error = exception = debug


NO_LOG = cast(FilteringBoundLogger, _Silent())


class _Loud:
    def __init__(self, say: Callable[[str], None], bound: dict[str, Any]) -> None:
        self._say = say
        self._bound = bound

    def bind(self, **more: object) -> "_Loud":
        return _Loud(self._say, self._bound | more)

    def debug(self, event: str, **words: object) -> None:
        self._say(f"{event} {' '.join(f'{k}={v}' for k, v in (self._bound | words).items())}")

    info = warning = error = exception = debug


def loud(say: Callable[[str], None]) -> FilteringBoundLogger:
    """Return a logger that hands every line to `say`."""
    return cast(FilteringBoundLogger, _Loud(say, {}))
