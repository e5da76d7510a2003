"""Reading bodies in a process of its own, which may be killed: what is large or costly to check leaves the loop.

The libraries that check hold the interpreter while they work, so a thread would not help. The process has so much
memory and processor time for one body; it is killed when it takes more, and another one is started for the next.
"""

import asyncio
import os
import resource
from typing import Any, Final

import orjson
from anyio import BrokenWorkerProcess, CapacityLimiter, to_process

from anabranch.services.gateway.problems import Fault, Kind, ProblemError, unavailable
from anabranch.services.gateway.reading import Found, Part, Reading, Refusal
from anabranch.shared.contracts.limits import MIB
from anabranch.shared.contracts.report import Budget

WAIT_S: Final = 5.0  # for a process that is free

# The worst that fits the budget of estimated cost takes five seconds here, two MiB of YAML four.
_CPU_S: Final = 15
_WALL_S: Final = 60.0  # on a machine that is busy with something else
_MEMORY: Final = 288 * MIB  # beyond what the process has when it starts, some 100 MiB
_NICE: Final = 5  # the loop goes first


class Apart:
    """Reads bodies in processes, so many at a time, each with so many units of cost; so many more wait in line.

    A body that waits too long is refused for now: those in front of it are costly, or there are too many.
    """

    def __init__(self, *, at_once: int, in_line: int, units: int) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._limiter = CapacityLimiter(at_once)
        self._room = at_once + in_line
        self._units = units

    async def read(self, what: Part, body: bytes, media_type: str, step_types: bytes) -> tuple[Any, bool]:
        """Return what is in the body, and whether its definition was known. Raises `ProblemError`, `TooCostly`."""
        if not self._room:
            raise unavailable("Too many large or costly bodies are being read.", retry_after_s=1)
        self._room -= 1
        try:
            await self._wait()
            try:
                return await self._run(what, body, media_type, step_types)
            finally:
                self._free.release()
        finally:
            self._room += 1

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(WAIT_S):
                await self._free.acquire()
        except TimeoutError as error:
            raise unavailable("Other large or costly bodies are being read.", retry_after_s=5) from error

    async def _run(self, what: Part, body: bytes, media_type: str, step_types: bytes) -> tuple[Any, bool]:
        try:
            async with asyncio.timeout(_WALL_S):
                answer = await to_process.run_sync(
                    _read, what, body, media_type, step_types, self._units, cancellable=True, limiter=self._limiter
                )
        except (BrokenWorkerProcess, MemoryError) as error:
            raise _too_costly() from error
        except TimeoutError as error:
            raise unavailable("Checking the body took too long on a busy machine.", retry_after_s=5) from error
        if isinstance(answer, Refusal):
            raise answer.problem()
        return answer


def _too_costly() -> ProblemError:
    detail = f"Checking the body took more than {_CPU_S} seconds of a processor, or {_MEMORY // MIB} MiB of memory."
    fault = Fault("", "costs too much to check: make its schemas, its expressions or its values smaller")
    return ProblemError(Kind.INVALID, detail, faults=[fault])


# ---- In the process ------------------------------------------------------------------------------------------------

_readings: Final[dict[bytes, Reading]] = {}  # one: that of the step types known last
_has_memory_limit: list[bool] = []


def _read(what: Part, body: bytes, media_type: str, step_types: bytes, units: int) -> tuple[Found, bool] | Refusal:
    _set_limits()
    if step_types not in _readings:
        _readings.clear()
        _readings[step_types] = Reading(orjson.loads(step_types))
    try:
        return _readings[step_types].read(what, body, media_type, Budget(units))
    except ProblemError as error:
        return Refusal(error.kind, error.detail, error.faults)
    except MemoryError:
        problem = _too_costly()
        return Refusal(problem.kind, problem.detail, problem.faults)


def _set_limits() -> None:
    """Give this body its processor time, and the process its memory, once."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + _CPU_S, hard))
    if not _has_memory_limit:
        _has_memory_limit.append(True)
        os.nice(_NICE)
        if (size := _address_space()) is not None:
            resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, size + _MEMORY))


def _address_space() -> int | None:
    """Return the bytes of this process's address space; None where the kernel does not say (macOS)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123  a file of the kernel
            return int(statm.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        return None
