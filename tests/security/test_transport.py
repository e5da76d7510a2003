"""Part 9, towards Kafka and Redis: TLS and logins, on a real broker that lets nobody in without them."""

import asyncio
import os
import ssl
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio
from aiokafka.structs import TopicPartition
from redis.exceptions import ConnectionError as RedisConnectionError

from anabranch.deploy.local.services import anabranch_services
from anabranch.deploy.local.stack import LocalStack
from anabranch.services.steps.last_words import say_last_words
from anabranch.shared.contracts.topics import CONTROL
from anabranch.shared.runtime.clients import new_admin, new_consumer, wait_for_kafka
from anabranch.shared.runtime.deadline import Deadline
from anabranch.shared.runtime.errors import KafkaRefused, KafkaUnreachable
from anabranch.shared.runtime.kafka import Outbox, ensure_topics
from anabranch.shared.runtime.redis import RedisKeys, new_redis
from anabranch.shared.runtime.settings import Settings
from anabranch.shared.runtime.topic_reader import TopicReader
from tests.security.certificates import Certificates
from tests.security.secured import PASSWORD, USER, SecuredKafka, SecuredRedis, a_token, secured

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

Servers = tuple[SecuredKafka, SecuredRedis]
PREFIXES: Iterator[int] = count()
LOGIN = {"kafka_sasl_username": USER, "kafka_sasl_password": PASSWORD}
PASSED = Deadline.after(0)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Servers]:
    async with secured(tmp_path_factory.mktemp("secured")) as both:
        yield both


def settings_for(servers: Servers, **others: Any) -> Settings:
    kafka, redis = servers
    given = {
        "kafka_bootstrap_servers": kafka.sasl,
        "kafka_security_protocol": "SASL_SSL",
        "kafka_ssl_cafile": kafka.certificates.ca,
        "redis_url": redis.url,
        "redis_ssl_cafile": kafka.certificates.ca,
        "topic_prefix": f"secured{next(PREFIXES)}",
    }
    return Settings(**(given | others))


def a_file(folder: Path, text: str) -> str:
    path = folder / "secret"
    path.write_text(text)
    return str(path)


async def ran(*arguments: str, **env: str) -> tuple[int | None, str]:
    """Return how a Python ended and what it said."""
    given = {**os.environ, **env}
    child = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=given, stdout=PIPE, stderr=STDOUT)
    try:
        async with asyncio.timeout(60):
            words = (await child.communicate())[0].decode()
    finally:
        if child.returncode is None:
            child.kill()
    return child.returncode, words


async def goes_through(settings: Settings) -> None:
    """Everything that a service does with Kafka: admin, topics, producer, consumer, `TopicReader`."""
    await wait_for_kafka(settings, Deadline.after(60))
    topic = settings.topics.control
    await ensure_topics(settings, [(CONTROL, topic)])
    outbox, admin = Outbox(settings), new_admin(settings)
    await outbox.start()
    outbox.append(topic, 0, b"k", b"v", ())
    await outbox.acknowledged()
    await outbox.stop()
    await admin.start()
    assert topic in await admin.list_topics()
    await admin.close()
    async with new_consumer(settings) as consumer, asyncio.timeout(60):
        consumer.assign([TopicPartition(topic, 0)])
        await consumer.seek_to_beginning()
        assert (await consumer.getone()).value == b"v"
    read: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
    reader = TopicReader(settings, topic, lambda _, records: read.set_result(records[0].value))
    await reader.start()
    reader.seek(0, 0)
    reading = asyncio.create_task(reader.run())
    async with asyncio.timeout(60):
        assert await read == b"v"
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await reader.stop()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
async def test_every_client_logs_in_with_a_password(servers: Servers, tmp_path: Path, mechanism: str) -> None:
    """It is taken from a file, whose last line has an end. SCRAM-SHA-512 is the whole stack's, below."""
    file = a_file(tmp_path, PASSWORD + "\n")
    await goes_through(
        settings_for(servers, kafka_sasl_mechanism=mechanism, kafka_sasl_username=USER, kafka_sasl_password_file=file)
    )


async def test_every_client_logs_in_with_a_token(servers: Servers, tmp_path: Path) -> None:
    """OAUTHBEARER, with a token that somebody else renews."""
    file = a_file(tmp_path, a_token())
    await goes_through(settings_for(servers, kafka_sasl_mechanism="OAUTHBEARER", kafka_oauth_token_file=file))


async def test_every_client_shows_its_certificate(servers: Servers) -> None:
    """Mutual TLS, without a login."""
    kafka, _ = servers
    kafka.certificates.issue("client")
    folder = kafka.certificates.folder
    await goes_through(
        settings_for(
            servers,
            kafka_security_protocol="SSL",
            kafka_bootstrap_servers=kafka.mutual,
            kafka_ssl_certfile=str(folder / "client.crt"),
            kafka_ssl_keyfile=str(folder / "client.key"),
        )
    )


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_a_wrong_password_is_told_as_such(servers: Servers, mechanism: str) -> None:
    """And not shown."""
    settings = settings_for(
        servers, kafka_sasl_mechanism=mechanism, kafka_sasl_username=USER, kafka_sasl_password="wr0ng"
    )
    with pytest.raises(KafkaRefused, match=f"refuses the login by {mechanism}: see KAFKA_SASL_USERNAME") as refused:
        await wait_for_kafka(settings, PASSED)
    assert "wr0ng" not in str(refused.value)


@pytest.mark.parametrize("token", [a_token(expires_at=1000), "no token"])
async def test_a_token_that_is_refused_is_told_as_such(servers: Servers, tmp_path: Path, token: str) -> None:
    """Although aiokafka says that it was accepted."""
    file = a_file(tmp_path, token)
    settings = settings_for(servers, kafka_sasl_mechanism="OAUTHBEARER", kafka_oauth_token_file=file)
    with pytest.raises(KafkaRefused, match=r"refuses the login by OAUTHBEARER: see .* expired"):
        await wait_for_kafka(settings, PASSED)


async def test_an_authority_that_is_not_trusted_is_told_as_such(servers: Servers) -> None:
    """Nothing is sent to a broker that is not who it should be."""
    settings = settings_for(servers, kafka_ssl_cafile=servers[0].certificates.stranger, **LOGIN)
    with pytest.raises(KafkaRefused, match=r"shows a certificate that is not trusted .*: see KAFKA_SSL_CAFILE"):
        await wait_for_kafka(settings, PASSED)


async def test_a_missing_client_certificate_is_told_as_such(servers: Servers) -> None:
    """TLS 1.3 says it after the handshake."""
    settings = settings_for(servers, kafka_security_protocol="SSL", kafka_bootstrap_servers=servers[0].mutual)
    with pytest.raises(KafkaRefused, match=r"refuses our certificate .*: see KAFKA_SSL_CERTFILE"):
        await wait_for_kafka(settings, PASSED)


async def test_a_listener_of_another_protocol_is_suspected(servers: Servers) -> None:
    """It hangs up without a word."""
    settings = settings_for(servers, kafka_bootstrap_servers=servers[0].bootstrap, **LOGIN)
    with pytest.raises(KafkaUnreachable, match="KAFKA_SECURITY_PROTOCOL"):
        await wait_for_kafka(settings, PASSED)


async def test_redis_takes_a_user_over_tls(servers: Servers) -> None:
    """The clients of the services, and the one of a worker's last words; no others."""
    settings = settings_for(servers)
    redis = new_redis(settings)
    assert await redis.set(f"{settings.topic_prefix}:a", b"b")
    await asyncio.to_thread(say_last_words, settings, "w", "why")
    async with asyncio.timeout(60):
        while (said := await redis.get(RedisKeys(settings.topic_prefix).worker_end("w"))) is None:
            await asyncio.to_thread(say_last_words, settings, "w", "why")  # it takes no longer than it may
    assert said == b"it said why"
    await redis.aclose()
    url = servers[1].url
    for others in (
        {"redis_ssl_cafile": servers[0].certificates.stranger},
        {"redis_url": url.replace("s3cret", "wr0ng")},
        {"redis_url": url.replace("127.0.0.1", "127.0.0.2")},
    ):
        stranger = new_redis(settings_for(servers, **others))
        with pytest.raises(RedisConnectionError) as refused:
            await stranger.get("a")
        assert "wr0ng" not in str(refused.value)
        await stranger.aclose()


async def test_a_service_that_is_refused_says_so_in_a_line(servers: Servers, tmp_path: Path) -> None:
    """A setting that names no file ends it at once; no traceback, no secret."""
    secret = {"KAFKA_SASL_USERNAME": USER, "KAFKA_SASL_PASSWORD": "wr0ng", "KAFKA_SSL_CAFILE": str(tmp_path / "none")}
    where = {"KAFKA_BOOTSTRAP_SERVERS": servers[0].sasl, "KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}
    code, words = await ran("-m", "anabranch.services.history", **where, **secret)
    assert code == 1
    assert "UnusableSettings: KAFKA_SSL_CAFILE: " in words
    assert "Traceback" not in words
    assert "wr0ng" not in words


def a_session(stack: LocalStack, certificates: Certificates) -> aiohttp.ClientSession:
    trust = ssl.create_default_context(cafile=certificates.ca)
    return aiohttp.ClientSession(stack.gateway_url, connector=aiohttp.TCPConnector(ssl=trust))


async def certificate_of(stack: LocalStack) -> str:
    url = urlsplit(stack.gateway_url)
    return await asyncio.to_thread(ssl.get_server_certificate, (url.hostname, url.port))


async def test_a_run_goes_through_a_stack_that_logs_in_everywhere(servers: Servers, tmp_path: Path) -> None:
    """Client, gateway, orchestrator, step service, history and the read, over TLS, with SCRAM and an ACL user.

    The gateway's certificate is renewed meanwhile.
    """
    kafka, redis = servers
    pem = kafka.certificates.issue("gateway")
    wanted = {"gateway", "orchestrator", "history", "simulate"}
    stack = LocalStack(
        tmp_path,
        port=0,
        bootstrap=kafka.sasl,
        redis_url=redis.url,
        services=[service for service in anabranch_services() if service.role in wanted],
        env={
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
            "KAFKA_SASL_USERNAME": USER,
            "KAFKA_SASL_PASSWORD": PASSWORD,
            "KAFKA_SSL_CAFILE": kafka.certificates.ca,
            "REDIS_SSL_CAFILE": kafka.certificates.ca,
            "ANABRANCH_TLS_CERTIFICATE": str(pem.with_suffix(".crt")),
            "ANABRANCH_TLS_KEY": str(pem.with_suffix(".key")),
            "ANABRANCH_TLS_CHECK_S": "0.1",
            "ANABRANCH_RUN_PARTITIONS": "2",
            "ANABRANCH_STEP_PARTITIONS": "2",
            "ANABRANCH_READ_RATE_LIMIT": "10000",  # counted in Redis
        },
        restart=False,
    )
    definition = {"name": "p", "steps": {"a": {"uses": "simulate", "with": {"value": 42}}}}
    async with stack, a_session(stack, kafka.certificates) as http:
        async with http.post("/v1/runs?wait=240s", json={"definition": definition}) as answer:
            run = await answer.json()
        assert run["status"] == "succeeded", run
        async with http.get(f"/v1/runs/{run['id']}") as answer:
            read = await answer.json()
        assert read["status"] == "succeeded"
        assert read["steps"]["a"]["status"] == "succeeded"
        where = {"ANABRANCH_URL": stack.gateway_url, "ANABRANCH_SSL_CAFILE": kafka.certificates.ca}
        code, words = await ran("-c", "from anabranch.client.cli import main; main()", "status", run["id"], **where)
        assert (code, "succeeded" in words) == (0, True), words
        shown = await certificate_of(stack)
        kafka.certificates.issue("gateway")
        async with asyncio.timeout(60):
            while await certificate_of(stack) == shown:
                await asyncio.sleep(0.1)
        counts = new_redis(settings_for(servers))
        async with asyncio.timeout(60):
            while not await counts.keys("pipelines:rate:*"):  # a gateway that Redis keeps waiting counts by itself
                async with http.get(f"/v1/runs/{run['id']}"):
                    await asyncio.sleep(0.1)
        await counts.aclose()
    logs = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
    assert PASSWORD not in logs
    assert "s3cret" not in logs
