"""Who lives, and how much memory each takes: looked at ten times a second, limited by the kernel."""

import asyncio
import json
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families

from anabranch.deploy.local.stack import LocalStack
from anabranch.shared.contracts.limits import MIB

LIMIT_BYTES: Final = 512 * MIB  # resident, of one of our processes and what it started
HARD_LIMIT_BYTES: Final = 3072 * MIB  # of its data: who wants more gets a MemoryError, and is a finding
SERVERS: Final = frozenset({"kafka", "redis"})
_LOOK_S: Final = 0.1
_LAG: Final = "event_loop_lag_seconds"


class Watch:
    """Follows the processes of a stack. `ended` counts those that went, `worst` is the most memory each took."""

    def __init__(self, stack: LocalStack) -> None:
        self._stack = stack
        self._pids: dict[str, int] = {}
        self.ended: Counter[str] = Counter()
        self.worst: dict[str, int] = {}
        self.last_words: dict[str, str] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK_S)

    def look(self) -> None:
        """Look once."""
        now = self._stack.processes
        for name, pid in self._pids.items():
            if now.get(name) != pid:
                self.ended[name] += 1
                self.last_words[name] = self._words_of(name)
        for name, pid in now.items():
            if self._pids.get(name) != pid:
                _limit(name, pid)
            self.worst[name] = max(self.worst.get(name, 0), memory_of(pid))
        self._pids = dict(now)

    @property
    def too_large(self) -> dict[str, int]:
        """Our processes that took more than they may."""
        return {name: size for name, size in self.worst.items() if name not in SERVERS and size > LIMIT_BYTES}

    def _words_of(self, name: str) -> str:
        if name in SERVERS:
            server = self._stack.kafka if name == "kafka" else self._stack.redis
            return server.last_words() if server is not None else ""
        return self._stack.service(name).last_words()


def _limit(name: str, pid: int) -> None:
    if sys.platform == "linux" and name not in SERVERS:
        with suppress(psutil.Error, OSError, ValueError):
            psutil.Process(pid).rlimit(psutil.RLIMIT_DATA, (HARD_LIMIT_BYTES, HARD_LIMIT_BYTES))


def memory_of(pid: int) -> int:
    """Return the largest resident memory among a process and what it started."""
    largest = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                largest = max(largest, each.memory_info().rss)
    return largest


async def loop_lags(targets: Path) -> dict[str, dict[float, float]]:
    """Return, for each service that answers, the share of looks that found its loop at most so many seconds late."""
    lags: dict[str, dict[float, float]] = {}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http:
        for target in json.loads(targets.read_text()):
            (address,) = target["targets"]
            with suppress(aiohttp.ClientError, TimeoutError):  # what ended is told by `Watch`
                async with http.get(f"http://{address}/metrics") as answer:
                    lags[target["labels"]["instance"]] = _shares(await answer.text())
    return lags


def late_s(shares: dict[float, float], percent: int) -> float:
    """Return the seconds that so many per cent of the looks were late at most, rounded up to a bucket."""
    return min((seconds for seconds, share in shares.items() if 100 * share >= percent), default=0.0)


def _shares(metrics: str) -> dict[float, float]:
    counts = {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(metrics)
        if family.name.endswith(_LAG)
        for sample in family.samples
        if sample.name.endswith("_bucket")
    }
    return {seconds: count / max(1.0, counts[float("inf")]) for seconds, count in counts.items()}
