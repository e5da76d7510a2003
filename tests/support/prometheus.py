"""Questions to a Prometheus that runs."""

import re
import time
from typing import Any, Final

import aiohttp
import pytest

from anabranch.deploy.local.prometheus import binary

needs_prometheus: Final = pytest.mark.skipif(
    binary() is None, reason="Prometheus is not installed: run deploy/prometheus/install.sh"
)


async def ask(session: aiohttp.ClientSession, url: str, query: str) -> list[Any]:
    """Return the samples of a query."""
    async with session.get(f"{url}/api/v1/query", params={"query": query}) as answer:
        said = await answer.json()
    assert said["status"] == "success", said
    found: list[Any] = said["data"]["result"]
    return found


async def firing(session: aiohttp.ClientSession, url: str) -> set[str]:
    """Return the names of the alerts that fire."""
    found = await ask(session, url, 'ALERTS{alertstate="firing"}')
    return {sample["metric"]["alertname"] for sample in found}


def asked_as_of_grafana(expr: str) -> str:
    """Return a panel's query with its variables filled in."""
    return re.sub(r"\$(uses|instance)\b", ".*", expr.replace("$__rate_interval", "1m"))


async def points(session: aiohttp.ClientSession, url: str, query: str, *, last_s: float, step_s: float) -> list[float]:
    """Return the values of every series of a query in the last so many seconds."""
    now_s = time.time()
    asked = {"query": query, "start": f"{now_s - last_s}", "end": f"{now_s}", "step": f"{step_s}"}
    async with session.get(f"{url}/api/v1/query_range", params=asked) as answer:
        said = await answer.json()
    assert said["status"] == "success", said
    return [float(value) for series in said["data"]["result"] for _, value in series["values"]]
