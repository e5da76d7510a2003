"""One service of the stack: its process, its log, whether it is ready."""

import asyncio
import os
import signal
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from anabranch.deploy.local.console import Console
from anabranch.deploy.local.ports import HOST, free_port
from anabranch.deploy.local.process import Child, spawn
from anabranch.shared.runtime.settings import without_secrets

POLL_S = 0.05
LAST_LINES = 20
READ_BYTES = 65_536


class ServiceProcess:
    """A service that is started, watched and stopped; its lines go to the console and to `logs/<name>.log`."""

    def __init__(
        self,
        name: str,
        role: str,
        *,
        command: tuple[str, ...],
        env: Mapping[str, str],
        log: Path,
        console: Console,
        port: int,
        keeps_port: bool,
        speaks_tls: bool = False,
        started: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.role = role
        self.port = port
        self.starts = 0
        self._command = command
        self._env = env
        self._log = log
        self._console = console
        self._keeps_port = keeps_port
        self._speaks_tls = speaks_tls
        self._started = started
        self._was_ready = False
        self._child: Child | None = None
        self._reading: asyncio.Task[None] | None = None
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._end_is_wanted = False

    @property
    def url(self) -> str:
        """Where it serves /healthz, /readyz and /metrics; the gateway also the API."""
        return f"{'https' if self._speaks_tls else 'http'}://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The pid while it runs."""
        return self._child.pid if self._child is not None and self._child.running else None

    async def start(self) -> None:
        """Start the process; it is ready some time later. One that must keep its port does so once it was ready."""
        if not (self._keeps_port and self._was_ready):
            self.port = free_port(preferred=self.port)
        env = {**self._env, "ANABRANCH_HTTP_HOST": HOST, "ANABRANCH_HTTP_PORT": str(self.port), **self._predecessor()}
        child = await spawn(self._command, env=env)
        self._child, self._end_is_wanted = child, False  # together: `died` must not take the last one for it
        self.starts += 1
        self._reading = asyncio.create_task(self._read(self._child), name=f"log of {self.name}")
        self._started()

    def _predecessor(self) -> dict[str, str]:
        """What the new process is told of the one before: its name, as services name themselves, and how it ended."""
        if self._child is None or self._child.exit_code is None:
            return {}
        return {"ANABRANCH_PREDECESSOR": f"{socket.gethostname()}-{self._child.pid} {self._child.exit_code}"}

    async def died(self) -> int:
        """Wait until it ends without having been stopped or killed through this object; return the exit status."""
        while True:
            child, reading = self._child, self._reading
            if child is not None:
                code = await child.wait()
                if child is self._child and not self._end_is_wanted:
                    if reading is not None:
                        await reading
                    return code
            await asyncio.sleep(POLL_S)

    async def stop(self, deadline_s: float) -> None:
        """SIGTERM, then SIGKILL after the deadline, or at once when cancelled."""
        self._end_is_wanted = True
        if self._child is not None:
            await self._child.stop(deadline_s)
        if self._reading is not None:
            await self._reading

    def kill(self) -> None:
        """SIGKILL it and what it started; it stays dead until `start`."""
        self._end_is_wanted = True
        if self._child is not None:
            self._child.kill()

    async def gone(self) -> None:
        """Wait until it does not run."""
        if self._child is not None:
            await self._child.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; an end by it counts as a death."""
        if self._child is not None:
            self._child.signal(number)

    async def until_ready(self) -> None:
        """Wait until it answers 200 on /readyz."""
        while self.pid is None or not await answers_ready(self.port, self._speaks_tls):  # noqa: ASYNC110 - a process sets no Event
            await asyncio.sleep(POLL_S)
        self._was_ready = True

    def last_words(self) -> str:
        """The end of what it printed."""
        return "\n".join(self._last_lines)

    async def _read(self, child: Child) -> None:
        with self._log.open("ab") as log:
            rest = b""
            while chunk := await child.output.read(READ_BYTES):
                log.write(chunk)
                log.flush()
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._tell(line)
            if rest:
                self._tell(rest)

    def _tell(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self._last_lines.append(text)
        self._console.say(self.name, text)


async def answers_ready(port: int, speaks_tls: bool = False) -> bool:
    """Whether GET /readyz on the loopback port is answered with 200 within a second.

    The certificate is not checked, as no probe does: it may name the host that others see, and nothing is told it.
    """
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(HOST, port, ssl=_trusting_all() if speaks_tls else None)
            try:
                writer.write(f"GET /readyz HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n".encode())
                status = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return status.split(b" ")[1:2] == [b"200"]


def _trusting_all() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def inherited(extra: Mapping[str, str], *, has_secrets: bool = True) -> dict[str, str]:
    """The environment of this process with more in it; what a service prints arrives at once."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **extra}
    return environment if has_secrets else without_secrets(environment)
