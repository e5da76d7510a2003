"""Kafka is away for a minute: every process says so in a few lines, goes on by itself, and says that it is over."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from anabranch.deploy.local.ports import free_port
from anabranch.deploy.local.stack import LocalStack
from tests.performance.submitter import Submitter
from tests.performance.throughput import diamonds

AWAY_S: Final = 60.0
WITHIN_S: Final = 120.0
MOST_LINES: Final = 3
LOUD: Final = frozenset({"warning", "error", "critical"})
ENDED: Final = "Kafka's client complains no more"
ENV: Final = {"ANABRANCH_LOG_FORMAT": "json", "ANABRANCH_RATE_LIMIT": "0", "ANABRANCH_READ_RATE_LIMIT": "0"}


class Logs:
    """What each service has written since the last look."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: Counter[str] = Counter()
        self.lines: dict[str, list[dict[str, Any]]] = {}

    def look(self) -> None:
        """Read on."""
        for path in self._folder.glob("*.log"):
            if path.stem not in ("kafka", "redis"):
                whole = path.read_bytes()[self._read[path.stem] :].rpartition(b"\n")[0]
                self._read[path.stem] += len(whole) + bool(whole)
                self.lines.setdefault(path.stem, []).extend(orjson.loads(line) for line in whole.splitlines())

    def begin_anew(self) -> None:
        """Forget what was written before."""
        self.look()
        self.lines = {name: [] for name in self.lines}


@pytest.mark.timeout(600)
async def test_a_minute_without_kafka_is_a_few_lines(tmp_path: Path) -> None:
    """And no process ends of it: nothing was on its way."""
    async with LocalStack(tmp_path, port=free_port(), restart=False, env=ENV) as stack:
        logs = Logs(tmp_path / "logs")
        assert stack.kafka is not None
        async with asyncio.timeout(WITHIN_S), Submitter(stack.gateway_url) as submitter:
            await submitter.submit(diamonds(4, b"?wait=30s"))
        processes = {name: pid for name, pid in stack.processes.items() if name != "kafka"}
        logs.begin_anew()
        await stack.kafka.stop()
        await asyncio.sleep(AWAY_S)  # the outage is what is tested
        await stack.kafka.start()
        async with asyncio.timeout(WITHIN_S):
            while not all(any(line["event"] == ENDED for line in of_one) for of_one in logs.lines.values()):
                await asyncio.sleep(0.5)
                logs.look()
        loud = {
            name: [line["event"] for line in of_one if line["level"] in LOUD] for name, of_one in logs.lines.items()
        }
        assert {name: lines for name, lines in loud.items() if len(lines) > MOST_LINES} == {}
        assert {name: pid for name, pid in stack.processes.items() if name != "kafka"} == processes
        async with asyncio.timeout(WITHIN_S), Submitter(stack.gateway_url) as submitter:
            await submitter.submit(diamonds(4, b"?wait=30s"))
