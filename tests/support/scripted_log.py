"""A partition log in memory whose every verb can be told to raise: for tests of what follows."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from anabranch.services.orchestrator.core.changelog import Change
from anabranch.services.orchestrator.core.effects import Append
from anabranch.services.orchestrator.ports import InboxRecord, LogError


class Fault(NamedTuple):
    """Raise `error` at the call number `at` (from 1) of a verb."""

    verb: str
    at: int
    error: LogError


class ScriptedLog:
    """Keeps what was appended and checkpointed; `feed` puts records into the inbox."""

    def __init__(self, *faults: Fault, assignment: int = 1) -> None:
        self.partition = 0
        self.assignment = assignment
        self.inbox: list[InboxRecord] = []
        self.changelog: dict[bytes, bytes] = {}
        self.appended: list[Append] = []
        self.acknowledge_at_once = True
        self.calls: list[str] = []
        self.closed = False
        self._faults = list(faults)
        self._position = 0
        self._woken = asyncio.Event()
        self._unacknowledged: list[asyncio.Future[None]] = []
        self.unacknowledged_bytes = 0

    def feed(self, value: bytes | None, at_ms: int = 1_000, assignment: int | None = None) -> None:
        """Append a record to the inbox."""
        offset = len(self.inbox)
        self.inbox.append(InboxRecord(offset, at_ms, b"key", value, (), assignment or self.assignment))
        self._woken.set()

    def acknowledge(self) -> None:
        """Let the broker acknowledge everything."""
        for future in self._unacknowledged:
            if not future.done():
                future.set_result(None)
        self._unacknowledged = []
        self.unacknowledged_bytes = 0

    def _call(self, verb: str) -> None:
        self.calls.append(verb)
        for fault in self._faults:
            if fault.verb == verb and self.calls.count(verb) == fault.at:
                raise fault.error

    async def start_producer(self) -> None:
        self._call("start_producer")

    async def read_changelog(self) -> Mapping[bytes, bytes]:
        self._call("read_changelog")
        return dict(self.changelog)

    async def seek(self, offset: int | None) -> None:
        self._call("seek")
        self._position = offset or 0

    async def take(self, wait_s: float) -> Sequence[InboxRecord]:
        self._call("take")
        if self._position >= len(self.inbox):
            self._woken.clear()
            timer = asyncio.get_running_loop().call_later(wait_s, self._woken.set)
            await self._woken.wait()
            timer.cancel()
        taken = self.inbox[self._position :]
        self._position = len(self.inbox)
        return taken

    def interrupt(self) -> None:
        self._woken.set()

    def append(self, output: Append) -> None:
        self._call("append")
        self.appended.append(output)
        self.unacknowledged_bytes += len(output.value)

    def acknowledged(self) -> "asyncio.Future[None]":
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unacknowledged.append(future)
        try:
            self._call("acknowledged")
        except LogError as error:
            future.set_exception(error)
        if self.acknowledge_at_once:
            self.acknowledge()
        return future

    @property
    def unacknowledged(self) -> int:
        return len(self._unacknowledged)

    async def checkpoint(self, changes: Sequence[Change]) -> None:
        self._call("checkpoint")
        for key, value in changes:
            if value is None:
                self.changelog.pop(key, None)
            else:
                self.changelog[key] = value

    async def close(self) -> None:
        self._call("close")
        self.closed = True
