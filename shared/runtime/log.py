"""Structured logs: structlog, one line per fact; stdlib loggers (aiokafka, aiohttp) are routed through it.

No line has the local variables of a traceback: they hold settings with passwords, bodies and keys; no URL in a line has
its credentials. Every line has a size: long values are cut. No value can make a line fail.
"""

import logging
import math
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import orjson
import structlog
from structlog.typing import EventDict, ExcInfo, FilteringBoundLogger, Processor, WrappedLogger

from anabranch.shared.contracts.hiding import Hiding
from anabranch.shared.contracts.text import printable, writable
from anabranch.shared.contracts.times import second_shown
from anabranch.shared.contracts.urls import redacted, redacted_value
from anabranch.shared.runtime.complaints import Complaints
from anabranch.shared.runtime.settings import Settings
from anabranch.shared.runtime.tracebacks import is_modest

_KAFKAS_CLIENT: Final = "aiokafka"

# What a library says again and again: the first line is enough, and how many followed.
REPEAT_AFTER_S: Final = 10.0
_REMEMBERED: Final = 1000

# A traceback of fifty frames has some 8,000 characters; of what is longer, the beginning and the end say most.
MAX_VALUE_CHARS: Final = 8_000
_MAX_VALUES: Final = 40  # of one line
_MAX_SECRETS: Final = 200  # read lately: more than a step service is given
_MAX_INTEGER: Final = 2**63 - 1


def configure_logging(service: str, settings: Settings) -> None:
    """Send every line of this process to stdout, from the settings' level on, each with `service` and `instance`.

    Libraries log through the standard library; of theirs, warnings and worse are written.
    """
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    _level.usual = _level.now = level
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _timed,
            _adds(service=service, instance=settings.instance),
            structlog.processors.ExceptionRenderer(_exception_shown),
            _bounded,
            *_rendering(settings.log_format),
        ],
        wrapper_class=_SwitchedLogger,
        logger_factory=_factory(settings.log_format),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[_ToStructlog()], force=True)


def switch_level() -> str:
    """Write everything from now on, or again from the settings' level on; return the name of the level."""
    _level.now = _level.usual if _level.now == logging.DEBUG != _level.usual else logging.DEBUG
    logging.getLogger().setLevel(max(_level.now, logging.WARNING))
    return logging.getLevelName(_level.now).lower()


@dataclass(slots=True)
class _Level:
    """The level from which lines are written: as the settings have it, and now."""

    usual: int = logging.INFO
    now: int = logging.INFO


_level: Final = _Level()


def _from(number: int, name: str) -> Callable[..., Any]:
    """Return the method of a logger that writes a line, if lines of its level are written now."""
    write = getattr(_AllLines, name)

    def said(self: Any, event: str | None = None, *arguments: Any, **values: Any) -> Any:
        return write(self, event, *arguments, **values) if number >= _level.now else None

    return said


_AllLines: Final[Any] = structlog.make_filtering_bound_logger(logging.DEBUG)
_METHODS: Final = {
    "debug": logging.DEBUG, "info": logging.INFO, "msg": logging.INFO, "warning": logging.WARNING,
    "warn": logging.WARNING, "error": logging.ERROR, "exception": logging.ERROR, "critical": logging.CRITICAL,
}  # fmt: skip


class _SwitchedLogger(_AllLines):  # type: ignore[misc]  # made by structlog
    """A logger that has its level looked up at each line."""

    def log(self, level: int, event: str, *arguments: Any, **values: Any) -> Any:
        """Write a line of this level."""
        return super().log(level, event, *arguments, **values) if level >= _level.now else None


for _name, _number in _METHODS.items():
    setattr(_SwitchedLogger, _name, _from(_number, _name))


def get_logger(**bound: Any) -> FilteringBoundLogger:
    """Return a logger with values bound to each of its lines; call it after `configure_logging`.

    A call below the level costs a comparison.
    """
    return cast(FilteringBoundLogger, structlog.get_logger().bind(**bound))


_hidings: dict[str, Hiding] = {}  # by value, the one last read at the end


def hide_from_logs(hiding: Hiding) -> None:
    """Have no line of this process show these values from here on."""
    for value in hiding.values:
        _hidings[value] = _hidings.pop(value) if value in _hidings else Hiding([value])
    while len(_hidings) > _MAX_SECRETS:
        del _hidings[next(iter(_hidings))]


def hidden_from_logs(text: str) -> str:
    """Return a text without the values that no line may show."""
    for hiding in list(_hidings.values()):  # a handler in a thread may log as well
        text = hiding.text(text)
    return text


class _ToStructlog(logging.Handler):
    """Hands the records of the standard library's loggers on, a repeated one not more than every `REPEAT_AFTER_S`.

    What Kafka's client complains of during an outage is one line when it begins and one when it is over.
    """

    def __init__(self) -> None:
        super().__init__()
        self._of_kafka = Complaints(_kafka_is_quiet)
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    def close(self) -> None:
        self._of_kafka.close()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING and record.name.partition(".")[0] == _KAFKAS_CLIENT:
            level = self._of_kafka.level_of(record)
            if level is not None:
                get_logger(logger=record.name).log(level, _message_of(record), exc_info=record.exc_info)
            return
        key = (record.name, str(record.msg))
        said_at, unsaid = self._said.get(key, (-math.inf, 0))
        if record.created - said_at < REPEAT_AFTER_S:
            self._said[key] = (said_at, unsaid + 1)
            return
        if len(self._said) >= _REMEMBERED:
            self._said.clear()
        self._said[key] = (record.created, 0)
        repeated = {"repeated": unsaid} if unsaid else {}
        logger = get_logger(logger=record.name, **repeated)
        logger.log(record.levelno, _message_of(record), exc_info=record.exc_info)


def _kafka_is_quiet(complaints: int, seconds: float) -> None:
    get_logger().info("Kafka's client complains no more", complaints=complaints, for_s=round(seconds, 1))


def _message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  a library's arguments do not fit its text, or cannot be shown: the text alone, then
        return str(record.msg)


def _exception_shown(exc_info: ExcInfo) -> str:
    """Return a traceback; of an exception with very many causes and members, its own."""
    kind, error, trace = exc_info
    if is_modest(error):
        return "".join(traceback.format_exception(kind, error, trace)).rstrip("\n")
    return "".join([*traceback.format_tb(trace), f"{type(error).__name__}: {error}"])


def _timed(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Add when it was said: RFC 3339 to the microsecond, of which the second is formatted once."""
    second, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    event["at"] = f"{second_shown(second)}.{nanoseconds // 1000:06d}Z"
    return event


def _adds(**constants: str) -> Processor:
    def add(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        for name, value in constants.items():
            event.setdefault(name, value)
        return event

    return add


def _bounded(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Cut what is long and show what cannot be written."""
    if len(event) > _MAX_VALUES:
        for name in list(event)[_MAX_VALUES:]:
            del event[name]
    for name, value in event.items():
        if isinstance(value, str):  # most are ids, routes and names: short, ASCII and no URL
            if _hidings or not value.isascii() or "://" in value or len(value) > MAX_VALUE_CHARS:
                event[name] = _cut(value)
        elif not _is_scalar(value):
            event[name] = _bounded_object(value)
        elif _hidings:
            event[name] = _told(value)
    return event


def _is_scalar(value: Any) -> bool:
    if isinstance(value, int):
        return -_MAX_INTEGER <= value <= _MAX_INTEGER
    return value is None or isinstance(value, float)


def _bounded_object(value: Any) -> Any:
    """Return a list or an object as it is when its JSON is short, else the beginning of that as a text."""
    try:
        shown = orjson.dumps(value, default=_shown)
    except TypeError:  # orjson's: a lone surrogate, a key that is no text, 65 bits
        return _cut(_shown(value))
    if len(shown) > MAX_VALUE_CHARS:
        return _cut(shown.decode())
    value = orjson.loads(shown)
    if b"://" in shown:
        value = redacted_value(value)
    return _told(value)


def _told(value: Any) -> Any:
    for hiding in list(_hidings.values()):
        value = hiding.told(value)
    return value


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001  somebody else's __repr__; what happened must be logged nevertheless
        return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"


def _cut(text: str) -> str:
    text = redacted(hidden_from_logs(text))  # before it is cut: of half a URL nobody could tell what a password is
    if len(text) > MAX_VALUE_CHARS:
        half = MAX_VALUE_CHARS // 2
        text = f"{text[:half]} … {len(text) - 2 * half} characters … {text[-half:]}"
    return writable(text)


def _rendering(log_format: str) -> tuple[Processor, ...]:
    if log_format == "console":
        return _one_line_each, structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
    return (structlog.processors.JSONRenderer(serializer=_json),)


def _one_line_each(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Escape what could fake a line on a terminal, or steer it; a traceback has lines of its own."""
    for name, value in event.items():
        keep = "\n\t" if name == "exception" else ""
        event[name] = value if _is_scalar(value) else printable(value if isinstance(value, str) else repr(value), keep)
    return event


def _factory(log_format: str) -> Callable[..., WrappedLogger]:
    return structlog.PrintLoggerFactory() if log_format == "console" else structlog.BytesLoggerFactory()


def _json(event: EventDict, **_: Any) -> bytes:
    return orjson.dumps(event)
