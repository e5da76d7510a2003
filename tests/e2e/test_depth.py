"""Values as deep as anybody may send them, on a real stack whose orchestrators change hands while they are held."""

import asyncio
import os
import signal
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio

from anabranch.deploy.local.ports import free_port
from anabranch.deploy.local.redis import LocalRedis
from anabranch.deploy.local.services import anabranch_services
from anabranch.deploy.local.stack import LocalStack
from anabranch.shared.contracts.limits import MAX_NESTING
from tests.hostile.zoo import a_zoo, animal

pytestmark = pytest.mark.timeout(400)

WITHIN_S = 120.0
COPIES = 6  # of every run: they lie in several partitions
HELD = "6s"  # how long a run holds what it has while orchestrators come and go


@pytest_asyncio.fixture
async def zoo() -> Any:
    """The URL of a server that answers JSON of any depth."""
    async with a_zoo() as url:
        yield url


def nested(levels: int, inner: Any = 1) -> Any:
    """Return a value within so many lists."""
    return reduce(lambda value, _: [value], range(levels), inner)


def fetching(zoo: str, levels: int) -> dict[str, Any]:
    """Return a run that fetches JSON of so many levels, holds it for a while, and hands it on."""
    url = zoo + animal(200, "application/json", f"deep-{levels}")
    steps = {
        "fetch": {"uses": "http", "with": {"url": url}},
        "hold": {"uses": "simulate", "needs": ["fetch"], "with": {"sleep": HELD}},
        "after": {"uses": "transform", "needs": ["hold", "fetch"], "with": {"value": "${{ steps.fetch.output.json }}"}},
    }
    return {"name": f"fetching-{levels}", "steps": steps, "outputs": {"status": "${{ steps.fetch.output.status }}"}}


def wrapping(levels: int) -> dict[str, Any]:
    """Return a run of four transforms that each wrap what the one before gave in so many lists."""
    names = ("first", "second", "third", "fourth")
    steps: dict[str, Any] = {
        name: {
            "uses": "transform",
            "needs": [before] if before else [],
            "with": {"value": nested(levels, f"${{{{ steps.{before}.output }}}}" if before else 1)},
        }
        for before, name in zip(("", *names), names, strict=False)
    }
    hold = {"uses": "simulate", "needs": ["first"], "with": {"sleep": HELD}}
    steps["second"]["needs"] = ["first", "hold"]
    return {"name": f"wrapping-{levels}", "steps": steps | {"hold": hold}}


class Client:
    """Asks the gateway."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def submit(self, definition: Mapping[str, Any]) -> str:
        body = {"definition": definition}
        async with self._session.post(f"{self._url}/v1/runs", json=body) as answer:
            assert answer.status == 202, await answer.text()
            return str((await answer.json())["id"])

    async def run(self, run_id: str, wait: str = "0s") -> dict[str, Any]:
        async with self._session.get(f"{self._url}/v1/runs/{run_id}", params={"wait": wait}) as answer:
            assert answer.status == 200, await answer.text()
            return dict(orjson.loads(await answer.read()))

    async def ended(self, run_id: str) -> dict[str, Any]:
        async with asyncio.timeout(WITHIN_S):
            while (run := await self.run(run_id, "10s"))["status"] in ("accepted", "running"):
                pass
        return run

    async def until_held(self, run_id: str) -> None:
        """Return when the deep value is held: the step beside it runs."""
        async with asyncio.timeout(WITHIN_S):
            while (run := await self.run(run_id))["steps"].get("hold", {}).get("status") != "running":
                assert run["status"] in ("accepted", "running"), run
                await asyncio.sleep(0.05)

    async def events(self, run_id: str) -> list[dict[str, Any]]:
        """Return the run's events, as the record has them."""
        async with self._session.get(f"{self._url}/v1/runs/{run_id}/events") as answer:
            assert answer.status == 200, await answer.text()
            lines = (await answer.read()).split(b"\n")
        return [orjson.loads(line[5:]) for line in lines if line.startswith(b"data:")]


async def test_deep_values_end_clearly_and_whoever_takes_over_goes_on(tmp_path: Path, zoo: str) -> None:
    """What is too deep is one step's error or no value of it; partitions go on by hand-over, death and restart."""
    definitions = {f"fetching-{levels}": fetching(zoo, levels) for levels in (63, 64, 65, 253)}
    definitions |= {f"wrapping-{levels}": wrapping(levels) for levels in (16, 50)}
    services = anabranch_services()
    async with (
        asyncio.timeout(300),
        LocalStack(tmp_path, services=services, port=free_port()) as stack,
        aiohttp.ClientSession() as session,
    ):
        client = Client(stack.gateway_url, session)
        runs = {name: [await client.submit(each) for _ in range(COPIES)] for name, each in definitions.items()}
        everybody = [run_id for of_one in runs.values() for run_id in of_one]
        await asyncio.gather(*(client.until_held(run_id) for run_id in everybody))

        await stack.add("orchestrator")  # half of the partitions are handed over
        for name in stack.names("orchestrator"):  # and all of them taken over, from each
            pid = stack.service(name).pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(WITHIN_S):
                while stack.service(name).pid in (None, pid):
                    await asyncio.sleep(0.05)
                await stack.service(name).until_ready()
        others = [await client.submit(wrapping(1)) for _ in range(2 * COPIES)]

        seen = {run_id: await client.ended(run_id) for run_id in (*everybody, *others)}
        for levels in (63, 64, 65, 253):
            for run_id in runs[f"fetching-{levels}"]:
                check_fetched(seen[run_id], levels)
        for run_id in runs["wrapping-16"]:
            assert seen[run_id]["status"] == "succeeded", seen[run_id]["error"]
            assert seen[run_id]["steps"]["fourth"]["output"] == nested(MAX_NESTING - 1, [1])
        for run_id in runs["wrapping-50"]:
            assert seen[run_id]["status"] == "failed"
            error = seen[run_id]["error"]
            assert error["type"] == "PayloadTooLarge"
            assert error["message"] == f"step second: its output is nested deeper than {MAX_NESTING} levels"
            assert seen[run_id]["steps"]["first"]["output"] == nested(50)
        assert {seen[run_id]["status"] for run_id in others} == {"succeeded"}

        assert isinstance(stack.redis, LocalRedis)
        await stack.redis.kill()  # the record answers alone, or Redis that comes back empty
        for run_id, run in seen.items():
            assert await client.run(run_id) == run
            events = await client.events(run_id)
            assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
            assert events[-1]["status"] == run["status"]
        async with session.get(f"{stack.gateway_url}/v1/doctor") as answer:
            found = {each["check"]: each["says"] for each in (await answer.json())["findings"]}
        assert "dead letters" in found


def check_fetched(run: Mapping[str, Any], levels: int) -> None:
    """The body is there as text whatever it is, as a value only when all of the output stays within the limit."""
    assert run["status"] == "succeeded", run["error"]
    assert run["outputs"] == {"status": 200}
    output = run["steps"]["fetch"]["output"]
    fits = levels < MAX_NESTING  # the answer lies one level deep in the output
    value = nested(levels - 1, []) if fits else None
    assert output["json"] == value
    assert output["body"] == "[" * levels + "]" * levels
    assert run["steps"]["after"]["output"] == value
