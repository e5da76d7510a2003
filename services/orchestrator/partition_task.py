"""The partition task: the one loop that decides what happens to the runs of one partition.

1. Take what has arrived; records of an older assignment are dropped.
2. Decide each record.
3. Append the outputs at once, waiting for nobody.
4. Checkpoint: fix the offset and encode the changed state in the same tick; wait until the outputs before it are
   acknowledged; write both in one transaction.

Assign: start the producer (fences the predecessor), read the changelog committed, seek, go on. Revoke and stop: take no
more, drain, checkpoint, close. What each error leads to stands in `ports.ON_ERROR`.
"""

import asyncio
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from structlog.typing import FilteringBoundLogger

from anabranch.services.orchestrator.core import changelog
from anabranch.services.orchestrator.core.decide import RULES_VERSION, Decision
from anabranch.services.orchestrator.core.effects import Append, Channel, DropTimer, SetTimer
from anabranch.services.orchestrator.core.graph import DefinitionRefused, Pipeline, compiling
from anabranch.services.orchestrator.core.partition import Partition, to_runs
from anabranch.services.orchestrator.core.transitions import Ignore
from anabranch.services.orchestrator.core.turn import SOURCE
from anabranch.services.orchestrator.metrics import OrchestratorMetrics
from anabranch.services.orchestrator.ports import (
    ON_ERROR,
    Answer,
    InboxRecord,
    LogError,
    PartitionLog,
    RestoreFailed,
)
from anabranch.services.orchestrator.refusals import refusals_of_lost
from anabranch.services.orchestrator.timers import Due, Timers
from anabranch.services.orchestrator.tracing import DecisionSpans
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import Undecodable, decode, encode, trace_id_or, type_said_in
from anabranch.shared.contracts.dead_letters import Origin, dead_letter, letter_key
from anabranch.shared.contracts.limits import MAX_CHECKPOINT_BYTES, MAX_UNACKNOWLEDGED_BYTES, MAX_UNCHECKPOINTED_BYTES
from anabranch.shared.contracts.text import writable

_YIELD_AFTER_S: Final = 0.02  # heartbeats and the other partitions get their turn
_WAKE: Final = "taken-over"
"""The timer of a run that is not understood: no run knows it, so only the run that is to be ended heeds it."""
_LONGEST_BACKOFF: Final = 16  # times the first: below the time a stop has

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the task checkpoints, and how far it may run ahead."""

    checkpoint_s: float = 0.2  # after the first record that is in none: a lone run is not held up by it, nor by two
    checkpoint_records: int = 5000
    max_uncheckpointed: int = 20_000  # records decided since the last checkpoint
    max_unacknowledged: int = 20_000  # records appended
    checkpoint_bytes: int = MAX_CHECKPOINT_BYTES  # of records decided and appended, which is more than they change
    max_uncheckpointed_bytes: int = MAX_UNCHECKPOINTED_BYTES
    max_unacknowledged_bytes: int = MAX_UNACKNOWLEDGED_BYTES
    restore_backoff_s: float = 0.5


class PartitionTask:
    """Runs one partition under one assignment, until it is stopped or fenced."""

    def __init__(
        self,
        log: PartitionLog,
        topic: str,
        metrics: OrchestratorMetrics,
        logger: FilteringBoundLogger,
        pace: Pace = Pace(),
        *,
        now_ms: Callable[[], int],
        spans: DecisionSpans | None = None,
    ) -> None:
        self._log = log
        self._topic = topic
        self._now_ms = now_ms  # this host's wall clock
        self._metrics = metrics
        self._spans = spans
        self._logger = logger.bind(partition=log.partition, assignment=log.assignment)
        self._pace = pace
        self._stopping = False
        self._backoff = 1  # times `restore_backoff_s`, until it has restored
        self._yielded_at = 0.0
        self._compiled: list[Pipeline] = []  # for the record at hand: the largest ones are not kept elsewhere
        self._gone: list[str] = []  # step types whose commands were lost with their topic
        self._forget()

    def _forget(self) -> None:
        self._partition = Partition()
        self._timers = Timers()
        self._offset: int | None = None
        self._restored = False
        self._since_checkpoint = self._bytes_since_checkpoint = 0
        self._checkpoint_due = 0.0
        self._writing_since = 0.0  # what is in the checkpoint under way was decided then, or later
        self._checkpointing: asyncio.Task[None] | None = None

    @property
    def partition(self) -> Partition:
        """The state it holds."""
        return self._partition

    @property
    def offset(self) -> int | None:
        """The inbox offset it decides next; None before it has restored."""
        return self._offset

    @property
    def is_restored(self) -> bool:
        """Whether it has read its state and decides."""
        return self._restored

    @property
    def active_runs(self) -> int:
        """How many runs have not ended."""
        return len(self._partition.runs) + len(self._partition.stored)

    def quiet_ms(self) -> int:
        """For how long nothing was heard of the run that was heard of least lately, by this host's clock."""
        runs = min((run.at for run in self._partition.runs.values()), default=None)
        stored = min((run.head.at for run in self._partition.stored.values()), default=None)
        heard = [at for at in (runs, stored) if at is not None]
        return max(0, self._now_ms() - min(heard)) if heard else 0

    def unwritten_s(self) -> float:
        """For how long the oldest record that was decided is in no checkpoint."""
        if self._checkpointing is not None:
            return max(0.0, self._loop.time() - self._writing_since)
        return max(0.0, self._loop.time() - self._decided_since) if self._since_checkpoint else 0.0

    @property
    def _decided_since(self) -> float:
        return self._checkpoint_due - self._pace.checkpoint_s

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping

    def stop(self) -> None:
        """Take no more; `run` drains, checkpoints and returns."""
        self._stopping = True
        self._log.interrupt()

    def commands_gone(self, step_type: str) -> None:
        """The type's topic is gone, and with it every command that nobody had taken: they are sent again."""
        self._gone.append(step_type)
        self._log.interrupt()

    async def run(self) -> None:
        """Own the partition until `stop` or until another process does. Raises what ends the process."""
        self._loop = asyncio.get_running_loop()  # kept: asking for it is a system call (CPython 3.11)
        try:
            while True:
                try:
                    await self._own()
                except LogError as error:
                    if not await self._goes_on_after(error):
                        return
                else:
                    return
        finally:
            await self._abandon_checkpoint()
            await self._log.close()

    async def _goes_on_after(self, error: LogError) -> bool:
        answer = ON_ERROR[type(error)]
        # What Kafka's client says of an outage is in the log already, and why a process ends is said when it does.
        is_said = getattr(error.__cause__, "retriable", False) or answer is Answer.END_PROCESS
        words = {"error": str(error), "cause": repr(error.__cause__), "answer": answer.value}
        if is_said:
            self._logger.info("partition error", **words)
        else:
            self._logger.warning("partition error", **words)
        self._metrics.partition_error(type(error).__name__)
        await self._abandon_checkpoint()
        self._forget()
        match answer:
            case Answer.RESTORE:
                await asyncio.sleep(self._pace.restore_backoff_s * self._backoff)
                self._backoff = min(2 * self._backoff, _LONGEST_BACKOFF)
                return not self._stopping
            case Answer.STOP_TASK:
                return False
            case _:
                raise error

    async def _own(self) -> None:
        await self._restore()
        while not self._stopping:
            records = await self._take()
            await self._decide_all(records)
            self._fire_due_timers()
            await self._refuse_gone()
            self._checkpoint_if_due()
            await self._hold_back()
        await self._finish()

    # --- assign ---------------------------------------------------------------------------------------------------

    async def _restore(self) -> None:
        started = self._loop.time()
        records = await self._open()
        self._partition, checkpoint, buried = await self._read(records)
        if checkpoint is not None and checkpoint.rules != RULES_VERSION:
            self._logger.warning("the tail of this partition was decided under other rules", rules=checkpoint.rules)
            self._metrics.other_rules()
        self._offset = None if checkpoint is None else checkpoint.offset
        for run_id, run in self._partition.stored.items():
            for timer_id, due_ms in run.timers().items():
                self._set_timer(run_id, SetTimer(timer_id, due_ms), max(self._partition.at, self._now_ms()))
        self._bury(buried)
        self._wake_broken()
        await self._log.seek(self._offset)
        self._restored = True
        self._backoff = 1
        self._metrics.restored(seconds=self._loop.time() - started, records=len(records))
        self._logger.info(
            "partition restored", runs=len(self._partition.stored), records=len(records), offset=self._offset,
            seconds=round(self._loop.time() - started, 3),
        )  # fmt: skip

    async def _open(self) -> "changelog.Records":
        await self._log.start_producer()  # first: from here on the predecessor's checkpoints are refused
        return await self._log.read_changelog()

    async def _read(self, records: "changelog.Records") -> "changelog.Restored":
        try:
            return await self._in_slices(changelog.restoring(records))
        except changelog.ChangelogCorrupt as error:  # this partition stands until somebody mends it; the others go on
            raise RestoreFailed(str(error)) from error

    def _bury(self, buried: Sequence["changelog.Buried"]) -> None:
        """Keep what stands for nothing where an operator finds it: the next checkpoint deletes it."""
        for key, value, reason in buried:
            origin = Origin(f"the changelog of {self._topic}", self._log.partition, -1, self._partition.at, key, value)
            self._logger.error("changelog record buried", key=repr(key), reason=writable(reason))
            self._metrics.buried()
            self._append_letter(origin, "ChangelogUnreadable", reason, None)

    def _wake_broken(self) -> None:
        """Have the runs that are not understood end: by a record, as everything that happens to a run."""
        for run_id, broken in self._partition.broken.items():
            trace_id = trace_id_or(broken.submission.trace_id, run_id)
            reason = writable(broken.reason)
            self._logger.error("run not understood: it fails", run_id=run_id, trace_id=trace_id, reason=reason)
            self._metrics.broken()
            self._fire(Due(run_id, _WAKE, self._partition.at))

    # --- 1. take --------------------------------------------------------------------------------------------------

    async def _take(self) -> Sequence[InboxRecord]:
        until = [
            deadline for deadline in (self._timers.next_deadline(), self._next_checkpoint()) if deadline is not None
        ]
        wait_s = max(0.0, min(until) - self._loop.time()) if until else _IDLE_WAIT_S
        return self._of_this_assignment(await self._log.take(wait_s))

    def _of_this_assignment(self, records: Sequence[InboxRecord]) -> Sequence[InboxRecord]:
        if records and records[0].assignment != self._log.assignment:
            self._metrics.dropped_stale(len(records))
            return ()
        return records

    # --- 2. decide ------------------------------------------------------------------------------------------------

    async def _decide_all(self, records: Sequence[InboxRecord]) -> None:
        self._yielded_at = self._loop.time()
        if records and not self._since_checkpoint:
            self._checkpoint_due = self._yielded_at + self._pace.checkpoint_s
        for record in records:
            message = decode(m.INBOX, record.value)
            if not isinstance(message, Undecodable):
                definitions = self._partition.definitions_of(message)
                if definitions or self._compiled:
                    await self._compile(definitions)
            self._handle(record, message)
            if self._is_heavy:
                self._checkpoint_if_due()
                await self._hold_back()
            if self._loop.time() - self._yielded_at > _YIELD_AFTER_S:
                await self._yield()

    async def _awaken_all(self) -> None:
        """Do for every run that was restored what is otherwise done when it is first decided on."""
        for run_id in tuple(self._partition.stored):
            stored = self._partition.stored[run_id]
            await self._compile((stored.submission.definition,))
            self._partition.awaken(run_id)
        self._wake_broken()

    async def _compile(self, definitions: Sequence[str]) -> None:
        """Compile definitions before a message is decided that needs them, so that deciding it does not take long."""
        self._compiled = []
        for definition in definitions:
            try:
                self._compiled.append(await self._in_slices(compiling(definition)))
            except DefinitionRefused as error:  # known from here on: deciding says so of each of its runs
                self._logger.warning("definition not understood", reason=writable(str(error)))

    async def _in_slices(self, slices: Generator[None, None, T]) -> T:
        """Run it to its end, and let the others have their turn on the way."""
        self._yielded_at = self._loop.time()
        while True:
            try:
                next(slices)
            except StopIteration as done:
                value: T = done.value
                return value
            if self._loop.time() - self._yielded_at > _YIELD_AFTER_S:
                await self._yield()

    async def _yield(self) -> None:
        await asyncio.sleep(0)
        self._yielded_at = self._loop.time()

    def _handle(self, record: InboxRecord, message: m.InboxMessage | Undecodable) -> None:
        if isinstance(message, Undecodable):
            self._dead_letter(record, "Undecodable", message.reason, None)
        elif isinstance(message, m.LeasesRenewed):
            for part in to_runs(message):
                self._decide(record, part)
        else:
            self._decide(record, message)
        self._offset = record.offset + 1
        self._since_checkpoint += 1
        self._bytes_since_checkpoint += len(record.value or b"")

    def _decide(self, record: InboxRecord, message: m.RunMessage) -> None:
        began_ns = self._spans.now_ns() if self._spans is not None else 0
        try:
            decision = self._partition.decide(message, record.at_ms)
        except Exception as error:  # noqa: BLE001  # whatever is wrong with deciding this record, the next ones must go on
            decision = self._engine_error(record, message, error)
        if type(message) is m.TimerFired and (lost := _lost_workers(decision)):
            self._metrics.worker_lost(lost)
        if self._spans is not None:
            self._spans.decided(record, message, decision, began_ns)
        self._partition.commit(decision, record.at_ms)
        self._act(decision, message.run_id, record.at_ms)
        self._metrics.decided(message.type, decision.ignored)
        said = message.__dict__  # not `getattr`: of an attribute that is missing pydantic takes microseconds to say so
        self._logger.debug(
            "decided", run_id=message.run_id, step=said.get("step"), type=message.type,
            attempt=said.get("attempt"), ignored=decision.ignored,
            trace_id=None if decision.run is None else decision.run.trace_id,
        )  # fmt: skip

    def _engine_error(self, record: InboxRecord, message: m.RunMessage, error: Exception) -> Decision:
        words = writable("".join(traceback.format_exception(error)))
        self._logger.error("deciding raised", type=message.type, traceback=words, **self._named(message))
        self._dead_letter(record, type(error).__name__, "".join(traceback.format_exception_only(error)), words)
        try:
            return self._partition.abandon(message, error, record.at_ms)
        except Exception:  # not even failing the run works: nothing touches it any more
            self._logger.exception("run quarantined", **self._named(message))
            self._partition.quarantine(message.run_id)
            self._timers.drop_run(message.run_id)
            self._metrics.quarantined()
            return Decision(None)

    def _named(self, message: m.RunMessage) -> dict[str, object]:
        """Return what a line names that is about a message: its run and trace, and of an attempt's its step."""
        known = self._partition.submission_of(message.run_id)
        submission = message if known is None and isinstance(message, m.SubmitRun) else known
        trace_id = trace_id_or(submission.trace_id if submission else "", message.run_id)
        named: dict[str, object] = {"run_id": message.run_id, "trace_id": trace_id}
        if (step := getattr(message, "step", None)) is not None:
            named |= {"step": step, "attempt": getattr(message, "attempt", None)}
        return named

    # --- 3. append ------------------------------------------------------------------------------------------------

    def _act(self, decision: Decision, run_id: str, at_ms: int) -> None:
        said = ""
        for effect in decision.effects:
            match effect:
                case Append():
                    self._log.append(effect)
                    self._bytes_since_checkpoint += len(effect.value)
                    if effect.channel is Channel.RUN_EVENTS:
                        self._metrics.said(said := type_said_in(effect.headers))
                case SetTimer() if decision.ignored is Ignore.EARLY_TIMER:  # our clock is ahead: go by the broker's
                    self._set_timer(run_id, effect, at_ms)
                case SetTimer():  # the record may have waited, or be decided again after a take-over
                    self._set_timer(run_id, effect, max(at_ms, self._now_ms()))
                case DropTimer():
                    self._timers.drop(run_id, effect.timer_id)
        if decision.turn is not None and decision.turn.ended:
            self._timers.drop_run(run_id)
            turn = decision.turn
            seconds = max(0, turn.at - turn.run.started_at) / 1000
            self._metrics.run_ended(said, seconds=seconds, trace_id=turn.trace_id)

    def _set_timer(self, run_id: str, effect: SetTimer, now_ms: int) -> None:
        """Arm a timer for what remains of it. One that fires too early, since a clock is ahead, is armed again."""
        now = self._loop.time()
        self._timers.set(run_id, effect.timer_id, effect.due_ms, now + max(0, effect.due_ms - now_ms) / 1000)

    def _fire_due_timers(self) -> None:
        for due in self._timers.take_due(self._loop.time()):
            self._fire(due)

    def _fire(self, due: Due) -> None:
        message = m.TimerFired(run_id=due.run_id, timer_id=due.timer_id)
        submission = self._partition.submission_of(due.run_id)
        record = encode(
            message,
            message_id=f"{due.run_id}/timer/{due.timer_id}",
            source=SOURCE,
            at_ms=due.due_ms,
            trace_id=trace_id_or(submission.trace_id if submission else "", due.run_id),
            is_sampled=submission is None or submission.sampled is not False,
        )
        self._log.append(Append(Channel.INBOX, due.run_id, record.value, record.headers))

    async def _refuse_gone(self) -> None:
        if self._gone:
            await self._awaken_all()
        while self._gone:
            uses, yielded = self._gone.pop(), self._loop.time()
            for refusal in refusals_of_lost(self._partition, uses, "its topic was deleted, and the commands in it"):
                self._log.append(refusal)
                if self._loop.time() - yielded > _YIELD_AFTER_S:
                    await asyncio.sleep(0)
                    yielded = self._loop.time()

    def _dead_letter(self, record: InboxRecord, error_type: str, reason: str, words: str | None) -> None:
        origin = Origin(
            self._topic, self._log.partition, record.offset, record.at_ms, record.key, record.value, record.headers
        )
        self._append_letter(origin, error_type, reason, words)

    def _append_letter(self, origin: Origin, error_type: str, reason: str, words: str | None) -> None:
        letter = dead_letter(
            origin, service="orchestrator", source=SOURCE, error_type=error_type, reason=reason, traceback=words
        )
        key = (letter_key(origin.key) or b"").decode(errors="replace")
        self._log.append(Append(Channel.DEAD_LETTERS, key, letter.value, letter.headers))
        self._metrics.dead_lettered(error_type)

    # --- 4. checkpoint --------------------------------------------------------------------------------------------

    def _next_checkpoint(self) -> float | None:
        return self._checkpoint_due if self._since_checkpoint and self._checkpointing is None else None

    def _checkpoint_if_due(self) -> None:
        if self._checkpointing is not None and self._checkpointing.done():
            checkpointing, self._checkpointing = self._checkpointing, None
            checkpointing.result()
        if self._checkpointing is not None or not self._since_checkpoint:
            return
        now = self._loop.time()
        is_large = self._since_checkpoint >= self._pace.checkpoint_records or self._is_heavy
        if is_large or now >= self._checkpoint_due:
            self._checkpointing = self._start_checkpoint()

    @property
    def _is_heavy(self) -> bool:
        return (
            self._bytes_since_checkpoint >= self._pace.checkpoint_bytes
            or self._log.unacknowledged_bytes > self._pace.max_unacknowledged_bytes
        )

    def _start_checkpoint(self) -> "asyncio.Task[None]":
        """Fix the offset and encode the changed state, in this tick; write them when their outputs are out."""
        assert self._offset is not None
        changes = changelog.take_changes(self._partition, self._offset)
        acknowledged = self._log.acknowledged()
        self._writing_since = self._decided_since
        self._since_checkpoint = self._bytes_since_checkpoint = 0
        writing = asyncio.create_task(
            self._write_checkpoint(changes, acknowledged), name=f"checkpoint of partition {self._log.partition}"
        )
        writing.add_done_callback(lambda _: self._log.interrupt())
        return writing

    async def _write_checkpoint(
        self, changes: Sequence[changelog.Change], acknowledged: "asyncio.Future[None]"
    ) -> None:
        started = self._loop.time()
        await self._wait_for(acknowledged)
        await self._log.checkpoint(changes)
        size = sum(len(key) + len(value or b"") for key, value in changes)
        self._metrics.checkpointed(seconds=self._loop.time() - started, records=len(changes), size=size)

    async def _wait_for(self, acknowledged: "asyncio.Future[None]") -> None:
        await acknowledged

    async def _hold_back(self) -> None:
        """Stop taking while too much is not checkpointed or not acknowledged."""
        pace, log, began = self._pace, self._log, self._loop.time()
        if log.unacknowledged > pace.max_unacknowledged or log.unacknowledged_bytes > pace.max_unacknowledged_bytes:
            await log.acknowledged()
            self._metrics.held_back(seconds=self._loop.time() - began)
        is_ahead = (
            self._since_checkpoint > pace.max_uncheckpointed
            or self._bytes_since_checkpoint > pace.max_uncheckpointed_bytes
        )
        if is_ahead and self._checkpointing is not None:
            began = self._loop.time()
            await asyncio.wait([self._checkpointing])
            self._metrics.held_back(seconds=self._loop.time() - began)

    # --- revoke and stop ------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        if self._checkpointing is not None:
            checkpointing, self._checkpointing = self._checkpointing, None
            await checkpointing
        if self._since_checkpoint:
            await self._start_checkpoint()

    async def _abandon_checkpoint(self) -> None:
        if self._checkpointing is not None:
            self._checkpointing.cancel()
            await asyncio.wait([self._checkpointing])
            self._checkpointing = None


def _lost_workers(decision: Decision) -> int:
    """Return how many leases the decision gives up, before it is committed."""
    turn = decision.turn
    if turn is None:
        return 0
    return sum(max(0, step.losses - turn.run.steps[index].losses) for index, step in turn.changed.items())


_IDLE_WAIT_S: Final = 60.0  # nothing is due: only a record or `stop` ends the wait
