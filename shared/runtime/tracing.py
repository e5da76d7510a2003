"""Whether spans are written, and with what: OpenTelemetry is imported only where tracing is on (docs/tracing.md).

It is on when `OTEL_TRACES_EXPORTER` is `otlp`, or when an endpoint is given and the exporter is not `none`. A setting
that cannot be meant is an error at the start; the collector may come and go.
"""

import atexit
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from anabranch.shared.contracts.traces import trace_context_in
from anabranch.shared.contracts.urls import redacted
from anabranch.shared.runtime.errors import UnusableSettings

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from anabranch.shared.runtime.opentelemetry_spans import Spans

EXPORTER: Final = "OTEL_TRACES_EXPORTER"
DISABLED: Final = "OTEL_SDK_DISABLED"
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SAMPLER: Final = "OTEL_TRACES_SAMPLER"
SAMPLER_ARGUMENT: Final = "OTEL_TRACES_SAMPLER_ARG"
SAMPLERS: Final = (
    "always_on", "always_off", "traceidratio",
    "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio",
)  # fmt: skip
QUEUE: Final = "OTEL_BSP_MAX_QUEUE_SIZE"
BATCH: Final = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
_COUNTS: Final = (QUEUE, BATCH, "OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT")
_COMPRESSIONS: Final = ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION")
_SECONDS: Final = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")
_COUNT: Final = re.compile(r"[1-9][0-9]{0,8}")
_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")

_on: "Spans | None" = None
"""What this process writes spans with."""


class Sent:
    """Is told what becomes of spans. This one listens to nothing; the metrics of a process count."""

    def spans_sent(self, count: int) -> None:
        """The collector took so many."""

    def spans_dropped(self, count: int) -> None:
        """So many were dropped, since they could not be sent, or not in time."""


def is_on(environment: Mapping[str, str]) -> bool:
    """Return whether tracing is switched on. Raises `UnusableSettings` for a switch that is neither on nor off."""
    disabled = _value(environment, DISABLED)
    if disabled not in ("", "true", "false"):
        raise UnusableSettings(f"{DISABLED} is {disabled!r}: it is true or false")
    exporter = _value(environment, EXPORTER)
    if exporter not in ("", "otlp", "none"):
        raise UnusableSettings(f"{EXPORTER} is {exporter!r}: traces go by otlp, or there are none")
    if disabled == "true" or exporter == "none":
        return False
    return exporter == "otlp" or any(environment.get(name) for name in ENDPOINTS)


def start_tracing(
    service: str,
    instance: str,
    environment: Mapping[str, str],
    log: "FilteringBoundLogger",
    sent: Sent = Sent(),  # noqa: B008  it has no state
    *,
    at_exit: bool = False,
) -> "Spans | None":
    """Return what spans are written with, or None when tracing is off. Raises `UnusableSettings`.

    From then on OpenTelemetry's own functions work too: a handler asks it for the current span. `at_exit` sends what is
    left when the interpreter ends; a service does so itself.
    """
    global _on  # noqa: PLW0603  one for each process, as OpenTelemetry's provider is
    if not is_on(environment):
        return None
    _check(environment)
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise UnusableSettings("tracing is on, and OpenTelemetry is not installed: pip install 'anabranch[tracing]'")
    from anabranch.shared.runtime.opentelemetry_spans import open_spans  # noqa: PLC0415  only where tracing is on

    _on = open_spans(service, instance, environment, log, sent)
    if at_exit:
        atexit.register(_on.close_now)
    return _on


@contextmanager
def continuing(name: str, traceparent: str) -> Iterator[None]:
    """Do what is done in here within a span below that of another process; without tracing, or a span, as it is."""
    parent = trace_context_in(traceparent)
    if _on is None or parent is None:
        yield
        return
    span = _on.begin(name, parent)
    try:
        with _on.current(span):
            yield
    finally:
        span.end()


def outgoing_headers() -> dict[str, str]:
    """Return the headers that have the server which is asked go on in this trace: none where tracing is off."""
    return {} if _on is None else _on.outgoing_headers()


def shown_endpoint(environment: Mapping[str, str]) -> str:
    """Return where spans are sent, without credentials."""
    given = next((environment[name] for name in ENDPOINTS if environment.get(name)), "http://localhost:4318")
    return redacted(given)


def _check(environment: Mapping[str, str]) -> None:
    for name in ENDPOINTS:
        _check_url(name, environment.get(name, ""))
    for names, is_meant, words in _MEANT:
        for name in names:
            if (value := _value(environment, name)) and not is_meant(value):
                raise UnusableSettings(f"{name} is {value!r}: {words}")


def _check_url(name: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets, a port that is none
        is_usable = False
    if url and not is_usable:
        raise UnusableSettings(f"{name} is {redacted(url)!r}: it is a URL like http://127.0.0.1:4318")


def _is_share(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and float(text) <= 1


def _is_duration(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and float(text) > 0


def _is_count(text: str) -> bool:
    return _COUNT.fullmatch(text) is not None


_MEANT: Final[Sequence[tuple[tuple[str, ...], Callable[[str], bool], str]]] = (
    (PROTOCOLS, lambda text: text == "http/protobuf", "spans go by http/protobuf, to port 4318 of most collectors"),
    ((SAMPLER,), lambda text: text in SAMPLERS, f"it is one of {', '.join(SAMPLERS)}"),
    ((SAMPLER_ARGUMENT,), _is_share, "a share is a number from 0 to 1"),
    (_COMPRESSIONS, lambda text: text in ("none", "gzip", "deflate"), "it is none, gzip or deflate"),
    (_COUNTS, _is_count, "it is a whole number from 1 on"),
    (_SECONDS, _is_duration, "it is a number of seconds"),
)


def _value(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name, "").strip().lower()
