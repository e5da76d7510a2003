"""Redis is emptied, then killed, while 500 runs are live and 500 have ended: every read by id is right at once."""

import asyncio
import signal
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import func, select

from anabranch.deploy.local.services import anabranch_services
from anabranch.deploy.local.stack import LocalStack
from anabranch.shared.record.database import open_database
from anabranch.shared.record.tables import RUNS
from tests.chaos.test_read_side import a_record
from tests.support.diamond import diamond, right_outputs
from tests.support.one_service import eventually

_EACH: Final = 500
_WITHIN_S: Final = 600.0
_ROLES: Final = frozenset({"gateway", "orchestrator", "history", "simulate"})
_ENV: Final = {"ANABRANCH_RATE_LIMIT": "0", "ANABRANCH_READ_RATE_LIMIT": "0", "ANABRANCH_CONCURRENCY": "2000"}
_SLEEP: Final = "20s"  # of each of the three steps in a row: longer than all that is done to Redis takes
_AT_ONCE: Final = 64

Runs = dict[str, int]
"""Runs, each with its input."""


class Reader:
    """Reads runs by id, many at once, and counts what it was answered."""

    def __init__(self, http: aiohttp.ClientSession, ended: Runs, live: Runs) -> None:
        self._http = http
        self._ended = ended
        self._live = live
        self._gate = asyncio.Semaphore(_AT_ONCE)

    async def wrong(self) -> Counter[str]:
        """Read every run once; count what was not right. A live run may not end meanwhile."""
        found: Counter[str] = Counter()

        async def read(run_id: str, number: int | None) -> None:
            async with self._gate, self._http.get(f"/v1/runs/{run_id}") as answer:
                said = await answer.json(content_type=None)
            if number is None and (answer.status, said.get("status")) != (200, "running"):
                found[f"a live run: {answer.status} {said.get('status')} {said.get('detail', '')[:200]}"] += 1
            elif number is not None and (answer.status, said.get("outputs")) != (200, right_outputs(number)):
                found[f"an ended run: {answer.status} {said.get('status')} {said.get('detail', '')[:200]}"] += 1

        runs = [*self._ended.items(), *((run_id, None) for run_id in self._live)]
        await asyncio.gather(*(read(*each) for each in runs))
        return found


async def _submitted(http: aiohttp.ClientSession, numbers: Iterable[int], **extra: Any) -> Runs:
    numbers = list(numbers)
    runs = [{"definition": diamond("simulate", **extra), "inputs": {"n": number}} for number in numbers]
    async with http.post("/v1/runs:batch", json={"runs": runs}) as answer:
        results = (await answer.json())["results"]
    return {each["run"]["id"]: number for each, number in zip(results, numbers, strict=True)}


async def _wait_for(http: aiohttp.ClientSession, runs: Runs) -> None:
    """Wait until all have ended as they must."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def wait(run_id: str, number: int) -> None:
        said: dict[str, Any] = {}
        while not said.get("finished_at"):
            async with gate, http.get(f"/v1/runs/{run_id}?wait=60s") as answer:
                said = await answer.json()
                assert answer.status == 200, said
        assert (said["status"], said["outputs"]) == ("succeeded", right_outputs(number))

    await asyncio.gather(*(wait(*each) for each in runs.items()))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_every_read_is_right_while_redis_is_emptied_killed_and_back(kind: str, tmp_path: Path) -> None:
    """No 404, no `accepted` and no older state, whether Redis is empty, away, or back without what it had."""
    services = [each for each in anabranch_services() if each.role in _ROLES]
    async with asyncio.timeout(_WITHIN_S), a_record(kind, tmp_path) as (url, _):
        stack = LocalStack(tmp_path / "home", port=0, services=services, database_url=url, env=_ENV)
        async with stack, aiohttp.ClientSession(stack.gateway_url) as http:
            ended = await _submitted(http, range(_EACH))
            await _wait_for(http, ended)
            live = await _submitted(http, range(_EACH), sleep=_SLEEP)
            await eventually(lambda: _is_recorded(url, {"succeeded": _EACH, "running": _EACH}), within_s=60)
            reader = Reader(http, ended, live)
            redis = Redis.from_url(stack.redis_url)
            assert await redis.dbsize() > _EACH
            await redis.flushall()
            await redis.aclose()
            faults = {"emptied": await reader.wrong()}
            faults["a moment later"] = await reader.wrong()
            await _kill_redis(stack)
            faults["killed"] = await reader.wrong()
            await eventually(lambda: _answers(stack.redis_url), within_s=60)
            faults["back"] = await reader.wrong()
            assert not any(faults.values()), faults
            await _wait_for(http, live)


async def _kill_redis(stack: LocalStack) -> None:
    assert stack.redis is not None
    stack.redis.signal(signal.SIGKILL)


async def _is_recorded(url: str, expected: dict[str, int]) -> bool:
    database = open_database(url, name="test", connections=1)
    try:
        async with database.connect() as connection:
            counted = await connection.execute(select(RUNS.c.status, func.count()).group_by(RUNS.c.status))
            return dict(tuple(row) for row in counted) == expected
    finally:
        await database.dispose()


async def _answers(url: str) -> bool:
    redis = Redis.from_url(url)
    try:
        return bool(await redis.ping())
    except (RedisError, OSError):
        return False
    finally:
        await redis.aclose()
