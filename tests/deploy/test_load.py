"""The load of a trial on Kubernetes: what it takes for right, what it tries again, and what it reports."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from anabranch.deploy.k8s import load
from anabranch.deploy.k8s.load import Load, right_outputs


class Gateway:
    """Answers submissions with what a test has prepared, then 202; and every run with one document."""

    def __init__(self) -> None:
        self.before_202: list[web.Response] = []
        self.before_run: list[web.Response] = []
        self.keys: list[str] = []
        self.run: dict[str, Any] = {"status": "succeeded", "outputs": right_outputs(7)}

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes([web.post("/v1/runs", self._submit), web.get("/v1/runs/r1", self._read)])
        return app

    async def _submit(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers["Idempotency-Key"])
        return self.before_202.pop(0) if self.before_202 else web.json_response({"id": "r1"}, status=202)

    async def _read(self, _: web.Request) -> web.Response:
        return self.before_run.pop(0) if self.before_run else web.json_response(self.run)


@pytest_asyncio.fixture
async def gateway() -> AsyncIterator[tuple[Gateway, Load]]:
    gateway = Gateway()
    async with TestServer(gateway.app()) as server, aiohttp.ClientSession(server.make_url("/")) as session:
        yield gateway, Load(session, "test")


async def test_a_right_end_is_no_fault(gateway: tuple[Gateway, Load]) -> None:
    _, runs = gateway
    await runs.one(7)
    assert (runs.ends, runs.faults) == ({"right": 1}, [])


async def test_wrong_outputs_are_a_fault(gateway: tuple[Gateway, Load]) -> None:
    served, runs = gateway
    served.run["outputs"] = right_outputs(8)
    await runs.one(7)
    assert runs.ends == {"wrong": 1}
    assert len(runs.faults) == 1


async def test_503_with_retry_after_is_tried_again_with_the_same_key(gateway: tuple[Gateway, Load]) -> None:
    served, runs = gateway
    served.before_202.append(web.Response(status=503, headers={"Retry-After": "0"}))
    await runs.one(7)
    assert served.keys == ["test-7", "test-7"]
    assert (runs.ends, runs.faults) == ({"right": 1}, [])
    assert runs.answers["POST 503 with Retry-After"] == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_any_other_failure_is_a_fault_even_if_the_next_try_works(
    gateway: tuple[Gateway, Load], status: int
) -> None:
    served, runs = gateway
    served.before_202.append(web.Response(status=status))
    await runs.one(7)
    assert runs.ends == {"right": 1}
    assert runs.faults == [f"POST /v1/runs: {status}"]


async def test_a_run_that_is_not_known_yet_is_asked_for_again(gateway: tuple[Gateway, Load]) -> None:
    served, runs = gateway
    served.before_run.append(web.Response(status=404))
    await runs.one(7)
    assert runs.answers["GET 404"] == 1
    assert (runs.ends, runs.faults) == ({"right": 1}, [])


async def test_a_run_that_does_not_end_is_a_fault(
    gateway: tuple[Gateway, Load], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, runs = gateway
    served.run["status"] = "running"
    monkeypatch.setattr(load, "PATIENCE_S", 0.2)
    async with asyncio.timeout(10):
        await runs.one(7)
    assert runs.faults == ["run 7 did not end: r1"]
