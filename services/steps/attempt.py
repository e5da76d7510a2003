"""One attempt in a worker's hand: from its command until its answer is acknowledged."""

import asyncio
from enum import Enum, auto
from typing import Any

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.offsets import PartitionInHand
from anabranch.services.steps.ports import CommandRecord
from anabranch.shared.contracts.codec import trace_id_or
from anabranch.shared.contracts.messages import RunStep


class Ending(Enum):
    """Why a worker ends an attempt before its handler does."""

    TIMED_OUT = auto()  # by its own limit
    CANCELLED = auto()  # the control topic said so
    LAPSED = auto()  # its lease could not be renewed: somebody else may have it
    HANDED_BACK = auto()  # the worker stops, or the partition goes before the handler was started


class Attempt:
    """What is known of it, which offsets wait for its answer, and how to end it."""

    __slots__ = (
        "_offsets", "_task", "bytes", "command", "context", "ending", "id", "is_beginning", "is_in_doubt",
        "is_on_trial", "is_over", "is_released", "lease_until", "must_be_recalled", "partition", "record",
        "started_at", "timer",
    )  # fmt: skip

    def __init__(self, attempt_id: str, command: RunStep, record: CommandRecord, partition: PartitionInHand) -> None:
        self.id = attempt_id
        self.command = command
        self.record = record
        self.partition = partition
        self.bytes = len(record.value or b"")  # in hand: the command's, and the answer's while it is on its way
        self.context: StepContext | None = None
        self.started_at: float | None = None  # when the handler was called, on the loop's clock
        self.lease_until: float | None = None  # None: not leased
        self.ending: Ending | None = None
        self.must_be_recalled = False  # it may have been in other hands
        self.is_in_doubt = False  # and that is not known yet
        self.is_beginning = False  # its handler is called as soon as that is written down
        self.is_on_trial = False  # under suspicion of having taken its worker down
        self.is_over = False  # its handler has ended, or was never started
        self.is_released = False
        self.timer: asyncio.TimerHandle | None = None
        self._offsets = [(partition, record.offset)]
        self._task: asyncio.Task[None] | None = None

    @property
    def named(self) -> dict[str, Any]:
        """The run, the step, the attempt and the trace, as every line of the log names them that is about it."""
        command = self.command
        return {
            "run_id": command.run_id, "step": command.step, "attempt": command.attempt,
            "trace_id": trace_id_or(command.trace_id, command.run_id),
        }  # fmt: skip

    def runs_in(self, task: "asyncio.Task[None] | None") -> None:
        """Note the task that runs it, which has just begun to."""
        assert task is not None
        task.set_name(self.id)
        self._task = task

    @property
    def has_task(self) -> bool:
        """Whether a task has begun to run it."""
        return self._task is not None

    def begin_again(self) -> None:
        """Be as it was taken up: no handler has seen it."""
        assert self.started_at is None
        self.is_over = self.is_beginning = False
        self._task = None

    def also_of(self, partition: PartitionInHand, offset: int) -> None:
        """Release the offset of a repeat with the original's."""
        if self.is_released:
            partition.release(offset)
        else:
            self._offsets.append((partition, offset))

    def is_of(self, partitions: set[PartitionInHand]) -> bool:
        """Whether an offset of one of these partitions waits for its answer."""
        return any(partition in partitions for partition, _ in self._offsets)

    def release(self) -> None:
        """Let its offsets be committed: its answer or its lease is acknowledged."""
        if not self.is_released:
            self.is_released = True
            for partition, offset in self._offsets:
                partition.release(offset)
            self._offsets.clear()

    def end(self, ending: Ending) -> None:
        """Say, once, why it ends, and cancel it; one that no task runs yet sees that it need not begin."""
        if self.ending is not None or self.is_over:
            return
        self.ending = ending
        if self._task is not None:
            self._task.cancel()

    def is_running(self) -> bool:
        """Whether its task is what runs now: a coroutine that is thrown away is closed by another, or by none."""
        try:
            return asyncio.current_task() is self._task
        except RuntimeError:  # no loop runs
            return False

    def is_at_work(self) -> bool:
        """Whether its handler runs, or is about to."""
        return (self.is_beginning or self.started_at is not None) and not self.is_over

    def stop_timer(self) -> None:
        """Forget its time limit, it is over."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
