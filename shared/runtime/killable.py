"""Work that can be killed: what no library can interrupt or bound runs in processes of its own.

A few processes are kept warm, each answers one request at a time. A caller that is cancelled kills the process that
works for it, and another takes its place; so does one that ends by itself, for want of memory or by a crash, which is
the failure of that one request. They hold no more memory than they are told (`RLIMIT_DATA`), see none of the service's
environment but where to find Python's modules, and end with the service, also when that is killed.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any, Final

import orjson

from anabranch.shared.contracts.errors import AnabranchError, TerminalError
from anabranch.shared.contracts.limits import MIB
from anabranch.shared.runtime.killable_child import FAILED, HEADER, IS_WORN, READY, REFUSED, RESULT

_MAIN: Final = "from anabranch.shared.runtime.killable_child import main; main()"
_PASSED_ON: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV")
# One heap, not one for each thread; and what is freed is given back: memory that is only kept counts, too.
_ALLOCATION: Final = {"MALLOC_ARENA_MAX": "1", "DUCKDB_JE_MALLOC_CONF": "retain:false"}
_MAX_ANSWER_BYTES: Final = 4 * MIB  # the work bounds its answer; more than this is a process out of its mind
_LAST_WORDS_BYTES: Final = 4096
_READY_WITHIN_S: Final = 60.0  # imports on a machine that is very busy


class ProcessEnded(AnabranchError):
    """The process that worked for an attempt ended, or could not be started; the attempt may be tried again."""


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """What one process may use: memory in all, and processor time for each request (0: no limit)."""

    memory_bytes: int
    cpu_s: int = 0


@asynccontextmanager
async def killable(work: str, *, processes: int, limits: ProcessLimits) -> AsyncIterator["KillableProcesses"]:
    """Keep so many processes for `module:function`, which takes a JSON value and returns encoded JSON."""
    pool = KillableProcesses(work, processes, limits)
    try:
        yield pool
    finally:
        await pool.stop()


class KillableProcesses:
    """Processes that answer requests, one at a time each; more requests wait their turn."""

    def __init__(self, work: str, processes: int, limits: ProcessLimits) -> None:
        self._places = [_Place(work, limits) for _ in range(processes)]
        self._free: asyncio.LifoQueue[_Place] = asyncio.LifoQueue()  # the warmest first
        for place in self._places:
            self._free.put_nowait(place)
        self._places[-1].begin()  # the next to be taken; the others when there is more to do at once

    async def run(self, request: bytes) -> bytes:
        """Return the answer to an encoded request. Cancelled, it kills the process before it returns.

        Raises `TerminalError` for what the work refuses and for a limit that was reached, `ProcessEnded` otherwise.
        """
        place = await self._free.get()
        try:
            return await place.run(request)
        finally:
            self._free.put_nowait(place)

    async def stop(self) -> None:
        """Kill all processes, and wait for their ends."""
        await asyncio.gather(*(place.stop() for place in self._places))


class _Place:
    """The place of one process, which is filled again when it becomes empty."""

    def __init__(self, work: str, limits: ProcessLimits) -> None:
        self._work = work
        self._limits = limits
        self._starting: asyncio.Task[_Process] | None = None

    def begin(self, predecessor: "_Process | None" = None) -> "asyncio.Task[_Process]":
        """Begin to start a process, once the one before it has ended."""
        self._starting = asyncio.create_task(self._start(predecessor), name=f"start {self._work}")
        self._starting.add_done_callback(lambda task: task.cancelled() or task.exception())  # told to whoever asks
        return self._starting

    async def run(self, request: bytes) -> bytes:
        process = await self._warm()
        is_worn = True
        try:
            kind, answer = await process.ask(request)
            is_worn = bool(kind & IS_WORN)
        finally:
            if is_worn:
                process.kill()
                self.begin(process)
        return _result(kind & ~IS_WORN, answer, self._limits)

    async def stop(self) -> None:
        if self._starting is None:
            return
        self._starting.cancel()
        with suppress(asyncio.CancelledError, ProcessEnded, TerminalError):
            process = await self._starting
            process.kill()
            await process.end()

    async def _warm(self) -> "_Process":
        """Return the process; one that ended while nobody asked it, or that did not start, is replaced once."""
        ended = None
        with suppress(ProcessEnded, TerminalError):
            ended = await asyncio.shield(self._starting or self.begin())
            if ended.is_alive:
                return ended
        return await asyncio.shield(self.begin(ended))

    async def _start(self, predecessor: "_Process | None") -> "_Process":
        if predecessor is not None:
            try:
                await predecessor.end()
            except asyncio.CancelledError:
                await predecessor.end()  # it was killed: this is short
                raise
        return await _Process.start(self._work, self._limits)


class _Process:
    def __init__(self, process: asyncio.subprocess.Process, last_words: IO[bytes], limits: ProcessLimits) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._requests, self._answers = process.stdin, process.stdout
        self._last_words = last_words
        self._limits = limits

    @classmethod
    async def start(cls, work: str, limits: ProcessLimits) -> "_Process":
        """Start a process and wait until it can be asked."""
        last_words = TemporaryFile()  # noqa: SIM115  # closed at its end
        try:
            started = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _MAIN, work, str(limits.memory_bytes), str(limits.cpu_s), str(os.getpid()),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=last_words,
                env=_ALLOCATION | {name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            )  # fmt: skip
        except BaseException:
            last_words.close()
            raise
        process = cls(started, last_words, limits)
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                kind, _ = await process._answer()
            assert kind == READY
        except BaseException as error:  # also a cancellation: nothing is left behind
            process.kill()
            await process.end()
            if isinstance(error, TimeoutError):
                raise ProcessEnded(f"a process for {work} was not ready within {_READY_WITHIN_S:.0f} s") from error
            raise
        return process

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Return the kind of the answer, and the answer."""
        try:
            self._requests.write(HEADER.pack(len(request), 0) + request)
            await self._requests.drain()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended: its answer says so
        return await self._answer()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    async def end(self) -> None:
        await self._process.wait()
        self._requests.close()
        self._last_words.close()

    async def _answer(self) -> tuple[int, bytes]:
        try:
            size, kind = HEADER.unpack(await self._answers.readexactly(HEADER.size))
            if size > _MAX_ANSWER_BYTES:
                raise ProcessEnded(f"a process answered with {size} bytes")
            return kind, await self._answers.readexactly(size)
        except asyncio.IncompleteReadError as error:
            status = await self._process.wait()
            self._last_words.seek(max(0, self._last_words.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
            raise _why_ended(status, self._last_words.read().decode(errors="replace"), self._limits) from error


def _result(kind: int, answer: bytes, limits: ProcessLimits) -> bytes:
    if kind == RESULT:
        return answer
    error: dict[str, Any] = orjson.loads(answer)
    if kind == REFUSED:
        raise TerminalError(error["message"], error_type=error["type"], details=error["details"])
    assert kind == FAILED
    if error["type"] == "MemoryError":
        raise memory_exceeded(limits)
    raise ProcessEnded(f"{error['type']}: {error['message']}")


def memory_exceeded(limits: ProcessLimits) -> TerminalError:
    """Return the error of an attempt that needs more memory than its process may hold."""
    return TerminalError(
        f"it needs more memory than its process may hold ({limits.memory_bytes} bytes)", error_type="MemoryExceeded"
    )


def _why_ended(status: int, last_words: str, limits: ProcessLimits) -> AnabranchError:
    if status == -signal.SIGXCPU:
        return TerminalError(
            f"it takes more than {limits.cpu_s} s of processor time, which is its limit", error_type="CpuExceeded"
        )
    if "bad_alloc" in last_words or "MemoryError" in last_words:
        return memory_exceeded(limits)
    if status < 0:
        return ProcessEnded(
            f"the process that ran it was ended by signal {-status} ({signal.Signals(-status).name}), perhaps at its "
            f"memory limit ({limits.memory_bytes} bytes)"
        )
    return ProcessEnded(f"the process that ran it ended with status {status}: {last_words[-1000:].strip()}")
