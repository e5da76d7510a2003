"""A gateway of a few lines: it validates like the real one, and its runs walk through the scripts they are given."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from anabranch.shared.contracts.report import InvalidPipeline
from anabranch.shared.contracts.source import Source, SourceError, parse_source
from anabranch.shared.contracts.validation import validate_pipeline

AT = "2026-01-31T12:00:00.000000Z"
LATER = "2026-01-31T12:00:01.500000Z"

Script = list[dict[str, Any]]


def a_step(status: str = "succeeded", **fields: Any) -> dict[str, Any]:
    """A step as the gateway shows it."""
    times = {"queued_at": AT} if status != "pending" else {}
    times |= {"started_at": AT, "finished_at": LATER} if status in ("succeeded", "failed", "timed_out") else {}
    return {"uses": "simulate", "status": status, "attempt": 1, "output": None, "error": None, **times, **fields}


def a_run(status: str = "succeeded", **fields: Any) -> dict[str, Any]:
    """A run as the gateway shows it."""
    ended = {"finished_at": LATER} if status in ("succeeded", "failed", "timed_out", "cancelled") else {}
    return {"status": status, "pipeline": "demo", "created_at": AT, "steps": {}, "labels": {}, **ended, **fields}


def a_problem(status: int, title: str, **fields: Any) -> web.Response:
    """An answer that says no."""
    problem = {"type": "about:blank", "title": title, "status": status, **fields}
    return web.json_response(problem, status=status, content_type="application/problem+json")


class FakeGateway:
    """Answers from scripts. Each look at a run shows the next state of its script, the last one for ever."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or [a_run("running"), a_run(outputs={"answer": 42})]
        self.runs: dict[str, Script] = {}
        self.submissions: list[dict[str, Any]] = []
        self.keys: dict[str, str] = {}
        self.waits: list[str | None] = []
        self.next_answers: list[Callable[[], web.Response]] = []
        self.app = web.Application()
        self.app.add_routes(
            [
                web.post("/v1/runs", self._submit),
                web.get("/v1/runs/{id}", self._show),
                web.post("/v1/runs/{id}/cancel", self._cancel),
                web.post("/v1/pipelines:validate", self._validate),
                web.get("/v1/step-types", self._step_types),
            ]
        )

    async def _submit(self, request: web.Request) -> web.Response:
        if self.next_answers:
            return self.next_answers.pop(0)()
        body = await request.json()
        key = request.headers.get("Idempotency-Key")
        try:
            validate_pipeline(Source(body["definition"]))
        except InvalidPipeline as error:
            errors = [{"pointer": f"/definition{e.pointer}", "message": e.message, "line": 1} for e in error.errors]
            return a_problem(422, "Invalid pipeline", errors=errors)
        if "wrong" in body["inputs"]:
            fault = {"pointer": "/inputs/wrong", "message": "the pipeline has no input 'wrong'", "line": 1, "column": 9}
            return a_problem(422, "Invalid inputs", errors=[fault])
        self.submissions.append(body)
        run_id = self.keys.get(key or "") or f"run-{len(self.submissions)}"
        if key:
            self.keys[key] = run_id
        self.runs[run_id] = list(self.script)
        accepted = {"id": run_id, "status": "accepted"}
        return web.json_response(accepted, status=202, headers={"Location": f"/v1/runs/{run_id}"})

    async def _show(self, request: web.Request) -> web.Response:
        if self.next_answers:
            return self.next_answers.pop(0)()
        self.waits.append(request.query.get("wait"))
        run_id = request.match_info["id"]
        script = self.runs.get(run_id)
        if script is None:
            return a_problem(404, "No such run", detail=f"there is no run {run_id}")
        state = script.pop(0) if len(script) > 1 else script[0]
        return web.json_response({"id": run_id, **state})

    async def _cancel(self, request: web.Request) -> web.Response:
        run_id = request.match_info["id"]
        if run_id not in self.runs:
            return a_problem(404, "No such run", detail=f"there is no run {run_id}")
        status = self.runs[run_id][0]["status"]
        if status != "running":
            return a_problem(409, "Not possible now", detail=f"it has ended: {status}", id=run_id, run_status=status)
        return web.json_response({"id": run_id, "status": status}, status=202)

    async def _validate(self, request: web.Request) -> web.Response:
        try:
            validate_pipeline(parse_source(await request.read(), request.content_type))
        except SourceError as error:
            return a_problem(400, "Unreadable", detail=str(error))
        except InvalidPipeline as error:
            faults = [
                {"pointer": e.pointer, "message": e.message, "line": e.line, "column": e.column} for e in error.errors
            ]
            return a_problem(422, "Invalid pipeline", errors=faults)
        return web.json_response({"valid": True})

    async def _step_types(self, _request: web.Request) -> web.Response:
        return web.json_response({"step_types": [{"name": "simulate", "version": "1", "input_schema": {}}]})


@contextmanager
def served(gateway: FakeGateway) -> Iterator[str]:
    """Serve a gateway from a thread of its own, so that a command may run its own event loop; yield its URL."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(gateway.app, shutdown_timeout=0.1)

    async def start() -> str:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    thread = threading.Thread(target=loop.run_forever, name="fake gateway")
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result(5)
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()
