"""Part 4: one line per request, with nothing in it that is anybody's secret."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.unit.gateway.fakes import a_gateway

SECRET = "s3cret-4711"


async def test_a_request_is_one_line_without_secrets() -> None:
    """Its query, headers and body are not in it; its ids are."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {
        "Authorization": f"Bearer {SECRET}", "Cookie": SECRET, "X-Request-ID": "mine-1",
        "traceparent": f"00-{trace}-00f067aa0ba902b7-01", "Idempotency-Key": SECRET,
    }  # fmt: skip
    with capture_logs() as logged:
        async with a_gateway(request_log=1) as gateway:
            answer = await gateway.submit(labels={"a": SECRET}, headers=headers)
            run_id = (await answer.json())["id"]
            await gateway.client.get(f"/v1/runs/x?token={SECRET}")
            await gateway.client.get(f"/{SECRET}?{SECRET}")
    submitted, read, nowhere = [line for line in logged if line["event"] == "answered"]
    assert submitted | {"duration_ms": 0} == {
        "event": "answered", "log_level": "info", "method": "POST", "route": "/v1/runs", "status": 202,
        "duration_ms": 0, "bytes": submitted["bytes"], "client": "127.0.0.1", "tenant": "default",
        "request_id": "mine-1", "run_id": run_id, "trace_id": trace,
    }  # fmt: skip
    assert submitted["bytes"] > 10
    assert (read["route"], read["status"]) == ("/v1/runs/{id}", 400)
    assert (nowhere["route"], nowhere["status"]) == ("unmatched", 404)
    assert SECRET not in repr(logged)


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "<script>", "ä"])
async def test_an_odd_request_id_is_replaced(given: str) -> None:
    """It would stand in a log and in an answer."""
    async with a_gateway() as gateway:
        answer = await gateway.client.get("/nowhere", headers={"X-Request-ID": given})
    assert answer.headers["X-Request-ID"] not in ("", given)


@pytest.mark.parametrize(("share", "lines"), [(0, 0), (0.25, 2), (1, 8)])
async def test_lines_are_sampled_or_off(share: float, lines: int) -> None:
    """Evenly."""
    logged: list[Any]
    with capture_logs() as logged:
        async with a_gateway(request_log=share) as gateway:
            for _ in range(8):
                await gateway.client.get("/v1/step-types")
    assert len([line for line in logged if line["event"] == "answered"]) == lines
