"""CPU time and memory of processes, by name."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import psutil

DRIVER: Final = "driver"
SERVERS: Final = frozenset({"kafka", "redis"})
_QUIET_LOOK_S: Final = 0.5
_QUIET_SHARE: Final = 0.15  # of a core, by all that are ours


class Processes:
    """Some processes whose CPU time is compared between two moments. The driver is this process."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in {**pids, DRIVER: os.getpid()}.items()}

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU seconds each has used since it was started."""
        return {name: _cpu_s(process) for name, process in self._processes.items()}

    def memory(self) -> dict[str, "Memory"]:
        """Return what each holds in memory."""
        return {name: memory_of(process.pid) for name, process in self._processes.items() if name != DRIVER}

    async def until_quiet(self, timeout_s: float = 30.0) -> None:
        """Wait until our services have nothing left to do, or the time is up."""
        async with asyncio.timeout(timeout_s):
            before = self._ours_s()
            while True:
                await asyncio.sleep(_QUIET_LOOK_S)
                now = self._ours_s()
                if now - before < _QUIET_SHARE * _QUIET_LOOK_S:
                    return
                before = now

    def _ours_s(self) -> float:
        return sum(_cpu_s(p) for name, p in self._processes.items() if name not in SERVERS and name != DRIVER)


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident, private, and proportional memory, bytes."""

    rss: int
    uss: int
    pss: int


def memory_of(pid: int) -> Memory:
    """Return what a process holds in memory."""
    full = psutil.Process(pid).memory_full_info()
    return Memory(full.rss, full.uss, getattr(full, "pss", 0))


def differences(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Return what each used between two moments."""
    return {name: after[name] - before[name] for name in after if name in before}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
