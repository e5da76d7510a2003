"""The floor that figures are compared with: `kafka_floor.py`, loaded by path, its engine in processes of their own.

`python -m tests.performance.floor PATH ROLE BOOTSTRAP PREFIX` is one of its engine processes.
"""

import asyncio
import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Final, Self

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

DEFAULT_PATH: Final = Path(__file__).parents[3] / "shared" / "bench" / "kafka_floor.py"
ENGINE: Final = ("orchestrator_log", "worker")
_READY_WITHIN_S: Final = 30.0
_JOINED_AFTER_S: Final = 3.0  # as the floor itself waits for its groups
_ENDS_WITHIN_S: Final = 60.0


class FloorMissing(Exception):
    """There is no floor to compare with; says where it was looked for."""


def load_floor(path: Path) -> ModuleType:
    """Return the floor as a module."""
    if not path.is_file():
        raise FloorMissing(
            f"no floor at {path}: throughput and latency are ratios to kafka_floor.py; give its path with --floor"
        )
    spec = importlib.util.spec_from_file_location("kafka_floor", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Floor:
    """The floor's topics and engine on a Kafka, driven from this process as the floor drives itself."""

    def __init__(self, path: Path, bootstrap: str, prefix: str = "floor") -> None:
        self._path = path
        self._module = load_floor(path)
        self._bootstrap = bootstrap
        self._prefix = prefix
        self._topics = self._module.topics(prefix)
        self._engine: dict[str, asyncio.subprocess.Process] = {}
        self._number = 0

    @property
    def pids(self) -> dict[str, int]:
        """The engine's processes by their roles' names."""
        return {f"floor {role.partition('_')[0]}": process.pid for role, process in self._engine.items()}

    async def __aenter__(self) -> Self:
        await self._module.create(self._bootstrap, self._prefix, 12)
        for role in ENGINE:
            self._engine[role] = await self._start(role)
        await asyncio.sleep(_JOINED_AFTER_S)
        self._producer = AIOKafkaProducer(bootstrap_servers=self._bootstrap, acks="all", enable_idempotence=True)
        self._events = AIOKafkaConsumer(
            self._topics["events"],
            bootstrap_servers=self._bootstrap,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        await self._producer.start()
        await self._events.start()
        for _ in range(self._module.WARM_UP):
            await self.one()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()
        await self._events.stop()
        for process in self._engine.values():
            process.kill()
            await process.wait()

    async def _start(self, role: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.performance.floor", str(self._path), role, self._bootstrap, self._prefix,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        async with asyncio.timeout(_READY_WITHIN_S):
            said = await process.stdout.readline()
        if said != b"ready\n":
            raise RuntimeError(f"the floor's {role} did not start")
        return process

    async def burst(self, pipelines: int) -> float:
        """Submit all, wait for all; return the seconds that took."""
        started = time.perf_counter()
        await asyncio.gather(*(self._submit() for _ in range(pipelines)))
        await self._finished(pipelines)
        return time.perf_counter() - started

    async def one(self) -> float:
        """Return the seconds from before the append of one pipeline until its completion event is read."""
        started = time.perf_counter()
        await self._submit()
        await self._finished(1)
        return time.perf_counter() - started

    async def _submit(self) -> None:
        self._number += 1
        run_id = f"run-{self._number}"
        value = orjson.dumps({"type": "submit", "run": run_id, "at": time.time()})
        await self._producer.send_and_wait(self._topics["inbox"], value, key=run_id.encode())

    async def _finished(self, count: int) -> None:
        async with asyncio.timeout(_ENDS_WITHIN_S):
            while count > 0:
                for records in (await self._events.getmany(timeout_ms=1000)).values():
                    count -= sum(orjson.loads(record.value)["end"] for record in records)


class _Ready:
    """What the floor's engine sets when it serves."""

    def set(self) -> None:
        print("ready", flush=True)


def _engine(path: str, role: str, bootstrap: str, prefix: str) -> None:
    floor = load_floor(Path(path))
    floor.child(getattr(floor, role), bootstrap, prefix, _Ready())


if __name__ == "__main__":
    _engine(*sys.argv[1:])
