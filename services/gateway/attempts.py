"""The attempts of a step: what the record alone knows."""

from typing import Any

import orjson
from aiohttp import web

from anabranch.services.gateway import keys
from anabranch.services.gateway.body import JSON
from anabranch.services.gateway.client import tenant_of
from anabranch.services.gateway.problems import Kind, ProblemError
from anabranch.services.gateway.reads import ReadsUnavailable, RunReads, Source
from anabranch.services.gateway.requests import refuse_query
from anabranch.services.gateway.runs import no_run, not_readable, run_id_of
from anabranch.shared.contracts.times import rfc3339
from anabranch.shared.record.reading import Attempt


async def get_attempts(request: web.Request) -> web.Response:
    """`GET /v1/runs/{id}/steps/{step}/attempts`: every attempt of a step, the first one first, with its times."""
    app = request.app
    refuse_query(request)
    run_id, step, tenant = run_id_of(request), request.match_info["step"], tenant_of(request)
    if app[keys.RECORD] is None:
        raise ProblemError(Kind.UNAVAILABLE, "No record of runs is kept here: DATABASE_URL is not set.")
    try:
        attempts = await app[keys.READS].attempts(run_id, step, tenant)
        if attempts is None:
            await _refuse_unknown(app[keys.READS], run_id, step, tenant)
    except ReadsUnavailable as error:
        raise not_readable(error) from error
    request[keys.RUN_ID] = run_id
    document = {"id": run_id, "step": step, "attempts": [_document(each) for each in attempts or ()]}
    headers = app[keys.STALENESS].headers(run_id, Source.RECORD)
    return web.Response(body=orjson.dumps(document), content_type=JSON, headers=headers)


async def _refuse_unknown(reads: RunReads, run_id: str, step: str, tenant: str) -> None:
    """Return if the step is one of a run that is known, but not recorded yet; else raise a 404 problem."""
    async with reads.view(run_id, tenant) as view:
        if view is None:
            raise no_run(run_id)
        if step not in orjson.loads(view.body)["steps"]:
            raise ProblemError(Kind.NOT_FOUND, f"The run {run_id} has no step {step[:64]!r}.")


def _document(attempt: Attempt) -> dict[str, Any]:
    return {
        "attempt": attempt.attempt,
        "status": attempt.status,
        "queued_at": _shown(attempt.queued_at),
        "started_at": _shown(attempt.started_at),
        "finished_at": _shown(attempt.finished_at),
        "queued_ms": attempt.queued_ms,
        "ran_ms": attempt.ran_ms,
        "error": None if attempt.error is None else orjson.Fragment(attempt.error),
    }


def _shown(at_ms: int | None) -> str | None:
    return None if at_ms is None else rfc3339(at_ms)
