"""Handlers that look for runs and for figures of them: both ask the record."""

import time
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, Final

import orjson
from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.services.gateway import keys
from anabranch.services.gateway.body import JSON
from anabranch.services.gateway.client import tenant_of
from anabranch.services.gateway.problems import Kind, ProblemError, unavailable
from anabranch.services.gateway.requests import refuse_query_but
from anabranch.shared.contracts.durations import DurationError, parse_duration
from anabranch.shared.contracts.limits import MAX_PAGE_RUNS, MAX_SEARCHED_TEXT_CHARS, MAX_SEARCHED_VALUES
from anabranch.shared.contracts.times import rfc3339
from anabranch.shared.record.errors import RecordUnavailable
from anabranch.shared.record.rows import searched
from anabranch.shared.record.search import STATUSES, Filter, FoundRun, Place, RunSearch, UnreadableCursor
from anabranch.shared.record.statistics import Figures, RecordStatistics

_PAGE_RUNS: Final = 50
_WINDOW: Final = "24h"
_FILTERS: Final = (
    "status", "pipeline", "revision", "since", "until", "label", "input", "error_type", "text",
)  # fmt: skip


async def search_runs(request: web.Request) -> web.Response:
    """`GET /v1/runs`: the tenant's runs that are asked for, the newest first, a page at a time."""
    refuse_query_but(request, *_FILTERS, "limit", "cursor", "counts")
    wanted, most = _filter_of(request), _limit_of(request)
    behind, counted = _place_of(request), _flag_of(request, "counts")
    search, tenant = RunSearch(_record_of(request)), tenant_of(request)

    async def ask() -> bytes:
        page = await search.page(tenant, wanted, most=most, behind=behind)
        counts = await search.counts(tenant, wanted) if counted else None
        document: dict[str, Any] = {
            "runs": [_listed(run) for run in page.runs],
            "next_cursor": page.next.cursor() if page.next else None,
        }
        if counts is not None:
            document |= {"counts": counts.by_status, "counts_are_all": counts.are_all}
        return orjson.dumps(document)

    try:
        return await _answered(request, ask)
    except RecordUnavailable as error:
        raise unavailable(f"Runs cannot be looked for now: {error}.", retry_after_s=1) from error


async def read_statistics(request: web.Request) -> web.Response:
    """`GET /v1/statistics`: how long the tenant's runs or their steps took, and how often they failed."""
    refuse_query_but(request, "pipeline", "since", "by")
    by = _one_of(request, "by")
    by = "pipeline" if by is None else by
    if by not in ("pipeline", "step"):
        raise ProblemError(Kind.BAD_REQUEST, "by is pipeline or step.")
    since_ms = _time_of(request, "since", _WINDOW)
    assert since_ms is not None
    statistics = RecordStatistics(_record_of(request))
    figures_of = statistics.of_steps if by == "step" else statistics.of_pipelines
    tenant, pipeline = tenant_of(request), _one_of(request, "pipeline")

    async def ask() -> bytes:
        found = await figures_of(tenant, since_ms=since_ms, pipeline=pipeline)
        document = {
            "since": rfc3339(since_ms),
            "looked_at": found.looked_at,
            "is_all": found.is_all,
            "statistics": [_shown(figures) for figures in found.figures],
        }
        return orjson.dumps(document)

    try:
        return await _answered(request, ask)
    except RecordUnavailable as error:
        raise unavailable(f"Figures cannot be had now: {error}.", retry_after_s=1) from error


async def _answered(request: web.Request, ask: Callable[[], Coroutine[Any, Any, bytes]]) -> web.Response:
    question = (tenant_of(request), request.path, request.query_string)
    body = await request.app[keys.RECENT_ANSWERS].answer(question, ask)
    headers = request.app[keys.STALENESS].headers_of_list()
    return web.Response(body=body, content_type=JSON, headers=headers)


def _listed(run: FoundRun) -> dict[str, Any]:
    times = {name: getattr(run, name) for name in ("created_at", "started_at", "finished_at")}
    return {
        "id": run.run_id,
        "pipeline": run.pipeline,
        "revision": run.revision,
        "status": run.status,
        "labels": run.labels,
        **{name: None if at is None else rfc3339(at) for name, at in times.items()},
        "error_type": run.error_type,
    }


def _shown(figures: Figures) -> dict[str, Any]:
    of_step = {"step": figures.step} if figures.step else {}
    return {
        "pipeline": figures.pipeline,
        **of_step,
        "ended": figures.ended,
        "failed": figures.failed,
        "failure_rate": round(figures.failure_rate, 6),
        "p50_ms": figures.p50_ms,
        "p95_ms": figures.p95_ms,
    }


def _record_of(request: web.Request) -> AsyncEngine:
    record = request.app[keys.RECORD]
    if record is None:
        raise ProblemError(Kind.UNAVAILABLE, "No record of runs is kept here: DATABASE_URL is not set.")
    return record


def _filter_of(request: web.Request) -> Filter:
    statuses = tuple(dict.fromkeys(request.query.getall("status", [])))
    if unknown := [each for each in statuses if each not in STATUSES]:
        raise ProblemError(Kind.BAD_REQUEST, f"status is one of {', '.join(STATUSES)}, not {unknown[0][:40]!r}.")
    values = _values_of(request, "label") + _values_of(request, "input")
    if len(values) > MAX_SEARCHED_VALUES:
        raise ProblemError(Kind.BAD_REQUEST, f"label and input are given {MAX_SEARCHED_VALUES} times at most.")
    text = _one_of(request, "text")
    if text is not None and not 1 <= len(text) <= MAX_SEARCHED_TEXT_CHARS:
        raise ProblemError(Kind.BAD_REQUEST, f"text is 1 to {MAX_SEARCHED_TEXT_CHARS} characters.")
    revision = _one_of(request, "revision")
    return Filter(
        statuses=statuses,
        pipeline=_one_of(request, "pipeline"),
        revision=None if revision is None else _whole_number("revision", revision, 0, 2**31 - 1),
        since_ms=_time_of(request, "since"),
        until_ms=_time_of(request, "until"),
        values=values,
        error_type=_one_of(request, "error_type"),
        text=text,
    )


def _values_of(request: web.Request, kind: str) -> tuple[tuple[str, str], ...]:
    found = []
    for given in request.query.getall(kind, []):
        name, equals, value = given.partition("=")
        if not equals or not name:
            raise ProblemError(Kind.BAD_REQUEST, f"{kind} is name=value, not {given[:80]!r}.")
        found.append((searched(f"{kind}:{name}"), searched(value)))
    return tuple(found)


def _limit_of(request: web.Request) -> int:
    given = _one_of(request, "limit")
    return _PAGE_RUNS if given is None else _whole_number("limit", given, 1, MAX_PAGE_RUNS)


def _place_of(request: web.Request) -> Place | None:
    given = _one_of(request, "cursor")
    try:
        return None if given is None else Place.of(given)
    except UnreadableCursor as error:
        raise ProblemError(Kind.BAD_REQUEST, "cursor is the next_cursor of a page before, as it was.") from error


def _flag_of(request: web.Request, name: str) -> bool:
    given = _one_of(request, name)
    if given not in (None, "true", "false"):
        raise ProblemError(Kind.BAD_REQUEST, f"{name} is true or false.")
    return given == "true"


def _time_of(request: web.Request, name: str, default: str | None = None) -> int | None:
    """Return milliseconds since the epoch of a time (RFC 3339), or of so long ago (`15m`, `7d`)."""
    given = _one_of(request, name)
    given = default if given is None else given
    if given is None:
        return None
    for read in _READINGS:
        try:
            return read(given)
        except (DurationError, ValueError, OverflowError):
            continue
    raise ProblemError(Kind.BAD_REQUEST, f"{name} is a time like 2026-01-31T12:00:00Z, or so long ago like 15m or 7d.")


def _ago(given: str) -> int:
    return max(0, round(1000 * (time.time() - parse_duration(given))))


def _at(given: str) -> int:
    at = datetime.fromisoformat(given)
    if at.tzinfo is None:
        raise ValueError("a time without its zone")
    return max(0, round(1000 * at.timestamp()))


_READINGS: Final[tuple[Callable[[str], int], ...]] = (_ago, _at)


def _whole_number(name: str, given: str, least: int, most: int) -> int:
    if not (given.isascii() and given.isdigit() and len(given) <= len(str(most)) and least <= int(given) <= most):
        raise ProblemError(Kind.BAD_REQUEST, f"{name} is a whole number from {least} to {most}.")
    return int(given)


def _one_of(request: web.Request, name: str) -> str | None:
    given = request.query.getall(name, [])
    if len(given) > 1:
        raise ProblemError(Kind.BAD_REQUEST, f"{name} is given once.")
    return given[0] if given else None
