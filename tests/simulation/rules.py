"""The rules that carry the design (architecture §3, the list at its end), each with what switches it off.

Only tests use this: the simulation must fail without any of them.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

from anabranch.services.orchestrator.core import changelog
from anabranch.services.orchestrator.core.decide import Decision
from anabranch.services.orchestrator.core.partition import Partition
from anabranch.services.orchestrator.core.transitions import Ignore
from anabranch.services.orchestrator.core.turn import Budget
from anabranch.services.orchestrator.partition_task import PartitionTask
from anabranch.services.orchestrator.ports import InboxRecord
from anabranch.services.orchestrator.timers import Due
from anabranch.services.steps.attempt import Attempt
from anabranch.services.steps.worker import Worker
from anabranch.shared.contracts.codec import encode
from anabranch.shared.contracts.messages import TimerFired

from .broker import Producer
from .partition_log import MemoryLog
from .simulation import Product, World


class _DoesNotWait(PartitionTask):
    async def _wait_for(self, acknowledged: "asyncio.Future[None]") -> None:
        acknowledged.cancel()


class _EncodesLate(PartitionTask):
    def _start_checkpoint(self) -> "asyncio.Task[None]":
        offset, acknowledged = self._offset, self._log.acknowledged()
        self._since_checkpoint = self._bytes_since_checkpoint = 0
        return asyncio.create_task(self._encode_and_write(offset, acknowledged))

    async def _encode_and_write(self, offset: int | None, acknowledged: "asyncio.Future[None]") -> None:
        assert offset is not None
        await self._wait_for(acknowledged)
        await self._log.checkpoint(changelog.take_changes(self._partition, offset))


class _ReadsFirst(PartitionTask):
    async def _open(self) -> changelog.Records:
        records = await self._log.read_changelog()
        await self._log.start_producer()
        return records


class _TakesAnyRecord(PartitionTask):
    def _of_this_assignment(self, records: Sequence[InboxRecord]) -> Sequence[InboxRecord]:
        return records


class _DecidesTimersItself(PartitionTask):
    def _fire(self, due: Due) -> None:
        assert self._offset is not None
        message = TimerFired(run_id=due.run_id, timer_id=due.timer_id)
        record = encode(message, message_id="", source="", at_ms=due.due_ms, trace_id="")
        self._handle(InboxRecord(self._offset - 1, due.due_ms, b"", record.value, (), self._log.assignment), message)


class _ForgetsEarlyTimers(PartitionTask):
    def _act(self, decision: Decision, run_id: str, at_ms: int) -> None:
        if decision.ignored is not Ignore.EARLY_TIMER:
            super()._act(decision, run_id, at_ms)


class _StartsTimersAnew(PartitionTask):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"now_ms": lambda: 0}))


class _ReadsUncommitted(MemoryLog):
    committed_only = False


class _TakesRepeats(Worker[Any, Any]):
    def _is_repeat(self, attempt: str) -> bool:
        return False


class _RecallsNothing(Worker[Any, Any]):
    def _must_recall(self, attempt: Attempt) -> bool:
        return False


class _ReleasesAtOnce(Worker[Any, Any]):
    def _lease(self, attempt: Attempt) -> None:
        super()._lease(attempt)
        self._release(attempt)


class _LearnsNoCancellations(Worker[Any, Any]):
    async def _learn_cancellations(self) -> None:
        await self._control.read_to_end()


def _do_not_fence(world: World) -> None:
    for one in world.broker.changelogs:
        one.fences = False


RULES: Final[Mapping[str, Product]] = {
    "acknowledgements before the checkpoint": Product(
        task=_DoesNotWait,
        favoured=(
            "outage, kill orchestrator",
            "kill orchestrator",
        ),
    ),
    "state encoded in the tick that fixes the offset": Product(task=_EncodesLate),
    "fencing": Product(prepare=_do_not_fence, favoured=("deafen orchestrator",)),
    "starting the producer before reading the changelog": Product(task=_ReadsFirst, favoured=("deafen orchestrator",)),
    "reading it committed": Product(log=_ReadsUncommitted),
    "a failed append ends the process": Product(),
    "records tagged with their assignment": Product(
        task=_TakesAnyRecord,
        favoured=(
            "rebalance",
            "fence",
        ),
    ),
    "timers through the log": Product(task=_DecidesTimersItself),
    "early timers armed again": Product(task=_ForgetsEarlyTimers, favoured=("step time",)),
    "timers armed for what remains": Product(task=_StartsTimersAnew, favoured=("hand over again and again",)),
    "a turn that ends when its cost is spent": Product(),
    "Finished memory": Product(),
    "commands in hand and lately finished": Product(worker=_TakesRepeats),
    "Redis memory": Product(
        worker=_RecallsNothing,
        favoured=(
            "late command",
            "rebalance",
            "more workers",
        ),
    ),
    "AttemptStarted acknowledged before release": Product(worker=_ReleasesAtOnce, favoured=("outage, kill worker",)),
    "the control topic from its start": Product(
        worker=_LearnsNoCancellations,
        favoured=(
            "kill worker",
            "stop worker",
        ),
    ),
}

_PATCHES: Final[Mapping[str, tuple[type[Any], str, object]]] = {
    "a failed append ends the process": (Producer, "_lose", Producer._acknowledge),
    "Finished memory": (Partition, "remembers", lambda *_: False),
    "a turn that ends when its cost is spent": (Budget, "is_spent", property(lambda self: self.steps <= 0)),
}


@contextmanager
def product_without(rule: str | None) -> Iterator[Product]:
    """Give the product with one rule switched off; with None, as it is."""
    if rule is None:
        yield Product()
    elif rule in _PATCHES:
        with patch.object(*_PATCHES[rule]):
            yield RULES[rule]
    else:
        yield RULES[rule]
