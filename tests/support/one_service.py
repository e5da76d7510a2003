"""One service as its own process, for tests of that service alone."""

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from anabranch.deploy.local.ports import free_port
from anabranch.deploy.local.process import Child, spawn

READY_S = 60.0


class OneService:
    """`python -m anabranch.services.<name>`, ready when the context is entered, stopped and gone after it."""

    def __init__(self, name: str, log: Path, *, waits_for_ready: bool = True, **env: object) -> None:
        self.name = name
        self.port = free_port()
        self._log = log
        self._waits_for_ready = waits_for_ready
        self._env = {key: str(value) for key, value in env.items()} | {"ANABRANCH_HTTP_PORT": str(self.port)}
        self._child: Child | None = None
        self._open = AsyncExitStack()
        self.http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self.http = await self._open.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{self.port}"))
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()
        if self._child is not None:
            code = await self._child.stop(20)
            assert error is not None or code in (0, -9), f"{self.name} ended with {code}:\n{self.words()}"

    async def start(self) -> None:
        """Start it, again after a kill."""
        command = [sys.executable, "-m", f"anabranch.services.{self.name}"]
        self._child = await spawn(command, env=os.environ | self._env, log=self._log)
        if self._waits_for_ready:
            await self.until_ready()

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._child is not None
        return self._child.pid

    async def kill(self) -> None:
        """SIGKILL it."""
        assert self._child is not None
        self._child.kill()
        await self._child.wait()

    async def stop(self) -> None:
        """Stop it as a supervisor does; `start` starts it again."""
        assert self._child is not None
        await self._child.stop(60)

    async def until_ended(self) -> int:
        """Return its exit code once it has ended of itself."""
        assert self._child is not None
        return await asyncio.wait_for(self._child.wait(), READY_S)

    async def until_ready(self) -> None:
        """Return when `/readyz` says so."""
        await eventually(self._is_ready, READY_S, self.words)

    def words(self) -> str:
        """Everything it said."""
        return self._log.read_text()

    async def metric(self, name: str) -> float:
        """Return a sample of `/metrics`, 0 when there is none; `name` with its labels, as it stands there."""
        async with self.http.get("/metrics") as response:
            for line in (await response.text()).splitlines():
                if line.startswith(name + " "):
                    return float(line.rpartition(" ")[2])
        return 0.0

    async def _is_ready(self) -> bool:
        assert self._child is not None
        assert self._child.running, self.words()
        try:
            async with self.http.get("/readyz") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False


async def eventually(condition: Callable[[], Any], within_s: float = 60.0, words: Callable[[], str] = str) -> Any:
    """Return what an async condition answers once it is true; fail when it is not so in time."""
    try:
        async with asyncio.timeout(within_s):
            while not (answer := await condition()):
                await asyncio.sleep(0.02)
            return answer
    except TimeoutError:
        raise AssertionError(f"not so within {within_s} s: {condition}\n{words()}") from None
