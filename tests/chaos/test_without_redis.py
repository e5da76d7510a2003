"""Redis stands still, and then is gone, for half a minute each under load: nobody who writes is told of it."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import pytest
from redis.asyncio import Redis

from anabranch.deploy.local.redis import LocalRedis
from anabranch.deploy.local.services import anabranch_services
from anabranch.deploy.local.stack import LocalStack
from anabranch.shared.contracts.topics import DEFAULT_PREFIX
from anabranch.shared.runtime.redis import RedisKeys
from anabranch.shared.runtime.settings import Settings
from tests.support.diamond import diamond
from tests.support.flood import Observer, faults_of
from tests.support.one_service import eventually

_OUTAGE_S: Final = 30.0
_LIMIT: Final = 90  # a minute, of each client
_CLIENTS: Final = 12  # who stay below it
_PERIOD_S: Final = 1.2  # between two submissions of each: 50 a minute
_WITHIN_S: Final = 600.0  # all of it takes less than two minutes where nothing hangs
_DIAMOND: Final = diamond("simulate")


class Writers:
    """Clients that write through one gateway, each known by the address that a trusted proxy names."""

    def __init__(self, stack: LocalStack) -> None:
        self._stack = stack
        self.statuses: Counter[int] = Counter()
        self.accepted: dict[str, int] = {}
        self._number = 0
        self._stopping = asyncio.Event()
        self._writing: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(self._stack.gateway_url)
        self._writing = [asyncio.create_task(self._keep_writing(number)) for number in range(_CLIENTS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._writing:
            task.cancel()
        await asyncio.gather(*self._writing, return_exceptions=True)
        await self._http.close()

    async def stop(self) -> None:
        """Let everybody end what he is at; raise what went wrong."""
        self._stopping.set()
        await asyncio.gather(*self._writing)

    async def submit(self, address: str, **headers: str) -> int:
        """Submit a diamond and return the status of the answer."""
        self._number += 1
        number, body = self._number, {"definition": _DIAMOND, "inputs": {"n": self._number}}
        sent = {"X-Forwarded-For": address, **headers}
        async with self._http.post("/v1/runs", json=body, headers=sent) as answer:
            self.statuses[answer.status] += 1
            if answer.status == 202:
                self.accepted[(await answer.json())["id"]] = number
            return answer.status

    async def submit_batch(self, address: str) -> int:
        """Submit two diamonds in one request."""
        numbers = [self._number + 1, self._number + 2]
        self._number += 2
        runs = [{"definition": _DIAMOND, "inputs": {"n": number}} for number in numbers]
        async with self._http.post(
            "/v1/runs:batch", json={"runs": runs}, headers={"X-Forwarded-For": address}
        ) as answer:
            self.statuses[answer.status] += 1
            for number, result in zip(numbers, (await answer.json()).get("results", ()), strict=False):
                assert "run" in result, result
                self.accepted[result["run"]["id"]] = number
            return answer.status

    async def until_limited(self, address: str) -> int:
        """Submit as one client until that is too much; return how often it was not."""
        for count in range(3 * _LIMIT):
            if await self.submit(address) == 429:
                return count
        return 3 * _LIMIT

    async def metric(self, name: str) -> float:
        """Return a sample of the gateway's metrics; 0 when there is none."""
        async with self._http.get("/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)

    async def _keep_writing(self, client: int) -> None:
        address, turn = f"198.51.100.{client}", 0
        while not self._stopping.is_set():
            turn += 1
            await self._write(address, turn)
            await asyncio.sleep(_PERIOD_S)  # a steady load, which stays below the limit

    async def _write(self, address: str, turn: int) -> None:
        match turn % 5:
            case 0:
                await self.submit_batch(address)
            case 1 | 2:
                await self.submit(address, **{"Idempotency-Key": f"{address}-{turn}"})
            case _:
                await self.submit(address)


@asynccontextmanager
async def standing_still(redis: LocalRedis) -> AsyncIterator[None]:
    """SIGSTOP: connections stay, and nobody answers on them."""
    redis.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        redis.signal(signal.SIGCONT)


@asynccontextmanager
async def gone(redis: LocalRedis) -> AsyncIterator[None]:
    """SIGKILL, and a new start on the same port."""
    await redis.kill()
    yield
    await redis.start()


_OUTAGES: Final[dict[str, Callable[[LocalRedis], Any]]] = {"stands still": standing_still, "is gone": gone}
_FAILED: Final = 'anabranch_gateway_redis_errors_total{use="rate_limit"}'


async def test_writing_goes_on_without_redis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No 5xx, a client beyond its limit is refused all the same, and afterwards Redis is used again by itself."""
    env = {"ANABRANCH_RATE_LIMIT": str(_LIMIT), "ANABRANCH_TRUSTED_PROXIES": "127.0.0.0/8"}
    stack = LocalStack(tmp_path, port=0, services=anabranch_services(), role_env={"gateway": env}, ready_timeout_s=120)
    async with asyncio.timeout(_WITHIN_S), AsyncExitStack() as opened:
        await opened.enter_async_context(stack)
        assert stack.redis is not None
        settings = Settings(kafka_bootstrap_servers=stack.bootstrap, redis_url=stack.redis_url)
        observer = await opened.enter_async_context(Observer(settings, "simulate"))
        writers = await opened.enter_async_context(Writers(stack))
        pids = {name: pid for name, pid in stack.processes.items() if name != "redis"}
        await _until_counted_in_redis(stack, writers, "192.0.2.1")
        for number, (what, outage) in enumerate(_OUTAGES.items()):
            failed, ended = await writers.metric(_FAILED), len(observer.seen.ended)
            async with outage(stack.redis):
                until_s = time.monotonic() + _OUTAGE_S
                taken = await writers.until_limited(f"203.0.113.{number}")
                await asyncio.sleep(max(0.0, until_s - time.monotonic()))  # the half minute
                counted = await writers.metric(_FAILED) - failed
                went_on = len(observer.seen.ended) - ended
            await _until_counted_in_redis(stack, writers, f"192.0.2.{number + 2}")
            with capsys.disabled():
                print(f"\nRedis {what}: {dict(writers.statuses)}, {taken} before 429, {counted:.0f} falls back")
            assert _LIMIT <= taken < 3 * _LIMIT
            assert counted >= 1
            assert went_on > 0
        await writers.stop()
        accepted = writers.accepted
        await observer.until(lambda seen: accepted.keys() <= seen.ended.keys(), "accepted runs have not ended", 120)
        assert faults_of(observer.seen, accepted) == []
        assert set(writers.statuses) == {200, 202, 429}, writers.statuses
        assert writers.statuses[429] == len(_OUTAGES), "a client below its limit was refused"
        assert {name: pid for name, pid in stack.processes.items() if name != "redis"} == pids


async def _until_counted_in_redis(stack: LocalStack, writers: Writers, address: str) -> None:
    """Wait until what a client sends is counted where all gateways count."""
    key = RedisKeys(DEFAULT_PREFIX).rate_limit("change", "default", address)
    redis = Redis.from_url(stack.redis_url)
    try:

        async def is_counted() -> bool:
            if await redis.exists(key):
                return True
            assert await writers.submit(address) == 202
            await asyncio.sleep(1)  # as often as the gateway asks Redis again
            return False

        await eventually(is_counted)
    finally:
        await redis.aclose()
