"""The life of a partition that takes drawn records: decided, checkpointed, restored again and again, and projected.

The real partition task runs on the scripted log of the unit tests, on a virtual clock. What must hold:

1. The task goes on, whatever it takes.
2. A restored partition is the one of before, to the byte.
3. A repeat of an output is the output, to the byte.
4. Every output can be read by whoever it is for; every event is projected, and the run's document is JSON.
5. Every run ends, once it is cancelled at the latest.
"""

import asyncio
import copy
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import orjson
import structlog

from anabranch.services.history.decoded import DecodedEvents
from anabranch.services.history.metrics import HistoryMetrics
from anabranch.services.history.projector import Projector
from anabranch.services.orchestrator.core import changelog
from anabranch.services.orchestrator.core.effects import Append, Channel
from anabranch.services.orchestrator.core.partition import HEAD, Partition
from anabranch.services.orchestrator.metrics import OrchestratorMetrics
from anabranch.services.orchestrator.partition_task import Pace, PartitionTask
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import Undecodable, decode, header
from anabranch.shared.contracts.limits import MAX_RECORD_BYTES
from anabranch.shared.runtime.metrics import new_registry
from anabranch.shared.runtime.snapshots import document
from tests.fuzz.guard import Meter, MeteredLoop, bounded, check_appended, close
from tests.fuzz.values import Wire
from tests.support.scripted_log import ScriptedLog
from tests.unit.history.fakes import FakeDeadLetters, FakeEventLog, FakeRecord, FakeSnapshots

T = TypeVar("T")
T0 = 1_770_000_000_000
_SETTLE_S = 0.5  # virtual: longer than a checkpoint takes to come
_ROUNDS = 40  # of answers and timers
_LONG_S = 100_000.0  # virtual: longer than any limit of a run that the gateway stamps

Answers = Sequence[Wire]
"""What workers answer, one after the other and from the beginning again: see `addressed`."""


class Life:
    """One partition, from its first record on. `is_honest`: its records are such as the gateway and workers write."""

    def __init__(self, answers: Answers, restore_every: int, *, is_honest: bool) -> None:
        self.log = ScriptedLog()
        self._answers = answers
        self._answered = 0
        self._restore_every = restore_every
        self._is_honest = is_honest
        self._seen = 0
        self._outputs: dict[tuple[Channel, str, str], bytes] = {}
        self.documents: list[bytes] = []  # of its runs, at its end

    async def run(self, first: Sequence[bytes | None]) -> None:
        """Take the first records, then what follows from them, to the end."""
        self._start()
        for raw in first:
            await self._take(raw)
        for round_number in range(_ROUNDS):
            new = self._new()
            for raw in self._following(new):
                await self._take(raw)
            if self._restore_every and round_number % self._restore_every == 0:
                await self._restore()
            if not self._active():
                break
            if not new:
                await asyncio.sleep(_LONG_S / _ROUNDS)
        await self._end()
        self._check_outputs()
        self.documents = await project([a.value for a in self.log.appended if a.channel is Channel.RUN_EVENTS])

    async def _end(self) -> None:
        """Cancel what still runs and let every timer come due: then no run may be left."""
        for run_id in self._active():
            await self._take(m.CancelRun(run_id=run_id).model_dump_json().encode())
        for _ in range(_ROUNDS):
            if not self._active():
                break
            for raw in self._following(self._new(), silent=True):
                await self._take(raw)
            await asyncio.sleep(_LONG_S)
        assert not self._active(), f"runs that never end: {self._active()} {self._task.partition.runs}"
        await self._stop()

    def _active(self) -> list[str]:
        partition = self._task.partition
        return [*partition.runs, *partition.stored, *partition.broken]

    # --- the task -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        metrics = OrchestratorMetrics(new_registry())
        self._task = PartitionTask(self.log, "pipelines.inbox", metrics, structlog.get_logger(), Pace(), now_ms=_now_ms)
        self._running = asyncio.create_task(self._task.run())

    async def _until_restored(self) -> None:
        while not self._running.done() and not self._task.is_restored:
            await asyncio.sleep(0)

    async def _stop(self) -> None:
        self._task.stop()
        await self._running

    async def _take(self, raw: bytes | None) -> None:
        before = len(self.log.appended)
        self.log.feed(raw, _now_ms())
        await self._settle()
        check_appended("a record", sum(len(each.value) for each in self.log.appended[before:]))

    async def _settle(self) -> None:
        """Wait until everything was taken, which may need a thread's real time, and then a checkpoint's virtual one."""
        while not self._running.done() and (self._task.offset or 0) < len(self.log.inbox):
            await asyncio.sleep(0)
        await asyncio.sleep(_SETTLE_S)
        if self._running.done():
            self._running.result()
            raise AssertionError("the partition task has ended by itself")

    async def _restore(self) -> None:
        await self._stop()
        before = full_changelog(self._task.partition)
        self._start()
        await self._until_restored()
        after = full_changelog(self._task.partition)
        assert after == before, _difference(before, after)

    # --- what follows from outputs ------------------------------------------------------------------------------------

    def _new(self) -> list[Append]:
        new = self.log.appended[self._seen :]
        self._seen = len(self.log.appended)
        return new

    def _following(self, outputs: Sequence[Append], *, silent: bool = False) -> Iterator[bytes]:
        for output in outputs:
            match output.channel:
                case Channel.INBOX:
                    yield output.value
                case Channel.COMMANDS:
                    command = read(m.COMMANDS, output)
                    if self._answers and not silent:
                        self._answered += 1
                        yield addressed(self._answers[self._answered % len(self._answers)], command)
                case Channel.CONTROL:
                    told = read(m.CONTROL, output)
                    yield (
                        m.AttemptCancelled(run_id=told.run_id, step=told.step, attempt=told.attempt)
                        .model_dump_json()
                        .encode()
                    )

    def _check_outputs(self) -> None:
        for output in self.log.appended:
            assert len(output.value) <= MAX_RECORD_BYTES, f"{output.channel} of {len(output.value)} bytes"
            if output.channel is Channel.DEAD_LETTERS:
                letter = read(m.DEAD_LETTERS, output)
                is_right = letter.error_type in ("Undecodable", "WorkerLost")  # the second: an attempt lost too often
                assert is_right or not self._is_honest, letter
                continue
            if not self._is_honest:
                continue  # who forges two submissions of one run has two runs of one name
            key = (output.channel, output.key, header(output.headers, "ce_id") or "")
            assert self._outputs.setdefault(key, output.value) == output.value, f"{key} was repeated as another"


_EXPECTED_LETTERS: Final = frozenset({"Undecodable", "WorkerLost"})
"""What an honest life may lead to: records that say nothing, and commands that took their workers down."""


def _now_ms() -> int:
    """Return what every clock says, the broker's and the host's."""
    return T0 + round(asyncio.get_running_loop().time() * 1000)


def read(adapter: Any, output: Append) -> Any:
    """Return an output as whoever it is for reads it, who must be able to."""
    message = decode(adapter, output.value)
    assert not isinstance(message, Undecodable), f"{output.channel}: {message.reason}"
    return message


def addressed(answer: Wire, command: m.RunStep) -> bytes:
    """Return an answer as bytes, to this command. What has another address in it keeps that."""
    given = answer.document
    if not isinstance(given, dict):
        return answer.raw
    to = {"run_id": command.run_id, "step": command.step, "attempt": command.attempt}
    return Wire({**to, **given}, answer.harm).raw


def full_changelog(partition: Partition) -> dict[bytes, bytes | None]:
    """Return everything that the changelog would say of a partition, had it never said anything."""
    twin = copy.copy(partition)
    twin.runs, twin.stored, twin.broken = dict(partition.runs), dict(partition.stored), dict(partition.broken)
    for run_id in list(twin.stored):  # runs are understood when somebody asks for them
        twin.awaken(run_id)
    twin.changed = {run_id: {HEAD, *range(len(run.steps))} for run_id, run in twin.runs.items()}
    twin.written, twin.left_over, twin.finished = {}, {}, copy.deepcopy(partition.finished)
    return dict(changelog.take_changes(twin, 0))


def _difference(before: dict[bytes, Any], after: dict[bytes, Any]) -> str:
    differing = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    shown = [(key, str(before.get(key))[:300], str(after.get(key))[:300]) for key in differing[:3]]
    return f"a restored partition is another: {shown}"


async def project(values: Sequence[bytes], *, are_honest: bool = True) -> list[bytes]:
    """Project run events and return the documents; events of ours all have to be projected."""
    # Offsets tell records apart; keys are the runs, as the orchestrator writes them.
    records = [FakeRecord(value=value, key=_run_of(value), offset=offset) for offset, value in enumerate(values)]
    log, snapshots, letters = FakeEventLog(records), FakeSnapshots(), FakeDeadLetters()
    projector = Projector(
        log,
        snapshots,
        letters,
        DecodedEvents(are_shared=False),
        metrics=HistoryMetrics(new_registry()),
        log=structlog.get_logger(),
        now_s=lambda: 2.0,
    )
    await projector.run(log.stopping)
    assert log.offsets_done == list(range(len(records))), "not every record was called done"
    assert not (are_honest and letters.sent), f"events that cannot be projected: {letters.sent}"
    return [document(run_id, fields) for run_id, fields in snapshots.fields.items()]


def check_documents(documents: Iterable[bytes]) -> None:
    """Read them as a client does: what that takes is the client's, and no case's."""
    for each in documents:
        orjson.loads(each)


def _run_of(value: bytes) -> bytes:
    try:
        return str(orjson.loads(value)["run_id"]).encode("utf-8", "replace")
    except (ValueError, TypeError, KeyError):
        return b""


def live(first: Sequence[bytes | None], answers: Answers = (), restore_every: int = 1, *, is_honest: bool) -> None:
    """Live a whole life on a virtual clock, within the limits of a case."""
    with bounded("a turn of the orchestrator's loop") as meter:
        documents = on_virtual_clock(_documents_of(Life(answers, restore_every, is_honest=is_honest), first), meter)
    check_documents(documents)


async def _documents_of(life: Life, first: Sequence[bytes | None]) -> list[bytes]:
    await life.run(first)
    return life.documents


def on_virtual_clock(main: Coroutine[Any, Any, T], meter: Meter) -> T:
    """Run a coroutine on a metered loop of its own, and return what it does."""
    loop = MeteredLoop(is_virtual=True)
    try:
        return loop.run_until_complete(main)
    finally:
        meter.held_s = max(meter.held_s, loop.meter.held_s)
        close(loop)
