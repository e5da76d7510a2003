"""One child process: started so that it cannot outlive us, stopped so that nothing of it is left."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LAUNCHER = Path(__file__).with_name("launch.py")


class Child:
    """A running program, in a session of its own so that Ctrl-C in the terminal reaches only us."""

    def __init__(self, process: asyncio.subprocess.Process, output: asyncio.StreamReader | None = None) -> None:
        self._process = process
        self._output = output
        self._is_swept = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    @property
    def exit_code(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    @property
    def output(self) -> asyncio.StreamReader:
        """What it prints on stdout and stderr, when it was started without a log file."""
        assert self._output is not None
        return self._output

    async def wait(self) -> int:
        """Wait for its end; return the exit status, negative for a signal. What it started itself ends with it."""
        code = await self._process.wait()
        self.kill()
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens when it has ended."""
        if self.running:
            self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL it and whatever it started itself."""
        if self._is_swept:
            return
        self._is_swept = not self.running  # later its pid, which is also its group's id, may be somebody else's
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # all gone; macOS says EPERM for a group of zombies
            return

    async def stop(self, deadline_s: float) -> int:
        """SIGTERM, then SIGKILL after the deadline; its own children go with it. Killed at once when cancelled."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(deadline_s):
                await self.wait()
        except TimeoutError:
            pass
        finally:
            self.kill()
        return await self.wait()


async def spawn(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None, log: Path | None = None
) -> Child:
    """Start a program; stdout and stderr go to the log file, or else to `Child.output`."""
    wrapped = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), *command]
    if log is not None:
        with log.open("ab") as file:
            return Child(await _exec(wrapped, env, cwd, file.fileno()))
    # A pipe of our own: asyncio tells the end of a process only when its pipes are closed, and what the process started
    # itself, a pool of workers for instance, holds them open.
    read_end, write_end = os.pipe()
    try:
        output = await _reader(read_end)
        return Child(await _exec(wrapped, env, cwd, write_end), output)
    finally:
        os.close(write_end)


async def _reader(read_end: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
    )
    return reader


async def _exec(
    command: Sequence[str], env: Mapping[str, str], cwd: Path | None, stdout: int
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(env),
        cwd=cwd,
        start_new_session=True,
    )
