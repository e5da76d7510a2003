"""A gateway on fakes of its ports, served over real HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import AppRunner
from aiokafka.structs import RecordMetadata, TopicPartition
from prometheus_client import CollectorRegistry
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.stdlib import get_logger

from anabranch.services.gateway import keys as app_keys
from anabranch.services.gateway.api_keys import ApiKeys
from anabranch.services.gateway.app import create_app
from anabranch.services.gateway.body import Bodies
from anabranch.services.gateway.cache import RunCache
from anabranch.services.gateway.followers import Followers
from anabranch.services.gateway.intake import Intake
from anabranch.services.gateway.issuer import Issuer, IssuerKeys
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.pressure import Pressure
from anabranch.services.gateway.rate_limit import OwnCounts, RateLimits, Window
from anabranch.services.gateway.reads import AcceptedRuns, RunReads
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.services.gateway.staleness import Staleness
from anabranch.services.gateway.step_types import StepTypes
from anabranch.services.gateway.tokens import Tokens
from anabranch.services.gateway.tracing import RequestSpans
from anabranch.services.gateway.waiting import Watches
from anabranch.shared.contracts.codec import Headers
from anabranch.shared.contracts.messages import INBOX, StepTypeAnnounced, SubmitRun
from anabranch.shared.record.reading import RecordReader
from anabranch.shared.runtime.listener import Listener
from anabranch.shared.runtime.ops import Readiness, add_ops_routes
from anabranch.shared.runtime.redis import RedisKeys
from anabranch.shared.runtime.tls import ServerCertificate

BROKER_MS = 1_769_860_800_000

DIAMOND: dict[str, Any] = {
    "name": "diamond",
    "inputs": {"n": {"type": "integer", "default": 1}},
    "steps": {
        "a": {"uses": "simulate", "with": {"value": "${{ inputs.n }}"}},
        "b": {"uses": "simulate", "needs": ["a"], "with": {"value": 1}},
        "c": {"uses": "simulate", "needs": ["a"], "with": {"value": 2}},
        "d": {"uses": "simulate", "needs": ["a"], "with": {"value": 3}},
        "e": {"uses": "transform", "needs": ["b", "c", "d"], "with": {"value": "${{ steps.a.output.value }}"}},
    },
    "outputs": {"sum": "${{ steps.e.output }}"},
}


class FakeLog:
    """Kafka's inbox: acknowledges at once, or fails, or never answers."""

    def __init__(self) -> None:
        self.unacknowledged = 0
        self.unacknowledged_bytes = 0
        self.records: list[tuple[int, bytes | None, bytes]] = []
        self.headers: list[Headers] = []
        self.error: Exception | None = None
        self.hangs = False
        self.holds: asyncio.Event | None = None  # what acknowledges, when it is set
        self.weighs = 0  # bytes that each record is on its way for ever with

    def append_and_wait(
        self, topic: str, partition: int, key: Any, value: Any, headers: Any
    ) -> "asyncio.Future[RecordMetadata]":
        if self.error is not None:
            raise self.error
        self.records.append((partition, key, value))
        self.headers.append(headers)
        self.unacknowledged_bytes += self.weighs
        place = TopicPartition(topic, partition)
        where = RecordMetadata(topic, partition, place, len(self.records), BROKER_MS, 1, 0)
        done: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        if self.holds is not None:
            waits = asyncio.create_task(self.holds.wait(), name="held append")
            waits.add_done_callback(lambda _: done.done() or done.set_result(where))
        elif not self.hangs:
            done.set_result(where)
        return done

    @property
    def submitted(self) -> list[SubmitRun]:
        messages = [INBOX.validate_json(value) for _, _, value in self.records]
        return [message for message in messages if isinstance(message, SubmitRun)]


class FakeRedis:
    """Hashes and strings in memory; `down` refuses everything."""

    def __init__(self) -> None:
        self.hashes: dict[str, dict[bytes, bytes]] = {}
        self.strings: dict[str, bytes] = {}
        self.down = False
        self.stands_still: asyncio.Event | None = None  # what lets it go on, when it is set
        self.calls = 0

    def _answer(self) -> None:
        self.calls += 1
        if self.down:
            raise RedisConnectionError("down")

    async def hgetall(self, key: str) -> dict[bytes, bytes]:
        self._answer()
        return dict(self.hashes.get(key, {}))

    async def hget(self, key: str, name: str) -> bytes | None:
        self._answer()
        return self.hashes.get(key, {}).get(name.encode())

    async def hmget(self, key: str, names: list[str]) -> list[bytes | None]:
        return [await self.hget(key, name) for name in names]

    async def memory_usage(self, key: str, samples: int) -> int | None:
        self._answer()
        found = self.hashes.get(key)
        return None if found is None else sum(len(name) + len(value) + 64 for name, value in found.items())

    def pipeline(self, transaction: bool) -> "_FakePipeline":
        return _FakePipeline(self)


class _FakePipeline:
    def __init__(self, redis: FakeRedis) -> None:
        self._redis = redis
        self._answers: list[Any] = []

    def set(self, key: str, value: str, *, nx: bool, get: bool, ex: int) -> None:
        assert nx and get and ex > 0
        self._answers.append(self._redis.strings.get(key))
        if not self._redis.down:
            self._redis.strings.setdefault(key, value.encode())

    def hmget(self, key: str, names: list[str]) -> None:
        self._answers.append([self._redis.hashes.get(key, {}).get(name.encode()) for name in names])

    def hget(self, key: str, name: str) -> None:
        self._answers.append(self._redis.hashes.get(key, {}).get(name.encode()))

    def hgetall(self, key: str) -> None:
        self._answers.append(dict(self._redis.hashes.get(key, {})))

    def memory_usage(self, key: str, samples: int) -> None:
        found = self._redis.hashes.get(key)
        size = None if found is None else sum(len(name) + len(value) + 64 for name, value in found.items())
        self._answers.append(size)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        self._redis._answer()
        if self._redis.stands_still is not None:
            await self._redis.stands_still.wait()
        return self._answers


class FakeCounts(OwnCounts):
    """Redis as the counter that gateways share."""

    def __init__(self, redis: FakeRedis) -> None:
        super().__init__()
        self._redis = redis

    async def take(self, key: str, limit: int, amount: int) -> Window:
        self._redis._answer()
        return await super().take(key, limit, amount)


class Bench:
    """One gateway, and everything around it."""

    def __init__(self, client: TestClient[Any, Any], **parts: Any) -> None:
        self.client = client
        self.__dict__.update(parts)

    log: FakeLog
    redis: FakeRedis
    keys: RedisKeys
    staleness: Staleness
    watches: Watches
    followers: Followers
    bodies: Bodies
    api_keys: ApiKeys
    pressure: Pressure
    step_types: StepTypes
    registry: CollectorRegistry
    settings: GatewaySettings

    async def submit(
        self, definition: Any = DIAMOND, *, query: str = "", headers: dict[str, str] | None = None, **rest: Any
    ) -> Any:
        body = orjson.dumps({"definition": definition, **rest})
        return await self.post(body, query=query, headers=headers)

    async def post(
        self, body: Any, media_type: str = "application/json", *, query: str = "", headers: dict[str, str] | None = None
    ) -> Any:
        sent = {"Content-Type": media_type, **(headers or {})}
        return await self.client.post("/v1/runs" + query, data=body, headers=sent)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"anabranch_gateway_{name}", labels) or 0


def announced(name: str, **properties: Any) -> StepTypeAnnounced:
    return StepTypeAnnounced(name=name, version="1", input_schema={"type": "object", **properties}, output_schema={})


class _Server(TestServer):
    """Runs the application as a service does: a handler goes on when its client goes away."""

    async def _make_runner(self, **_: Any) -> AppRunner:
        return Listener(self.app)


@asynccontextmanager
async def a_gateway(
    redis: FakeRedis | None = None,
    *,
    monotonic_s: Callable[[], float] = time.monotonic,
    certificate: Callable[[GatewayMetrics], ServerCertificate] | None = None,
    record: AsyncEngine | None = None,
    spans: RequestSpans | None = None,
    **overrides: Any,
) -> AsyncIterator[Bench]:
    unlimited = {"rate_limit": 0, "read_rate_limit": 0, "auth_failure_limit": 0, "request_log": 0}
    settings = GatewaySettings(instance="test", **(unlimited | overrides))
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    step_types = StepTypes()
    for name in ("simulate", "http"):
        step_types.announce(announced(name))
    step_types.complete = True
    api_keys = ApiKeys()
    api_keys.complete = True
    issuer = Issuer(settings.jwt_issuer, settings.jwt_jwks_url)
    issuer_keys = IssuerKeys(issuer.keys, settings.jwt_allowed, metrics, get_logger(), monotonic_s=monotonic_s)
    log, redis, keys = FakeLog(), redis or FakeRedis(), RedisKeys("pipelines")
    pressure = Pressure(log, settings, metrics)
    pressure.measured(0)
    accepted = AcceptedRuns()
    cache = RunCache(redis, keys, metrics, ended_ttl_s=settings.snapshot_ttl_s, is_all=record is None)  # type: ignore[arg-type]
    reads = RunReads(cache, RecordReader(record) if record else None, accepted, metrics)
    staleness = Staleness(settings.run_partitions, metrics)
    watches = Watches(settings.max_waiters, metrics, max_of_client=settings.max_waiters_of_client)
    followers = Followers(settings.max_streams, settings.max_streams_of_client, metrics)
    app = create_app(
        settings=settings, log=get_logger(), metrics=metrics, step_types=step_types, pressure=pressure,
        intake=Intake(log, reads, accepted, settings, metrics, now_s=time.time), reads=reads, record=record,
        staleness=staleness, watches=watches, followers=followers,
        rate_limits=RateLimits(FakeCounts(redis), keys, settings, metrics),
        api_keys=api_keys, tokens=Tokens(issuer_keys, settings),
        certificate=certificate(metrics) if certificate else None, spans=spans,
    )  # fmt: skip
    add_ops_routes(app, Readiness(), registry)
    async with TestClient(_Server(app)) as client:
        yield Bench(
            client, log=log, redis=redis, keys=keys, staleness=staleness, watches=watches, followers=followers,
            pressure=pressure, step_types=step_types, registry=registry, settings=settings,
            bodies=app[app_keys.BODIES], api_keys=api_keys,
        )  # fmt: skip


async def problem(response: Any) -> dict[str, Any]:
    """Return the problem document of an answer that must be one."""
    assert response.content_type == "application/problem+json", await response.text()
    document: dict[str, Any] = await response.json(content_type=None)
    assert document["status"] == response.status
    assert {"type", "title", "status", "detail", "instance"} <= document.keys()
    return document
