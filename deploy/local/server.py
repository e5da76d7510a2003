"""What Kafka and Valkey have in common here: a server on the loopback address with a data directory and a log file."""

import asyncio
import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from anabranch.deploy.local.hold import Hold
from anabranch.deploy.local.ports import HOST, free_port
from anabranch.deploy.local.process import Child

POLL_S = 0.02  # a probe is one small request on the loopback address
LAST_LINES = 20
LOG_ROTATES_AT_BYTES = 10_000_000


class ServerFailedError(RuntimeError):
    """The server did not come up; the message ends with the last lines of its log."""


class DiedStartingError(ServerFailedError):
    """The server ended before it answered; starting it again may help."""


class LocalServer(ABC):
    """Start, stop, kill and restart of one server process; it keeps its port for life.

    The port is a free one drawn at random unless one is asked for: two stacks that both prefer the same port take each
    other's server for their own.
    """

    name: str

    def __init__(self, data_dir: Path, port: int | None) -> None:
        self.data_dir = data_dir.absolute()
        self._wanted_port = port
        self._port: int | None = None
        self._has_answered = False
        self._child: Child | None = None
        self._end_is_wanted = False
        self._logged_before = 0
        self._hold = Hold(self.data_dir / f"{self.name}.pid", f"the data of {self.name} under {self.data_dir}")

    @property
    def port(self) -> int:
        """The port it listens on, known from its first start."""
        if self._port is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._port

    @property
    def address(self) -> str:
        """Host and port, as in `127.0.0.1:9092`."""
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The pid of the running server."""
        if self._child is None or not self._child.running:
            raise RuntimeError(f"{self.name} is not running")
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def log_path(self) -> Path:
        """Everything it printed."""
        return self.data_dir / f"{self.name}.log"

    async def start(self, timeout_s: float = 60.0) -> None:
        """Start it and return when it answers.

        Raises DiedStartingError when it dies, ServerFailedError when the time is up, HeldError when another process
        uses the same data.
        """
        if self.running:
            raise RuntimeError(f"{self.name} is running already")
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._hold.take()
        self._choose_port()
        self._rotate_log()
        self._logged_before = self.log_path.stat().st_size
        try:
            async with asyncio.timeout(timeout_s):
                await self._prepare()
                child = await self._spawn()
                self._child, self._end_is_wanted = child, False  # together: `died` must not take the last one for it
                await self._until_it_answers(child)
                self._has_answered = True
        except TimeoutError:
            await self.kill()
            raise ServerFailedError(
                f"{self.name} did not answer on {self.address} within {timeout_s:g} s\n{self.last_words()}"
            ) from None
        except BaseException:  # a cancelled start, too, leaves no process behind
            await self.kill()
            raise

    async def stop(self, deadline_s: float = 10.0) -> None:
        """Stop it in good order, or by force after the deadline, or at once when cancelled."""
        self._end_is_wanted = True
        if self._child is not None:
            await self._child.stop(deadline_s)
        self._hold.release()

    async def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._end_is_wanted = True
        if self._child is not None:
            self._child.kill()
            await self._child.wait()
        self._hold.release()

    def kill_now(self) -> None:
        """SIGKILL without waiting, for a stack in a hurry."""
        self._end_is_wanted = True
        if self._child is not None:
            self._child.kill()

    async def restart(self, timeout_s: float = 60.0) -> None:
        """Stop it if it runs, and start it again on the same port and data."""
        await self.stop()
        await self.start(timeout_s)

    async def gone(self) -> None:
        """Wait until it does not run."""
        if self._child is not None:
            await self._child.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, SIGSTOP for instance; unlike `kill`, an end by it counts as a death."""
        if self._child is not None:
            self._child.signal(number)

    async def died(self) -> int:
        """Wait until it ends without having been stopped or killed through this object; return the exit status."""
        while True:
            child = self._child
            if child is not None:
                code = await child.wait()
                if child is self._child and not self._end_is_wanted:
                    return code
            await asyncio.sleep(POLL_S)

    def last_words(self, lines: int = LAST_LINES) -> str:
        """The end of its log."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @abstractmethod
    async def _prepare(self) -> None:
        """Write what the server reads at its start."""

    @abstractmethod
    async def _spawn(self) -> Child:
        """Start the process."""

    @abstractmethod
    async def _answers(self) -> bool:
        """Ask it something that only a server at work can answer; OSError and EOF mean no."""

    async def _until_it_answers(self, child: Child) -> None:
        while True:
            if not child.running:
                raise DiedStartingError(
                    f"{self.name} ended with status {child.exit_code} while starting, see {self.log_path}\n"
                    f"{self._last_logged_now()}"
                )
            try:
                async with asyncio.timeout(1.0):
                    if await self._answers():
                        return
            except (OSError, EOFError, TimeoutError):  # not yet
                pass
            await asyncio.sleep(POLL_S)

    def _choose_port(self) -> None:
        """Keep the port once it was answered on: others know it. Until then one that was taken meanwhile gives way."""
        if self._port is None:
            self._port = free_port(preferred=self._wanted_port)
        elif not self._has_answered:
            self._port = free_port(preferred=self._port)

    def _logged_now(self) -> str:
        """What it has logged since it was started last."""
        with self.log_path.open("rb") as file:
            file.seek(self._logged_before)
            return file.read().decode(errors="replace")

    def _last_logged_now(self) -> str:
        return "\n".join(self._logged_now().splitlines()[-LAST_LINES:])

    def _rotate_log(self) -> None:
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_ROTATES_AT_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        self.log_path.touch()


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def __str__(self) -> str:
        return f"{time.monotonic() - self._since:.1f} s"
