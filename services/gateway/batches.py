"""Many runs in one request: each is read, counted, accepted or refused as if it had been sent alone."""

from typing import Any

import orjson
from aiohttp import web

from anabranch.services.gateway import keys
from anabranch.services.gateway.answering import occurrence
from anabranch.services.gateway.body import JSON, media_type_of
from anabranch.services.gateway.client import tenant_of
from anabranch.services.gateway.intake import Accepted, Request
from anabranch.services.gateway.problems import Kind, ProblemError
from anabranch.services.gateway.rate_limit import take_more
from anabranch.services.gateway.reading import Submission
from anabranch.services.gateway.requests import refuse_query
from anabranch.services.gateway.runs import refuse_before_step_types_are_known
from anabranch.services.gateway.tracing import trace_for_batched
from anabranch.shared.contracts.ids import new_run_id, run_id_for_key
from anabranch.shared.runtime.snapshots import ENDED_STATUSES


async def submit_batch(request: web.Request) -> web.Response:
    """`POST /v1/runs:batch`: 200 with what became of each run, when Kafka has acknowledged all that were accepted."""
    app = request.app
    refuse_query(request)
    _refuse_what_single_runs_have(request)
    app[keys.PRESSURE].refuse_if_high()
    refuse_before_step_types_are_known(app)
    found = await app[keys.READER].batch(await app[keys.BODIES].read(request))
    runs = {number: _request(request, run) for number, run in enumerate(found) if isinstance(run, Submission)}
    room, too_many = await _room(request, len(runs))
    within = list(runs)[:room]
    accepted = await app[keys.INTAKE].accept_all([runs[number] for number in within], app[keys.PRESSURE].refuse_if_high)
    outcomes = dict(zip(within, accepted, strict=True))
    results = []
    for number, run in enumerate(found):
        outcome = run if isinstance(run, ProblemError) else outcomes.get(number, too_many)
        assert outcome is not None, "what is not within the limit has its problem"
        results.append(_result(outcome, runs.get(number)))
    count = sum("run" in result for result in results)
    document = {"accepted": count, "refused": len(results) - count, "results": results}
    return web.Response(body=orjson.dumps(document), content_type=JSON)


def _refuse_what_single_runs_have(request: web.Request) -> None:
    if media_type_of(request) != JSON:
        raise ProblemError(
            Kind.UNSUPPORTED_MEDIA_TYPE, "A batch is sent as application/json.", headers={"Accept-Post": JSON}
        )
    if "Idempotency-Key" in request.headers:
        raise ProblemError(Kind.BAD_REQUEST, "Each run of a batch has a key of its own: `idempotency_key`.")


def _request(request: web.Request, run: Submission) -> Request:
    tenant = tenant_of(request)
    run_id = new_run_id() if run.key is None else run_id_for_key(tenant, run.key)
    return Request(run_id, run, tenant, run.key, trace_for_batched(request, run_id))


async def _room(request: web.Request, count: int) -> tuple[int, ProblemError | None]:
    """Return how many runs may be submitted, and the problem of the others; one is counted with the request itself."""
    if not count:
        return 0, None
    more, too_many = await take_more(request, count - 1)
    return 1 + more, too_many


def _result(outcome: Accepted | ProblemError, run: Request | None) -> dict[str, Any]:
    if isinstance(outcome, Accepted):
        assert run is not None, "it was read"
        status = 200 if outcome.status in ENDED_STATUSES else 202
        return {"status": status, "run": {"id": run.run_id, "status": outcome.status}}
    result: dict[str, Any] = {"status": outcome.kind.status, "problem": outcome.document(occurrence())}
    if "Retry-After" in outcome.headers:
        result["retry_after"] = int(outcome.headers["Retry-After"])
    return result
