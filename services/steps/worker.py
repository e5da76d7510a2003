"""The worker: commands in, handlers, answers out.

Read `_accept`, `_attempt`, `_answer`, `_settle` in this order: that is the life of a command. What keeps it right:

1. A repeat of a command in hand or lately finished is dropped, its offset released with the original's.
2. A command that may have been in other hands is looked up in the memory before it is run.
3. An offset is released when the attempt's answer is acknowledged, or its `AttemptStarted`: then the orchestrator
   watches the lease, and nobody needs the record again.
4. The control topic is read from its start before the first command is taken.
5. Before a partition goes, everything in hand of it is finished or leased, acknowledged, remembered and committed.
6. A lease that was not renewed in time ends its handler, before the orchestrator gives the step to another.

A worker has no clock, no randomness and no I/O of its own: the loop's time, and ports. Whatever cannot go on raises out
of `run`, and the process ends; what it had in hand comes again.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import replace
from functools import partial
from typing import Any, Final, Generic

from structlog.typing import FilteringBoundLogger

from anabranch.services.steps import answers
from anabranch.services.steps.attempt import Attempt, Ending
from anabranch.services.steps.cancellations import Cancellations
from anabranch.services.steps.context import StepContext
from anabranch.services.steps.guard import Failure, Guard, Outcome, Returned, failure_of, hidden, hidden_failure
from anabranch.services.steps.lately import Lately
from anabranch.services.steps.leases import Leases
from anabranch.services.steps.metrics import Facts
from anabranch.services.steps.notes import Notes
from anabranch.services.steps.offsets import PartitionInHand
from anabranch.services.steps.ports import (
    Asked,
    CancelRecord,
    CommandRecord,
    Commands,
    Control,
    Memory,
    Note,
    Remembered,
    Results,
    Secrets,
    Take,
)
from anabranch.services.steps.secrets import NoSecrets, with_secrets
from anabranch.services.steps.sending import NothingSettles, Sending
from anabranch.services.steps.settings import WorkerSettings
from anabranch.services.steps.step_type import In, Out, StepType
from anabranch.services.steps.trials import Trials
from anabranch.services.steps.turns import Turns
from anabranch.shared.contracts.codec import Encoded, Undecodable, decode, headers_of, trace_id_or
from anabranch.shared.contracts.dead_letters import letter_key
from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.contracts.hiding import Hiding
from anabranch.shared.contracts.ids import attempt_id
from anabranch.shared.contracts.messages import COMMANDS, AttemptStarted, RunStep
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.contracts.secrets import SecretText
from anabranch.shared.contracts.topics import TopicNames
from anabranch.shared.runtime.errors import CommitRefused
from anabranch.shared.runtime.log import hide_from_logs

Invoke = Callable[[object, StepContext], Awaitable[Outcome]]
"""Runs one attempt: from the input of its command to an outcome."""


_UNASKED: Final = "its task was cancelled by a handler, this one or one beside it: nobody had asked the worker for that"
_TAKES_EVERY: Final = 5  # polls: a worker that has not asked for commands for as long takes none


class CancelledByStranger(AnabranchError):
    """A task that the worker cannot do without was cancelled by what a handler did: nothing can be relied on."""


class Worker(Generic[In, Out]):
    """Serves one step type. `name` must differ from that of every worker before, also of this host's."""

    def __init__(
        self,
        step_type: StepType[In, Out],
        *,
        name: str,
        topics: TopicNames,
        commands: Commands,
        results: Results,
        memory: Memory,
        control: Control,
        now_ms: Callable[[], int],
        log: FilteringBoundLogger,
        settings: WorkerSettings = WorkerSettings(),  # noqa: B008  frozen
        facts: Facts | None = None,
        turns: Turns | None = None,
        invoke: Invoke | None = None,
        resource: Any = None,
        secrets: Secrets | None = None,
    ) -> None:
        self._type = step_type
        self._name = name
        self._topics = topics
        self._inbox = topics.inbox
        self._source = f"anabranch/steps/{step_type.name}"
        self._commands = commands
        self._control = control
        self._now_ms = now_ms
        self._log = log.bind(uses=step_type.name)
        self._settings = settings
        self._facts = facts or Facts()
        self._turns = turns or Turns()
        self._invoke: Invoke = invoke or Guard(step_type, self._turns).in_loop
        self._resource = resource
        self._secrets = secrets or NoSecrets(step_type.name)

        self._sending = Sending(results)
        self._notes = Notes(memory, settings, log)
        self._cancellations = Cancellations(settings.cancellations_count, settings.cancellations_s)
        self._lately = Lately(settings.lately_count, settings.lately_s)
        self._partitions: dict[int, PartitionInHand] = {}
        self._attempts: dict[str, Attempt] = {}  # by id, until the answer is acknowledged
        self._bytes = 0  # of them
        self._leases = Leases(self._attempts, settings, lease=self._lease, renew=self._renew, lapse=self._lapse)
        self._ready: deque[Attempt] = deque()  # taken up in this turn of the loop
        self._busy = 0
        self._facts.watch_busy(lambda: self._busy)
        self._renewals = 0
        self._is_paused = False
        self._is_stopping = False
        self._suspects: list[str] = []  # when it began to go down
        self._is_going_down = False  # what is cancelled now is being killed
        self._asked_at = float("-inf")  # for commands, on the loop's clock
        self._has_room = asyncio.Event()
        self._is_released = asyncio.Event()
        self._trials = Trials(self._attempts)

    # --- from start to stop ------------------------------------------------------------------------------------------

    async def run(self, stopping: asyncio.Event) -> None:
        """Serve until `stopping` is set, then hand over what is in hand and return."""
        self._loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await self._serve(stopping)
            finally:
                self._go_down()

    async def _serve(self, stopping: asyncio.Event) -> None:
        # 1. Know what was cancelled, then take.
        await self._learn_cancellations()
        background = [
            self._tasks.create_task(self._vital(name, work), name=f"worker: {name}")
            for name, work in (
                ("settle", self._sending.keep_settling()),
                ("write notes", self._notes.keep_writing()),
                ("read notes", self._notes.keep_reading()),
                ("count takes", self._notes.keep_counting()),
                ("lease", self._leases.keep_leasing()),
                ("renew", self._leases.keep_renewing()),
                ("commit", self._keep_committing()),
                ("follow cancellations", self._follow_cancellations()),
            )
        ]
        await self._commands.start(self)
        taking = self._tasks.create_task(
            self._vital("take commands", self._keep_taking()), name="worker: take commands"
        )
        # 2. Work.
        await stopping.wait()
        self._is_stopping = True
        taking.cancel()
        # 3. Hand over.
        await self._stop(self._loop.time() + self._settings.stop_timeout_s)
        for task in background:
            task.cancel()

    async def _vital(self, name: str, work: Awaitable[None]) -> None:
        """Do what the worker cannot do without: if it ends, the worker does. Only the worker itself may cancel it."""
        try:
            await work
        except asyncio.CancelledError:
            if self._is_stopping or self._is_going_down:
                raise
            self._go_down()
            raise CancelledByStranger(f"a handler cancelled the worker's own task: {name}") from None
        except BaseException:
            self._go_down()
            raise

    def _go_down(self) -> None:
        """From here on what is cancelled is being killed; who was in hand is remembered."""
        if not self._is_going_down:
            self._suspects = self.in_hand()
            self._is_going_down = True

    @property
    def is_taking(self) -> bool:
        """Whether commands were asked for lately; a full worker asks too."""
        now_s = asyncio.get_running_loop().time()
        return not self._is_going_down and now_s - self._asked_at < _TAKES_EVERY * self._settings.poll_s

    def in_hand(self) -> list[str]:
        """Return the attempts whose handler runs, or ran when the worker failed: who is suspect if the process ends."""
        if self._is_going_down:
            return self._suspects
        return [attempt.id for attempt in self._attempts.values() if attempt.is_at_work()]

    async def _stop(self, deadline: float) -> None:
        """Leave the group first, so that others take over; then finish what is leased, or give it back."""
        await self.on_revoked(list(self._partitions))
        with suppress(TimeoutError):  # a broker that is away need not be told: the session ends by itself
            async with asyncio.timeout_at(deadline - self._settings.give_back_s):
                await self._commands.stop()
        await self._until_idle(deadline - self._settings.give_back_s)
        held = [
            attempt for attempt in self._attempts.values() if attempt.lease_until is not None and not attempt.ending
        ]
        for attempt in list(self._attempts.values()):
            attempt.end(Ending.HANDED_BACK)
        await self._until_idle(deadline - self._settings.give_back_s / 2)
        self._give_back([attempt for attempt in held if attempt.is_over and attempt.ending is Ending.HANDED_BACK])
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._sending.settled()
                await self._notes.flush()

    async def _until_idle(self, deadline: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while self._busy:
                    self._has_room.clear()
                    await self._has_room.wait()

    # --- taking ------------------------------------------------------------------------------------------------------

    async def _keep_taking(self) -> None:
        while True:
            await self._until_room()
            self._asked_at = self._loop.time()
            for record in await self._commands.take(max(1, self._room()), self._settings.poll_s):
                self._accept(record)  # it may be of an assignment that ended while another had its turn
                if self._turns.is_spent:
                    await self._turns.next()
                    self._asked_at = self._loop.time()

    def _room(self) -> int:
        settings = self._settings
        if self._bytes >= settings.max_in_hand_bytes:
            return 0
        return min(settings.concurrency - self._busy, settings.max_unanswered - len(self._attempts))

    async def _until_room(self) -> None:
        """Wait until there is room for a command; pause when that takes long, but never stop polling."""
        wait_s = self._settings.pause_after_s
        while self._room() <= 0:
            self._has_room.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._has_room.wait()
            if self._room() > 0:
                break
            self._commands.pause(list(self._partitions))
            self._is_paused = True
            wait_s = self._settings.poll_s
            self._asked_at = self._loop.time()
            for record in await self._commands.take(1, 0):  # of a partition that came after the pause
                self._accept(record)
        if self._is_paused:
            self._commands.resume(list(self._partitions))
            self._is_paused = False

    def _accept(self, record: CommandRecord) -> None:
        """Take up one command, unless it is nobody's, a repeat, or no command at all."""
        partition = self._partition_of(record)
        if partition is None:
            self._facts.stale_dropped()
            return
        partition.take(record.offset)
        command = self._read(record)
        self._turns.spend(len(record.value or b""))
        if isinstance(command, Undecodable):
            self._dead_letter(record, partition, command.reason)
            return
        attempt = attempt_id(command.run_id, command.step, command.attempt)
        if self._is_repeat(attempt):
            self._drop_repeat(attempt, partition, record.offset)
        else:
            self._take_up(Attempt(attempt, command, record, partition))

    def _partition_of(self, record: CommandRecord) -> PartitionInHand | None:
        """Return the partition in hand that the record was fetched for: records of an older assignment have none."""
        partition = self._partitions.get(record.partition)
        return partition if partition is not None and partition.assignment == record.assignment else None

    def _read(self, record: CommandRecord) -> RunStep | Undecodable:
        command = decode(COMMANDS, record.value)
        if not isinstance(command, Undecodable) and command.uses != self._type.name:
            return Undecodable(record.value, f"a command for {command.uses} on the topic of {self._type.name}")
        return command

    def _is_repeat(self, attempt: str) -> bool:
        """Whether the attempt is in hand, or was finished lately."""
        return attempt in self._attempts or attempt in self._lately

    def _drop_repeat(self, attempt: str, partition: PartitionInHand, offset: int) -> None:
        original = self._attempts.get(attempt)
        if original is None:  # finished, and its answer acknowledged
            partition.release(offset)
            self._is_released.set()
        else:
            original.also_of(partition, offset)
        self._facts.repeat_dropped("lately" if original is None else "in_hand")

    def _take_up(self, attempt: Attempt) -> None:
        self._attempts[attempt.id] = attempt
        self._bytes += attempt.bytes
        if self._is_cancelled(attempt):
            attempt.is_over = True
            self._answer(attempt, answers.cancelled(attempt.command, 0))
            return
        self._busy += 1
        if self._must_recall(attempt):
            attempt.must_be_recalled = True
            self._begin(attempt)
            return
        if not self._ready:
            self._tasks.create_task(self._run_ready()).add_done_callback(self._see_rest)
            self._tasks.create_task(self._run_rest()).add_done_callback(self._see_rest)
        self._ready.append(attempt)

    # --- running -----------------------------------------------------------------------------------------------------

    async def _run_ready(self) -> None:
        """Run what is ready, one after another in one task: a task of its own costs more than many a handler.

        One that waits holds nobody up, see `_run_rest`. Nothing of an attempt is left to the next: a task that was
        cancelled, or whose context variables were changed, runs no other.
        """
        task, context = asyncio.current_task(), copy_context()
        assert task is not None
        while self._ready and not task.cancelling() and _is_current(context):
            await self._attempt(self._ready.popleft(), task)

    async def _run_rest(self) -> None:
        """Give what is still ready tasks of their own: `_run_ready` had its turn, and is held up.

        A task too, not a callback: a group that is going down cancels it, and nothing more begins.
        """
        while self._ready:
            self._begin(self._ready.popleft())

    def _see_rest(self, task: "asyncio.Task[None]") -> None:
        """See that what is ready runs, also if a stranger cancelled who was to run it."""
        if task.cancelled() and self._ready and not self._is_going_down:
            self._tasks.create_task(self._run_rest()).add_done_callback(self._see_rest)

    def _begin(self, attempt: Attempt) -> None:
        """Give an attempt a task of its own."""
        if attempt.must_be_recalled:
            self._trials.doubt(attempt)
        self._tasks.create_task(self._attempt(attempt)).add_done_callback(partial(self._see_begun, attempt))

    def _see_begun(self, attempt: Attempt, task: "asyncio.Task[None]") -> None:
        """See that an attempt runs, also if a stranger cancelled its task before that ran: nothing of it knows."""
        if task.cancelled() and not attempt.has_task and not self._is_going_down:
            self._leave_slot(attempt)
            self._begin_again(attempt)

    def _begin_again(self, attempt: Attempt) -> None:
        """Begin an attempt whose handler was not called yet when a stranger cancelled its task."""
        attempt.begin_again()
        self._busy += 1
        self._begin(attempt)

    async def _attempt(self, attempt: Attempt, task: "asyncio.Task[None] | None" = None) -> None:
        """Run one attempt to its answer. Its task is cancelled to end it, for a reason, or because all ends.

        A cancellation that nobody asked for is a handler's doing, its own or another's; so is a `GeneratorExit` in a
        running task. An attempt whose handler was not called yet is not touched by it. Whoever knows the `task` says
        it: asking for it is a system call (CPython 3.11).
        """
        attempt.runs_in(task or asyncio.current_task())
        is_untouched = False
        try:
            answer = await self._answer_of(attempt)
        except (asyncio.CancelledError, GeneratorExit) as error:
            if self._is_going_down or not attempt.is_running():
                raise
            is_untouched = attempt.ending is None and attempt.started_at is None
            answer = None if is_untouched else self._ended(attempt, self._unasked(attempt, error))
        except BaseException:
            self._go_down()
            raise
        finally:
            self._leave_slot(attempt)
        if is_untouched:
            self._begin_again(attempt)
        else:
            self._conclude(attempt, answer)

    def _unasked(self, attempt: Attempt, error: BaseException) -> Failure:
        """Return the failure of an attempt that is cancelled, for the case that nobody had asked to end it."""
        if attempt.ending is None:
            self._log.warning("an attempt was cancelled that nobody asked to end", **attempt.named)
        task, failure = asyncio.current_task(), failure_of(error)
        was_cancelled = task is not None and task.cancelling() > 0  # else the handler raised it
        if was_cancelled and not failure.message:
            return replace(failure, message=_UNASKED)
        return failure if attempt.context is None else hidden_failure(failure, attempt.context.hiding)

    def _conclude(self, attempt: Attempt, answer: answers.Answer | None) -> None:
        if answer is not None:
            self._answer(attempt, answer)
        elif attempt.ending is Ending.LAPSED:
            self._let_go_lapsed(attempt)
        elif attempt.ending is Ending.HANDED_BACK:
            self._let_go(attempt)

    async def _answer_of(self, attempt: Attempt) -> answers.Answer | None:
        """Return what the attempt answers, or None when it was answered for already."""
        if attempt.ending is not None:
            return self._ended(attempt, None)
        if attempt.must_be_recalled:
            known = await self._notes.recall(Asked(attempt.id, attempt.command.at_ms))
            self._trials.know(attempt)
            if self._is_answered_for(attempt, known):
                return None
            if known.alone >= self._settings.max_alone:
                return self._lost(attempt, known, await self._notes.last_words(known.alone_on))
            await self._take_again(attempt, known)
        elif self._trials.may_be_on:
            await self._trials.until_none_may_be_on()
        return await self._handled(attempt)

    async def _handled(self, attempt: Attempt) -> answers.Answer | None:
        context = self._start(attempt)
        try:
            given = attempt.command.input
            if attempt.command.secrets:
                given = await self._with_secrets(attempt.command, attempt.command.secrets, context)
            outcome = hidden(await self._invoke(given, context), context.hiding)
        except Exception as error:  # noqa: BLE001  the process that ran it died, for instance
            outcome = hidden(failure_of(error), context.hiding)
        if type(outcome) is Returned:  # it did succeed, also if it was told to stop
            return answers.succeeded(attempt.command, outcome.value, self._duration_ms(attempt))
        assert isinstance(outcome, Failure)
        return self._ended(attempt, outcome)

    async def _with_secrets(self, command: RunStep, texts: Sequence[SecretText], context: StepContext) -> Any:
        """Return the input with its secrets; from here on nothing that is said of the attempt has them in it."""
        values = await self._secrets.values(command.tenant, texts)
        context.hiding = Hiding(values.values())
        hide_from_logs(context.hiding)
        return with_secrets(command.input, texts, values)

    def _ended(self, attempt: Attempt, failure: Failure | None) -> answers.Answer | None:
        """Return the answer of an attempt that failed, or was ended: then for what reason, counts."""
        match attempt.ending:
            case Ending.TIMED_OUT:
                return answers.timed_out(attempt.command, self._duration_ms(attempt))
            case Ending.CANCELLED:
                return answers.cancelled(attempt.command, self._duration_ms(attempt))
            case Ending.LAPSED | Ending.HANDED_BACK:
                return None
            case None:
                assert failure is not None
                return answers.failed(attempt.command, failure, self._duration_ms(attempt))

    def _start(self, attempt: Attempt) -> StepContext:
        command, now_s = attempt.command, self._loop.time()
        attempt.started_at = now_s
        self._facts.begun(max(0, self._now_ms() - command.at_ms) / 1000)
        attempt.context = context = StepContext(
            run_id=command.run_id,
            step=command.step,
            attempt=command.attempt,
            tenant=command.tenant,
            deadline=now_s + command.timeout_s,
            clock=self._loop.time,
            log=self._log,
            resource=self._resource,
            trace_id=command.trace_id,
            is_sampled=command.sampled is not False,
            caused_at_ms=command.at_ms,
        )
        if command.timeout_s <= 2 * self._settings.grace_s:  # a longer limit is set with the lease
            self._limit(attempt)
        self._leases.watch()
        return context

    def _limit(self, attempt: Attempt) -> None:
        if attempt.timer is None and attempt.started_at is not None:
            deadline = attempt.started_at + attempt.command.timeout_s  # the context is the handler's
            attempt.timer = self._loop.call_at(deadline, attempt.end, Ending.TIMED_OUT)

    def _leave_slot(self, attempt: Attempt) -> None:
        self._busy -= 1
        self._has_room.set()
        attempt.is_over = True
        self._trials.leave(attempt)
        attempt.stop_timer()
        self._leases.forget(attempt)

    def _duration_ms(self, attempt: Attempt) -> int:
        return 0 if attempt.started_at is None else int((self._loop.time() - attempt.started_at) * 1000)

    # --- answering ---------------------------------------------------------------------------------------------------

    def _answer(self, attempt: Attempt, answer: answers.Answer) -> None:
        """Append the answer; what follows, follows its acknowledgement."""
        answer, encoded = answers.encode_answer(answer, attempt.command, attempt.id, self._source)
        self._turns.spend(len(encoded.value))
        kind = type(answer).__name__
        attempt.bytes += len(encoded.value)
        self._bytes += len(encoded.value)
        is_small = len(encoded.value) <= self._settings.memory_result_bytes
        if is_small:
            self._remember_result(attempt, b"%b\n%b" % (kind.encode(), encoded.value))
        self._send(attempt.command.run_id, encoded, partial(self._settle, attempt, kind, is_small))
        self._facts.answered(kind, answer.duration_ms / 1000)

    def _settle(self, attempt: Attempt, kind: str, is_remembered: bool) -> None:
        """The answer is acknowledged: the command is done."""
        if not is_remembered:
            self._remember_result(attempt, b"")
        self._lately.add(attempt.id, attempt.command.at_ms, self._loop.time())
        self._let_go(attempt)
        self._release(attempt)
        command = attempt.command  # named one by one: below the level, a line costs next to nothing
        self._log.debug(
            "attempt answered", run_id=command.run_id, step=command.step, attempt=command.attempt,
            trace_id=trace_id_or(command.trace_id, command.run_id), answer=kind,
        )  # fmt: skip

    def _let_go(self, attempt: Attempt) -> None:
        """Have it in hand no longer."""
        if self._attempts.get(attempt.id) is attempt:
            del self._attempts[attempt.id]
            self._bytes -= attempt.bytes
        self._has_room.set()

    def _let_go_lapsed(self, attempt: Attempt) -> None:
        """Leave the attempt to the orchestrator, which gives the step another, if it knows of the lease already."""
        if attempt.is_released:
            self._lately.add(attempt.id, attempt.command.at_ms, self._loop.time())
            self._remember_result(attempt, b"")  # whoever is served it again has nothing to do
            self._let_go(attempt)

    def _release(self, attempt: Attempt) -> None:
        attempt.release()
        self._is_released.set()

    def _send(self, run_id: str, encoded: Encoded, then: Callable[[], object]) -> None:
        key = run_id.encode()
        try:
            self._sending.append(self._inbox, partition_of(key, self._topics.runs), key, encoded, then)
        except BaseException:  # the outbox has failed: nothing more is answered
            self._go_down()
            raise

    def _dead_letter(self, record: CommandRecord, partition: PartitionInHand, reason: str) -> None:
        """Put a record that is no command aside; its offset is released when the letter is acknowledged."""
        self._append_dead_letter(record, "Undecodable", reason, partial(self._put_aside, partition, record.offset))

    def _put_aside(self, partition: PartitionInHand, offset: int) -> None:
        partition.release(offset)
        self._is_released.set()

    def _append_dead_letter(
        self,
        record: CommandRecord,
        error_type: str,
        reason: str,
        then: Callable[[], object],
        attempt: Attempt | None = None,
    ) -> None:
        topic = self._topics.steps(self._type.name)
        letter = answers.encode_dead_letter(
            record, topic=topic, service=self._source, error_type=error_type, error_message=reason
        )
        key = letter_key(record.key)
        place = partition_of(key or b"", self._topics.runs)
        self._sending.append(self._topics.dead_letters, place, key, letter, then)
        self._facts.dead_lettered()
        named = {} if attempt is None else attempt.named  # of what cannot be read nobody knows whose it is
        self._log.warning(
            "command dead-lettered", topic=topic, partition=record.partition, offset=record.offset, reason=reason,
            **named,
        )  # fmt: skip

    # --- remembering -------------------------------------------------------------------------------------------------

    def _must_recall(self, attempt: Attempt) -> bool:
        """Whether the command may have been in other hands, or in these and forgotten: its cause is old enough."""
        at_ms = attempt.command.at_ms
        return at_ms <= max(
            attempt.partition.assigned_at_ms + self._settings.clock_margin_ms, self._lately.forgotten_ms
        )

    def _is_answered_for(self, attempt: Attempt, known: Remembered) -> bool:
        """Send a remembered result again; leave the attempt to a worker that holds it. False: it has to be run."""
        if known.result:
            kind, _, value = known.result.partition(b"\n")
            self._send_again(attempt, kind.decode(), value)
            self._facts.repeat_dropped("result")
            return True
        if known.result is not None:
            self._settle(attempt, "remembered", is_remembered=True)
            self._facts.repeat_dropped("result")
            return True
        if self._is_held(known):
            self._let_go(attempt)
            self._release(attempt)
            self._facts.repeat_dropped("lease")
            return True
        return False

    def _is_held(self, known: Remembered) -> bool:
        """Whether a worker holds the attempt. It was written after `AttemptStarted` was acknowledged: it is watched."""
        return known.leased_until_ms > self._now_ms()

    def _send_again(self, attempt: Attempt, kind: str, value: bytes) -> None:
        command = attempt.command
        headers = headers_of(
            kind,
            message_id=f"{attempt.id}/{kind}",
            source=self._source,
            at_ms=command.at_ms,
            trace_id=trace_id_or(command.trace_id, command.run_id),
            is_sampled=command.sampled is not False,
        )
        self._send(command.run_id, Encoded(value, headers), partial(self._settle, attempt, kind, is_remembered=True))

    def _remember_result(self, attempt: Attempt, result: bytes) -> None:
        self._notes.note(Note(attempt.id, attempt.command.at_ms, result=result))

    async def _take_again(self, attempt: Attempt, known: Remembered) -> None:
        """Return when an attempt may begin that may have begun before, and that is written down.

        One that was taken up again before, without a result, was in hand when its worker ended: it is tried alone, and
        only if it is really alone is it to blame for the next end. Others wait for that.
        """
        is_alone = False
        if known.takes:
            is_alone = await self._trials.begin(attempt)
            self._log.warning("attempt was in hand when its worker ended: it is tried alone", **attempt.named)
        else:
            await asyncio.sleep(0)  # what was recalled in the same round trip may turn out to be suspect
            await self._trials.until_over()
        attempt.is_beginning = True
        take = Take(attempt.id, attempt.command.at_ms, self._name if is_alone else "")
        await self._notes.count_take(take)

    def _lost(self, attempt: Attempt, known: Remembered, last_words: str) -> answers.Answer:
        answer = answers.worker_lost(attempt.command, known, last_words)
        self._append_dead_letter(attempt.record, answer.error.type, answer.error.message, lambda: None, attempt)
        return answer

    # --- leases ------------------------------------------------------------------------------------------------------

    def _lease(self, attempt: Attempt) -> None:
        """Tell the orchestrator that the attempt is held; its offset is released when that is acknowledged."""
        started = AttemptStarted(
            run_id=attempt.command.run_id,
            step=attempt.command.step,
            attempt=attempt.command.attempt,
            lease_s=self._settings.lease_s,
            worker=self._name,
        )
        until_ms = self._now_ms() + int(self._settings.lease_s * 1000)
        encoded = answers.encode_attempt(started, attempt.command, attempt.id, self._source)
        self._send(attempt.command.run_id, encoded, partial(self._start_acknowledged, attempt, until_ms))
        self._limit(attempt)
        self._facts.leased()

    def _start_acknowledged(self, attempt: Attempt, until_ms: int) -> None:
        self._trials.leave(attempt)  # a loss is the orchestrator's to count from here on
        self._release(attempt)
        self._remember_lease(attempt, until_ms)
        if attempt.is_over and attempt.ending is Ending.LAPSED:
            self._let_go_lapsed(attempt)

    def _remember_lease(self, attempt: Attempt, until_ms: int) -> None:
        if self._leases.holds(attempt):  # else its result is noted already, and says more
            note = Note(attempt.id, attempt.command.at_ms, holder=self._name, leased_until_ms=until_ms)
            self._notes.note(note)

    def _renew(self, held: list[Attempt]) -> None:
        """Renew all leases with one record per inbox partition."""
        until, until_ms = (
            self._loop.time() + self._settings.lease_s,
            self._now_ms() + int(self._settings.lease_s * 1000),
        )
        self._append_renewals(held, self._settings.lease_s, lambda some: self._renewed(some, until, until_ms))

    def _renewed(self, some: list[Attempt], until: float, until_ms: int) -> None:
        for attempt in some:
            if attempt.lease_until is not None:
                attempt.lease_until = max(attempt.lease_until, until)
                self._remember_lease(attempt, until_ms)

    def _give_back(self, held: list[Attempt]) -> None:
        """Give up leases of handlers that have ended: the orchestrator need not wait for them to lapse."""
        self._append_renewals(held, 0, self._given_back)

    def _given_back(self, some: list[Attempt]) -> None:
        """The orchestrator sends the next attempts: whoever is served one of these again has nothing to do."""
        for attempt in some:
            self._remember_result(attempt, b"")

    def _append_renewals(
        self, held: Iterable[Attempt], lease_s: float, then: Callable[[list[Attempt]], object]
    ) -> None:
        by_partition: dict[int, list[Attempt]] = {}
        for attempt in held:
            by_partition.setdefault(partition_of(attempt.command.run_id.encode(), self._topics.runs), []).append(
                attempt
            )
        for some in by_partition.values():
            self._renewals += 1
            progress = [(attempt.command, attempt.context and attempt.context.progress) for attempt in some]
            for encoded in answers.encode_renewals(
                progress, worker=self._name, lease_s=lease_s, number=self._renewals, source=self._source
            ):
                self._send(some[0].command.run_id, encoded, partial(then, some))

    def _lapse(self, attempt: Attempt) -> None:
        """End the handler of a lease that could not be renewed in time: the step may be another worker's by now."""
        self._facts.lapsed()
        self._log.warning("lease could not be renewed: handler is cancelled", **attempt.named)
        attempt.end(Ending.LAPSED)

    # --- assignment, offsets -----------------------------------------------------------------------------------------

    def on_assigned(self, partitions: Iterable[int], assignment: int, at_ms: int) -> None:
        """Start afresh: these partitions are ours, whatever was before is another assignment's."""
        self._partitions = {number: PartitionInHand(number, assignment, at_ms) for number in partitions}

    async def on_revoked(self, partitions: Iterable[int]) -> None:
        """Hand over partitions: all in hand is finished or leased, acknowledged, remembered, committed on return."""
        going = [self._partitions.pop(number) for number in partitions if number in self._partitions]
        try:
            async with asyncio.timeout(self._settings.revoke_timeout_s):
                # 1. Take no more (they are gone from `_partitions`); lease what runs, hand back what does not yet.
                self._leave_none_unleased(set(going))
                # 2. Acknowledged: each offset that can be released is released.
                await self._sending.settled()
                # 3. Remembered, so that the next owner recognises repeats.
                await self._notes.flush()
                # 4. Committed, so that the next owner starts behind them.
                await self._commit(going)
        except (TimeoutError, NothingSettles) as error:
            self._log.warning("hand-over was cut short: some commands will be taken up again", error=repr(error))

    def _leave_none_unleased(self, going: set[PartitionInHand]) -> None:
        for attempt in list(self._attempts.values()):
            if not attempt.is_of(going):
                continue
            if attempt.started_at is not None:
                self._leases.lease(attempt)
            elif not attempt.is_over:  # it is taken up afresh by whoever is served it, which may be us
                attempt.end(Ending.HANDED_BACK)
                self._let_go(attempt)

    async def _keep_committing(self) -> None:
        while True:
            await self._is_released.wait()
            await asyncio.sleep(self._settings.commit_s)
            self._is_released.clear()
            await self._commit(list(self._partitions.values()))

    async def _commit(self, partitions: list[PartitionInHand]) -> None:
        moved = [(partition, offset) for partition in partitions if (offset := partition.to_commit()) is not None]
        if not moved:
            return
        try:
            await self._commands.commit({p.partition: offset for p, offset in moved}, moved[0][0].assignment)
        except CommitRefused as error:  # another member has them by now, and is told of repeats by its memory
            self._log.info("commit refused", error=str(error))
            return
        for partition, offset in moved:
            partition.committed(offset)

    # --- cancellations -----------------------------------------------------------------------------------------------

    async def _learn_cancellations(self) -> None:
        """Know every cancellation of before; a command that waited for us may have been cancelled meanwhile."""
        for record in await self._control.read_to_end():
            self._learn(record)

    async def _follow_cancellations(self) -> None:
        while True:
            for record in await self._control.take(self._settings.poll_s):
                attempt = self._attempts.get(self._learn(record) or "")
                if attempt is not None:
                    attempt.end(Ending.CANCELLED)

    def _learn(self, record: CancelRecord) -> str | None:
        learnt = self._cancellations.learn(record, self._loop.time())
        if isinstance(learnt, Undecodable):
            self._log.warning("cancellation cannot be read", offset=record.offset, reason=learnt.reason)
            return None
        return learnt

    def _is_cancelled(self, attempt: Attempt) -> bool:
        return attempt.id in self._cancellations


def _is_current(context: Context) -> bool:
    """Whether the context variables are those of `context`: the same objects, since equal ones may be changed later."""
    now = copy_context()
    if len(now) != len(context):
        return False
    for variable, value in context.items():  # noqa: SIM110  `all` costs each attempt a generator
        if now.get(variable) is not value:
            return False
    return True
