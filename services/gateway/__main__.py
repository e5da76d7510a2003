"""The gateway: `python -m anabranch.services.gateway`. The one place that wires it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from aiohttp import web

from anabranch.services.gateway.api_keys import ApiKeyReader, ApiKeys
from anabranch.services.gateway.app import create_app
from anabranch.services.gateway.cache import RunCache
from anabranch.services.gateway.command_lag import CommandLagWatch
from anabranch.services.gateway.followers import Followers
from anabranch.services.gateway.intake import Intake
from anabranch.services.gateway.issuer import Issuer, IssuerKeys
from anabranch.services.gateway.key_uses import KeyUses
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.pressure import LagWatch, Pressure
from anabranch.services.gateway.rate_limit import RateLimits, SharedCounts
from anabranch.services.gateway.reads import AcceptedRuns, RunReads
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.services.gateway.staleness import Staleness, StalenessWatch
from anabranch.services.gateway.step_types import CommandTopicWatch, StepTypeReader, StepTypes
from anabranch.services.gateway.tokens import Tokens
from anabranch.services.gateway.tracing import RequestSpans
from anabranch.services.gateway.waiting import ChannelListener, Watches
from anabranch.shared.contracts.topics import API_KEYS, DEFINITIONS, STEP_TYPES
from anabranch.shared.record.database import open_database
from anabranch.shared.record.reading import RecordReader
from anabranch.shared.runtime.clients import new_admin, stop_consumer
from anabranch.shared.runtime.deadline import Deadline
from anabranch.shared.runtime.descriptors import allow_descriptors
from anabranch.shared.runtime.kafka import (
    Outbox,
    ensure_topics,
    new_consumer,
    new_follower,
    new_producer,
    wait_for_kafka,
)
from anabranch.shared.runtime.redis import RedisKeys, new_redis
from anabranch.shared.runtime.service import Service, run_service
from anabranch.shared.runtime.tls import ServerCertificate

_KAFKA_WITHIN_S: Final = 60.0
_OTHER_DESCRIPTORS: Final = 256  # beside connections: to Kafka and Redis, and files


class Gateway:
    """The parts of one gateway process."""

    def __init__(self, service: Service[GatewaySettings]) -> None:
        settings, metrics = service.settings, GatewayMetrics(service.registry)
        self._service = service
        self._settings = settings
        self._redis = new_redis(settings)
        self._outbox = Outbox(settings)
        self._step_types = StepTypes()
        self._pressure = Pressure(self._outbox, settings, metrics)
        self._watches = Watches(settings.max_waiters, metrics, max_of_client=settings.max_waiters_of_client)
        url = settings.database_url
        self._record = open_database(url, name=settings.instance) if url else None
        keys, accepted = RedisKeys(settings.topic_prefix), AcceptedRuns()
        cache = RunCache(self._redis, keys, metrics, ended_ttl_s=settings.snapshot_ttl_s, is_all=self._record is None)
        reader = RecordReader(self._record) if self._record else None
        reads = RunReads(cache, reader, accepted, metrics)
        staleness = Staleness(settings.run_partitions, metrics)
        self._followers = Followers(settings.max_streams, settings.max_streams_of_client, metrics)
        self._listener = ChannelListener(
            self._redis, keys, self._watches, self._followers, metrics=metrics, log=service.log
        )
        self._announcements = new_follower(settings)
        self._type_reader = StepTypeReader(
            self._announcements, settings.topics.step_types, self._step_types, metrics=metrics, log=service.log
        )
        self._use_records = new_producer(settings)
        self._key_uses = KeyUses(self._use_records, settings.topics.api_keys, service.log)
        self._api_keys = ApiKeys(used=self._key_uses.note)
        self._key_records = new_follower(settings)
        self._key_reader = ApiKeyReader(self._key_records, settings.topics.api_keys, self._api_keys, service.log)
        issuer = Issuer(settings.jwt_issuer, settings.jwt_jwks_url)
        self._issuer_keys = IssuerKeys(issuer.keys, settings.jwt_allowed, metrics, service.log)
        self._topics_admin = new_admin(settings)
        self._topic_watch = CommandTopicWatch(self._topics_admin, settings.topics, self._step_types, service.log)
        self._offsets = new_consumer(settings)
        self._admin = new_admin(settings)
        self._command_lag = CommandLagWatch(
            self._offsets,
            self._admin,
            step_types=self._step_types,
            settings=settings,
            metrics=metrics,
            log=service.log,
        )
        self._lag = LagWatch(self._offsets, self._admin, self._pressure, settings, service.log)
        self._stale = StalenessWatch(
            self._offsets, cache, reader, staleness=staleness, pressure=self._pressure, settings=settings
        )
        self._certificate = _certificate(service, metrics)
        self.app = create_app(
            settings=settings,
            log=service.log,
            metrics=metrics,
            step_types=self._step_types,
            pressure=self._pressure,
            intake=Intake(self._outbox, reads, accepted, settings, metrics),
            reads=reads,
            record=self._record,
            staleness=staleness,
            watches=self._watches,
            followers=self._followers,
            rate_limits=RateLimits(SharedCounts(self._redis), keys, settings, metrics),
            api_keys=self._api_keys,
            tokens=Tokens(self._issuer_keys, settings),
            certificate=self._certificate,
            spans=None if service.spans is None else RequestSpans(service.spans),
        )
        _say_who_is_let_in(service)
        _allow_connections(service)
        service.ready_when("API keys", lambda: self._api_keys.complete or "still being read")
        service.ready_when("step types", lambda: self._step_types.complete or "still being read")
        service.ready_when("inbox", lambda: self._pressure.inbox_exists or "not created by the orchestrator yet")

    async def run(self) -> None:
        """Serve until the service stops."""
        await self._service.unless_stopping(wait_for_kafka(self._settings, Deadline.after(_KAFKA_WITHIN_S)))
        await ensure_topics(
            self._settings,
            [(topic, topic.name(self._settings.topic_prefix)) for topic in (STEP_TYPES, DEFINITIONS, API_KEYS)],
        )
        try:
            await self._outbox.start()
            await self._announcements.start()
            await self._key_records.start()
            await self._use_records.start()
            await self._offsets.start()
            await self._admin.start()
            await self._topics_admin.start()
            await self._serve()
        finally:
            await self._close()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:

            def start(work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
                return tasks.create_task(work, name=name)

            running = [
                start(self._type_reader.follow(), "read step types"),
                start(self._key_reader.follow(), "read API keys"),
                start(self._key_uses.write(), "write when API keys were used"),
                start(self._topic_watch.watch(), "watch command topics"),
                start(self._lag.watch(), "watch the inbox's lag"),
                start(self._command_lag.watch(), "watch the lag of commands"),
                start(self._stale.watch(), "watch how far behind reads are"),
                start(self._listener.listen(), "listen to run channels"),
                start(_until_failed(self._outbox), "watch the outbox"),
            ]
            if self._settings.takes_tokens:
                running.append(start(self._issuer_keys.follow(), "read the issuer's keys"))
            if self._certificate is not None:
                running.append(start(self._certificate.watch(self._settings.tls_check_s), "watch the certificate"))
            await self._service.stopping.wait()
            self._watches.release_all()
            self._followers.close()
            await self._service.stop_listening()
            for task in running:
                task.cancel()

    async def _close(self) -> None:
        await stop_consumer(self._announcements)
        await stop_consumer(self._key_records)
        await self._use_records.stop()
        await stop_consumer(self._offsets)
        await self._admin.close()
        await self._topics_admin.close()
        await self._redis.aclose()
        if self._record is not None:
            await self._record.dispose()
        await self._outbox.stop(self._service.deadline)


def _certificate(service: Service[GatewaySettings], metrics: GatewayMetrics) -> ServerCertificate | None:
    settings = service.settings
    if not settings.tls_certificate:
        return None
    return ServerCertificate(
        settings.tls_certificate, settings.tls_key, log=service.log, replaced=metrics.certificate_replaced
    )


def _say_who_is_let_in(service: Service[GatewaySettings]) -> None:
    if service.settings.asks:
        service.log.info("authentication is on", auth=service.settings.auth)
    else:
        service.log.warning("authentication is off: everybody who reaches this may do all", auth=service.settings.auth)


def _allow_connections(service: Service[GatewaySettings]) -> None:
    wanted = service.settings.max_connections + _OTHER_DESCRIPTORS
    allowed = allow_descriptors(wanted)
    if allowed < wanted:
        service.log.warning("the limit of open files is lower than that of connections", allowed=allowed, wanted=wanted)


async def _until_failed(outbox: Outbox) -> None:
    await outbox.failed


class _Process:
    """Lets the application and `main`, which are asked for one after the other, share their gateway."""

    def __init__(self) -> None:
        self._gateway: Gateway | None = None

    def app(self, service: Service[GatewaySettings]) -> web.Application:
        self._gateway = Gateway(service)
        return self._gateway.app

    async def main(self, service: Service[GatewaySettings]) -> None:
        assert self._gateway is not None, "run_service asks for the application first"
        await self._gateway.run()


if __name__ == "__main__":
    process = _Process()
    run_service("gateway", GatewaySettings(), process.main, app=process.app)
