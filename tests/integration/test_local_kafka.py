"""The local Kafka and Valkey: the real servers, started, killed and started again."""

import hashlib
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis.asyncio import Redis

from anabranch.deploy.local import jars
from anabranch.deploy.local.hold import HeldError
from anabranch.deploy.local.kafka import LocalKafka
from anabranch.deploy.local.redis import LocalRedis
from anabranch.deploy.local.server import ServerFailedError


async def test_records_survive_a_kill_and_a_restart_on_the_same_port(tmp_path: Path) -> None:
    async with LocalKafka(tmp_path) as kafka:
        address, first_pid = kafka.bootstrap, kafka.pid
        await create_topic(kafka, "facts")
        await append(kafka, "facts", [b"one", b"two"])

        await kafka.kill()
        await kafka.restart()

        assert kafka.bootstrap == address
        assert kafka.pid != first_pid
        assert await read(kafka, "facts", 2) == [b"one", b"two"]


async def test_records_survive_a_graceful_stop_and_another_object_on_the_same_directory(tmp_path: Path) -> None:
    async with LocalKafka(tmp_path) as kafka:
        await create_topic(kafka, "facts")
        await append(kafka, "facts", [b"one"])
    async with LocalKafka(tmp_path) as kafka:
        assert await read(kafka, "facts", 1) == [b"one"]


async def test_a_taken_port_gives_way(tmp_path: Path, taken_port: int) -> None:
    async with LocalKafka(tmp_path, port=taken_port) as kafka, LocalRedis(tmp_path, port=taken_port) as redis:
        assert kafka.port != taken_port
        assert redis.port not in (taken_port, kafka.port)


async def test_the_first_graceful_stop_makes_the_aot_cache_that_later_starts_use(
    own_cache: Path, tmp_path: Path
) -> None:
    kafka = LocalKafka(tmp_path / "data", cache=own_cache)
    await kafka.start()
    assert kafka.aot_cache is None
    await kafka.stop()

    logged_before = len(kafka.log_path.read_bytes())
    await kafka.start()
    made = kafka.aot_cache
    assert made is not None
    assert b"[aot]" not in kafka.log_path.read_bytes()[logged_before:]
    await kafka.stop()

    flip_a_byte(made)
    await kafka.start()  # mapping a damaged cache would be a SIGSEGV
    assert kafka.aot_cache is None
    assert not made.exists()
    await kafka.kill()  # no graceful stop, no second cache


async def test_a_second_broker_on_one_directory_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with LocalKafka(tmp_path) as kafka:
        with pytest.raises(HeldError, match=rf"in use by another process \(pid {os.getpid()}\)"):
            await LocalKafka(tmp_path).start()
        await create_topic(kafka, "still-there")


async def test_a_broker_that_dies_while_starting_fails_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "kafka").mkdir()
    (tmp_path / "kafka" / "meta.properties").write_text("version=1\nnode.id=7\ncluster.id=of-another-node\n")

    with pytest.raises(ServerFailedError, match=r"(?s)ended with status 1 while starting.*Stored node id 7"):
        await LocalKafka(tmp_path).start()


async def test_settings_that_kafka_refuses_fail_with_its_words(tmp_path: Path) -> None:
    kafka = LocalKafka(tmp_path, settings={"log.segment.bytes": "not a number"})

    with pytest.raises(ServerFailedError, match=r"(?s)not be formatted.*log\.segment\.bytes"):
        await kafka.start()

    assert not kafka.running


async def test_a_jar_that_is_not_the_locked_one_is_refused(own_cache: Path, tmp_path: Path) -> None:
    damaged = next(jars.jar_dir(own_cache).glob("kafka-clients-*.jar"))
    flip_a_byte(damaged)

    with pytest.raises(jars.JarMismatchError, match=r"org\.apache\.kafka:kafka-clients:.* is not the file"):
        await LocalKafka(tmp_path, cache=own_cache).start()


def test_a_download_that_is_not_the_locked_one_never_reaches_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "some.lock"
    lock.write_text(f"org.example:thing:1.0 {hashlib.sha256(b'the real one').hexdigest()}\n")
    monkeypatch.setattr(jars, "_maven", lambda repo_cache: MavenThatServes(b"another one", repo_cache))

    with pytest.raises(jars.JarMismatchError, match=r"org\.example:thing:1\.0 is not the file"):
        jars.fetch(tmp_path / "cache", lock)

    assert not jars.fetched(tmp_path / "cache", lock)


def test_the_lock_names_no_host() -> None:
    text = jars.LOCK.read_text()
    assert "//" not in text
    assert len(jars.read_lock()) > 40


async def test_valkey_keeps_its_port_and_nothing_else_across_a_restart(tmp_path: Path) -> None:
    """What it kept would be as it was when it was saved, and shown as if it were now."""
    async with LocalRedis(tmp_path) as server:
        url = server.url
        async with Redis.from_url(url) as client:
            await client.set("k", "v")
        await server.restart()
        assert server.url == url
        async with Redis.from_url(url) as client:
            assert await client.get("k") is None


async def test_a_death_is_told_and_a_wanted_end_is_not(tmp_path: Path) -> None:
    async with LocalRedis(tmp_path) as server:
        await server.restart()  # a wanted end
        server.signal(signal.SIGKILL)
        assert await server.died() == -signal.SIGKILL


class MavenThatServes:
    """jgo's context, project, component and artifact in one, with one answer to every download."""

    def __init__(self, content: bytes, repo_cache: Path) -> None:
        self.cached_path = repo_cache / "file.jar"
        self._content = content

    def project(self, group: str, artifact: str) -> "MavenThatServes":
        return self

    def at_version(self, version: str) -> "MavenThatServes":
        return self

    def artifact(self) -> "MavenThatServes":
        return self

    def resolve(self) -> Path:
        self.cached_path.parent.mkdir(parents=True, exist_ok=True)
        self.cached_path.write_bytes(self._content)
        return self.cached_path


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def own_cache(tmp_path: Path) -> Path:
    """A cache with the jars and nothing else, to damage or to fill."""
    shared = jars.cache_root()
    jars.fetch(shared)
    own = tmp_path / "cache"
    shutil.copytree(jars.jar_dir(shared), jars.jar_dir(own), ignore=shutil.ignore_patterns("*.aot", "*.draft"))
    return own


def flip_a_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 0xFF]))


async def create_topic(kafka: LocalKafka, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()


async def append(kafka: LocalKafka, topic: str, values: list[bytes]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all") as producer:
        for value in values:
            await producer.send_and_wait(topic, value)


async def read(kafka: LocalKafka, topic: str, count: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest")
    async with consumer:
        return [(await consumer.getone()).value for _ in range(count)]
