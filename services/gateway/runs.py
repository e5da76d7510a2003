"""Handlers of runs."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from typing import Final

import orjson
from aiohttp import web

from anabranch.services.gateway import keys
from anabranch.services.gateway.body import ClientLeft, media_type_of
from anabranch.services.gateway.client import client_of, is_heard, tenant_of
from anabranch.services.gateway.intake import Accepted, Request
from anabranch.services.gateway.problems import Kind, ProblemError, unavailable
from anabranch.services.gateway.reads import EndNotReadable, ReadsBusy, ReadsUnavailable, RunView
from anabranch.services.gateway.requests import (
    ANY_STATE,
    idempotency_key_of,
    known_states,
    refuse_query,
    wait_s_of,
)
from anabranch.services.gateway.tracing import trace_for, trace_for_message
from anabranch.services.gateway.waiting import Watch, until_ended
from anabranch.shared.contracts.ids import cancel_id, new_run_id, run_id_for_key, span_id
from anabranch.shared.contracts.limits import KIB
from anabranch.shared.runtime.deadline import Deadline
from anabranch.shared.runtime.snapshots import ACCEPTED, ENDED_STATUSES

_JSON: Final = "application/json"
_PIECE_BYTES: Final = 256 * KIB  # of a large document: what the transport copies at a time
_SENDING_S: Final = 60.0  # for a large document: others wait for its room


async def submit_run(request: web.Request) -> web.StreamResponse:
    """`POST /v1/runs`: 202 when Kafka has acknowledged the run; with `?wait=`, 200 with the run when it has ended."""
    app = request.app
    settings = app[keys.SETTINGS]
    wait_s = wait_s_of(request, settings.max_wait_s)
    key = idempotency_key_of(request)
    tenant = tenant_of(request)
    media_type = media_type_of(request)
    app[keys.PRESSURE].refuse_if_high()
    refuse_before_step_types_are_known(app)
    body = await app[keys.BODIES].read(request)
    submission = await app[keys.READER].submission(body, media_type)
    run_id = new_run_id() if key is None else run_id_for_key(tenant, key)
    request[keys.RUN_ID] = run_id
    submitted = Request(run_id, submission, tenant, key, trace_for(request, run_id))
    deadline = Deadline.after(wait_s or 0)
    watches = app[keys.WATCHES]
    client = client_of(request)
    with watches.watching(run_id, client) if wait_s and not watches.full_for(client) else nullcontext() as watch:
        accepted = await app[keys.INTAKE].accept(submitted)
        if watch is None:
            return _accepted(run_id, accepted)
        if key is None:
            watch.seen_open()
        else:  # it may be known, and its run may have ended long ago
            watch.look()
        try:
            return await _when_ended(request, run_id, watch, deadline, partial(_answer_to_submit, accepted=accepted))
        except ReadsUnavailable:
            return _accepted(run_id, accepted)  # it was accepted all the same


async def _answer_to_submit(
    request: web.Request, run_id: str, size: int | None, *, accepted: Accepted
) -> web.StreamResponse:
    async with request.app[keys.READS].view(run_id, tenant_of(request), size=size) as view:
        if view is None:
            return _accepted(run_id, accepted)
        headers = _location(run_id) | _stale(request, run_id, view)
        return await _sent(request, view, 200 if view.has_ended else 202, headers)


async def get_run(request: web.Request) -> web.StreamResponse:
    """`GET /v1/runs/{id}`: the run document; with `?wait=`, when the run has ended or the time is up."""
    app = request.app
    run_id = run_id_of(request)
    tenant = tenant_of(request)
    wait_s = wait_s_of(request, app[keys.SETTINGS].max_wait_s)
    try:
        if wait_s and await app[keys.READS].is_open(run_id, tenant):
            client = client_of(request)
            if app[keys.WATCHES].full_for(client):
                raise ProblemError(Kind.TOO_MANY, "Too many requests wait for runs.", retry_after_s=1)
            with app[keys.WATCHES].watching(run_id, client) as watch:
                watch.look()  # it may have ended meanwhile, and others may have been told
                return await _when_ended(request, run_id, watch, Deadline.after(wait_s), _answer_to_get)
        return await _answer_to_get(request, run_id, None)
    except ReadsUnavailable as error:
        raise not_readable(error) from error


async def _answer_to_get(request: web.Request, run_id: str, size: int | None) -> web.StreamResponse:
    known = known_states(request)
    async with request.app[keys.READS].view(run_id, tenant_of(request), size=size, known=known) as view:
        if view is None:
            raise no_run(run_id)
        request[keys.RUN_ID] = run_id
        headers = {"ETag": f'"{view.etag}"'} | _stale(request, run_id, view)
        if view.etag in known or ANY_STATE in known:
            return web.Response(status=304, headers=headers | {"Vary": "Accept-Encoding"})
        return await _sent(request, view, 200, headers)


async def cancel_run(request: web.Request) -> web.Response:
    """`POST /v1/runs/{id}/cancel`: 202 when Kafka has acknowledged it, however often; 409 when the run has ended."""
    app = request.app
    refuse_query(request)
    run_id = run_id_of(request)
    status = await _status_to_cancel(app, run_id, tenant_of(request))
    if status is None:
        raise no_run(run_id)
    request[keys.RUN_ID] = run_id
    if status in ENDED_STATUSES:
        raise ProblemError(
            Kind.CONFLICT,
            f"The run has ended already: {status.replace('_', ' ')}.",
            members={"id": run_id, "run_status": status},
        )
    app[keys.PRESSURE].refuse_if_no_way()
    await app[keys.INTAKE].cancel(run_id, trace_for_message(request, span_id(cancel_id(run_id))))
    return _accepted(run_id, Accepted(status))


async def _status_to_cancel(app: web.Application, run_id: str, tenant: str) -> str | None:
    """Return the status of the tenant's run, None for any other; what was accepted here needs no Redis."""
    try:
        return await app[keys.READS].status_of(run_id, tenant)
    except ReadsUnavailable as error:
        if app[keys.READS].has_accepted(run_id, tenant):
            return ACCEPTED
        raise not_readable(error) from error


def run_id_of(request: web.Request) -> str:
    """Return the id in the request's path."""
    return request.match_info["id"].lower()  # hexadecimal digits may be capitals (RFC 9562 §4)


def no_run(run_id: str) -> ProblemError:
    """Return the problem that there is no such run, or that it is somebody else's."""
    return ProblemError(Kind.NOT_FOUND, f"No run {run_id[:64]!r} is known.")


async def _when_ended(
    request: web.Request,
    run_id: str,
    watch: Watch,
    deadline: Deadline,
    answer: Callable[[web.Request, str, int | None], Awaitable[web.StreamResponse]],
) -> web.StreamResponse:
    """Return the answer with the run when it has ended or the time is up. Raises `ReadsUnavailable`."""
    reads = request.app[keys.READS]
    size = None
    while True:
        await until_ended(watch, run_id, reads, deadline, connected=lambda: is_heard(request))
        told = watch.take_end()
        size = size if told is None else told
        try:
            return await answer(request, run_id, size)
        except EndNotReadable:
            if deadline.passed or watch.released or not is_heard(request):
                raise
            size = 0  # whatever else is said, it has ended


def not_readable(error: ReadsUnavailable) -> ProblemError:
    """Return the problem that a run cannot be read now."""
    if isinstance(error, ReadsBusy):
        return unavailable("Too many large runs are being read.", retry_after_s=5)
    return unavailable(f"Runs cannot be read now: {error}.", retry_after_s=1)


async def _sent(request: web.Request, view: RunView, status: int, headers: dict[str, str]) -> web.StreamResponse:
    """Return the answer with the run; a large one is sent here already, while it has its room."""
    if not view.is_large or request.method == "HEAD":
        return web.Response(body=view.body, status=status, content_type=_JSON, headers=headers)
    response = web.StreamResponse(status=status, headers=headers)
    response.content_type = _JSON
    response.content_length = len(view.body)
    try:
        async with asyncio.timeout(_SENDING_S):
            await response.prepare(request)
            whole = memoryview(view.body)
            for start in range(0, len(whole), _PIECE_BYTES):
                await response.write(whole[start : start + _PIECE_BYTES])
            await response.write_eof()
    except (ConnectionError, TimeoutError) as error:
        if request.transport is not None:
            request.transport.abort()
        raise ClientLeft from error
    return response


def _accepted(run_id: str, accepted: Accepted) -> web.Response:
    return web.Response(
        body=orjson.dumps({"id": run_id, "status": accepted.status}),
        status=200 if accepted.status in ENDED_STATUSES else 202,
        content_type=_JSON,
        headers=_location(run_id),
    )


def _stale(request: web.Request, run_id: str, view: RunView) -> dict[str, str]:
    """Return the header of a read that is behind; of a run that has ended nothing is missing."""
    return {} if view.has_ended else request.app[keys.STALENESS].headers(run_id, view.source)


def _location(run_id: str) -> dict[str, str]:
    return {"Location": f"/v1/runs/{run_id}"}


def refuse_before_step_types_are_known(app: web.Application) -> None:
    """Raise a 503 problem as long as nobody can say what may run."""
    if not app[keys.STEP_TYPES].complete:
        app[keys.METRICS].run_refused("starting")
        raise unavailable("The step types are still being read.", retry_after_s=1)
