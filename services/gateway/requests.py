"""What a request's query and headers ask for."""

import re
from typing import Final

from aiohttp import web

from anabranch.services.gateway.problems import Kind, ProblemError
from anabranch.shared.contracts.durations import DurationError, format_duration, parse_duration
from anabranch.shared.contracts.ids import is_idempotency_key
from anabranch.shared.contracts.limits import MAX_IDEMPOTENCY_KEY_CHARS
from anabranch.shared.contracts.traces import TraceContext, trace_context_in

ANY_STATE: Final = "*"

_SECONDS: Final = re.compile(r"[0-9]{1,9}")


def wait_s_of(request: web.Request, max_wait_s: float) -> float | None:
    """Return the seconds of `?wait=`, or None. Raises a 400 problem."""
    if not request.query_string:
        return None
    for name in request.query:  # a name that came twice is there twice
        if name != "wait":
            raise ProblemError(Kind.BAD_REQUEST, f"The query parameter {name[:80]!r} is not known here.")
    if len(request.query) > 1:
        raise ProblemError(Kind.BAD_REQUEST, "wait is given once.")
    given = request.query["wait"]
    try:
        seconds = parse_duration(int(given) if _SECONDS.fullmatch(given) else given)
    except DurationError as error:
        raise ProblemError(Kind.BAD_REQUEST, f"wait: {error}.") from error
    if seconds > max_wait_s:
        raise ProblemError(Kind.BAD_REQUEST, f"wait is at most {format_duration(max_wait_s)} here.")
    return seconds


def refuse_query(request: web.Request) -> None:
    """Raise a 400 problem for a query where none is known."""
    for name in request.query if request.query_string else ():
        raise ProblemError(Kind.BAD_REQUEST, f"The query parameter {name[:80]!r} is not known here.")


def known_states(request: web.Request) -> frozenset[str]:
    """Return the states of a resource that the client has already (`If-None-Match`); what is none is passed over.

    Whether a tag is weak makes no difference here (RFC 9110 §13.1.2).
    """
    given = request.headers.get("If-None-Match")
    if given is None:
        return frozenset()
    if given.strip() == ANY_STATE:
        return frozenset({ANY_STATE})
    return frozenset(tag.value for tag in request.if_none_match or ()) - {ANY_STATE}


def idempotency_key_of(request: web.Request) -> str | None:
    """Return the `Idempotency-Key`, or None. Raises a 400 problem."""
    given = request.headers.getall("Idempotency-Key", None)
    if given is None:
        return None
    if len(given) > 1 or not is_idempotency_key(given[0]):
        raise ProblemError(
            Kind.BAD_REQUEST,
            f"An Idempotency-Key is 1 to {MAX_IDEMPOTENCY_KEY_CHARS} visible ASCII characters, sent once.",
        )
    return given[0]


def last_event_id_of(request: web.Request) -> str | None:
    """Return the `Last-Event-ID` of a client that goes on, or None.

    A page's `EventSource` can send no header with its first request: `?last_event_id=` says the same. Raises a 400
    problem.
    """
    given = request.headers.getall("Last-Event-ID", []) or request.query.getall("last_event_id", [])
    if len(given) > 1:
        raise ProblemError(Kind.BAD_REQUEST, "Last-Event-ID is sent once.")
    return given[0] if given and given[0] else None


def follows(request: web.Request) -> bool:
    """Return whether a stream goes on after what there is by now: not with `?follow=false`. Raises a 400 problem."""
    given = request.query.getall("follow", ["true"])
    if len(given) > 1 or given[0] not in ("true", "false"):
        raise ProblemError(Kind.BAD_REQUEST, "follow is true or false, given once.")
    return given[0] == "true"


def refuse_query_but(request: web.Request, *known: str) -> None:
    """Raise a 400 problem for a query that has anything else."""
    for name in request.query if request.query_string else ():
        if name not in known:
            raise ProblemError(Kind.BAD_REQUEST, f"The query parameter {name[:80]!r} is not known here.")


def trace_of(request: web.Request) -> TraceContext | None:
    """Return where the client's trace goes on, if it sent a `traceparent` that is one; of two neither is heeded."""
    given = request.headers.getall("traceparent", ())
    return trace_context_in(given[0]) if len(given) == 1 else None


def trace_id_of(request: web.Request) -> str:
    """Return the id of the client's trace, or nothing."""
    trace = trace_of(request)
    return "" if trace is None else trace.trace_id
