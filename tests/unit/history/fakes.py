"""Small fakes of history's ports, and builders of what travels through them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from anabranch.services.history.projection import RunChange
from anabranch.services.history.store import ChangeRejected, StoreUnavailable
from anabranch.shared.contracts.messages import QueuedStep, RunEnded, RunStarted, StepChanged, StepsQueued

AT = "2026-01-31T12:00:00.000000Z"
LATER = "2026-01-31T12:00:01.000000Z"


def run_started(run_id: str = "r", seq: int = 1, steps: dict[str, str] | None = None) -> RunStarted:
    return RunStarted(
        run_id=run_id, seq=seq, at=AT, pipeline="p", tenant="default", inputs={"n": 1}, labels={"a": "b"},
        body_hash="h", steps=steps or {"a": "http", "b": "sql"},
    )  # fmt: skip


def steps_queued(seq: int, *steps: str, run_id: str = "r", attempt: int = 1) -> StepsQueued:
    queued = tuple(QueuedStep(step=step, uses="http", attempt=attempt) for step in steps)
    return StepsQueued(run_id=run_id, seq=seq, at=AT, queued=queued)


def step_succeeded(seq: int, step: str, run_id: str = "r", output: Any = None) -> StepChanged:
    return StepChanged(
        type="StepSucceeded", run_id=run_id, seq=seq, at=LATER, step=step, uses="http", status="succeeded", attempt=1,
        queued_at=AT, started_at=AT, finished_at=LATER, output=output,
    )  # fmt: skip


def run_ended(seq: int, run_id: str = "r", status: str = "succeeded") -> RunEnded:
    return RunEnded(
        type="RunSucceeded", run_id=run_id, seq=seq, at=LATER, status=status, started_at=AT, outputs={"o": 2}
    )


@dataclass(frozen=True)
class FakeRecord:
    value: bytes | None
    key: bytes | None = b"r"
    offset: int = 0
    topic: str = "pipelines.run-events"
    partition: int = 0
    timestamp: int = 1_000
    headers: tuple[tuple[str, bytes], ...] = ()


def records(*messages: Any) -> list[Any]:
    """Records of events, or of bytes that are none."""
    return [
        FakeRecord(
            value=message if isinstance(message, bytes) else message.model_dump_json().encode(),
            key=b"r" if isinstance(message, bytes) else message.run_id.encode(),
            offset=offset,
        )
        for offset, message in enumerate(messages)
    ]


class FakeEventLog:
    """Gives one batch after the other, then stops the projector."""

    def __init__(self, *batches: list[Any]) -> None:
        self.batches = list(batches)
        self.stopping = asyncio.Event()
        self.offsets_done: list[int] = []
        self.held_s: list[float] = []

    async def take(self) -> list[Any]:
        if not self.batches:
            self.stopping.set()
            return []
        return self.batches.pop(0)

    async def hold(self, seconds: float) -> None:
        self.held_s.append(seconds)

    def done(self, records: Sequence[Any]) -> None:
        self.offsets_done += [record.offset for record in records]


@dataclass
class FakeSnapshots:
    """Snapshots in memory, which refuse as often as they are told to."""

    refusals: int = 0
    rejects: frozenset[str] = frozenset()
    seq: dict[str, int] = field(default_factory=dict)
    fields: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    flushes: list[list[str]] = field(default_factory=list)

    async def apply(self, changes: Sequence[RunChange]) -> list[int | ChangeRejected]:
        if self.refusals:
            self.refusals -= 1
            raise StoreUnavailable("down")
        self.flushes.append([change.run_id for change in changes])
        return [self._apply(change) for change in changes]

    def _apply(self, change: RunChange) -> int | ChangeRejected:
        if change.run_id in self.rejects:
            return ChangeRejected("WRONGTYPE")
        before = self.seq.get(change.run_id, 0)
        if change.last_seq > before:
            self.seq[change.run_id] = change.last_seq
            self.fields.setdefault(change.run_id, {}).update(change.fields)
        return before


@dataclass
class FakeDeadLetters:
    sent: list[tuple[int, str]] = field(default_factory=list)
    waits: int = 0

    def append(self, record: Any, *, error_type: str, message: str) -> None:
        self.sent.append((record.offset, error_type))

    async def acknowledged(self) -> None:
        self.waits += 1
