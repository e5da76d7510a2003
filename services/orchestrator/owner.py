"""Which partitions this process runs: partition tasks are started and stopped as the group says.

Every assignment has a number. A revoke stops the tasks of the assignments up to its own, never those of a newer one.
A task that ends because it was fenced is started again only under a newer assignment, which is asked for.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from structlog.typing import FilteringBoundLogger

from anabranch.services.orchestrator.partition_task import PartitionTask

_REJOIN_AFTER_S: Final = 1.0  # two processes that fence one another must not do so in a tight loop


@dataclass(slots=True)
class _Owned:
    task: PartitionTask
    running: "asyncio.Task[None]"
    assignment: int


class PartitionOwner:
    """Starts a partition task for each partition that is assigned, and stops those that are revoked.

    `new_task` makes the task of (partition, assignment); `rejoin` asks the group for a new assignment; `fail` ends the
    process. A task has `stop_timeout_s` to hand over; after that it is cancelled, and its successor fences it.
    """

    def __init__(
        self,
        *,
        new_task: Callable[[int, int], PartitionTask],
        rejoin: Callable[[], None],
        fail: Callable[[BaseException], None],
        logger: FilteringBoundLogger,
        stop_timeout_s: float = 10.0,
    ) -> None:
        self._new_task = new_task
        self._rejoin = rejoin
        self._fail = fail
        self._logger = logger
        self._stop_timeout_s = stop_timeout_s
        self._assignment = 0
        self._owned: dict[int, _Owned] = {}

    @property
    def tasks(self) -> dict[int, PartitionTask]:
        """The partition tasks that run, by partition."""
        return {partition: owned.task for partition, owned in self._owned.items()}

    @property
    def assignment(self) -> int:
        """The number of the newest assignment; 0 before the first."""
        return self._assignment

    async def on_assigned(self, partitions: Iterable[int]) -> None:
        """Run these partitions, and no others, under a new assignment."""
        self._assignment += 1
        assignment = self._assignment
        await self._stop_up_to(assignment - 1)  # whatever no revoke has stopped
        for partition in sorted(partitions):
            self._start(partition, assignment)
        self._logger.info("assigned", assignment=assignment, partitions=sorted(partitions))

    async def on_revoked(self) -> None:
        """Hand over everything of the assignments so far."""
        await self._stop_up_to(self._assignment)

    async def stop(self) -> None:
        """Hand over everything."""
        await self._stop_up_to(self._assignment)

    def _start(self, partition: int, assignment: int) -> None:
        task = self._new_task(partition, assignment)
        running = asyncio.create_task(task.run(), name=f"partition {partition}, assignment {assignment}")
        self._owned[partition] = _Owned(task, running, assignment)
        running.add_done_callback(lambda done: self._ended(partition, assignment, done))

    def _ended(self, partition: int, assignment: int, running: "asyncio.Task[None]") -> None:
        owned = self._owned.get(partition)
        if owned is not None and owned.running is running:
            del self._owned[partition]
        if running.cancelled():
            return
        error = running.exception()
        if error is not None:
            self._fail(error)
        elif owned is not None and not owned.task.stopping and assignment == self._assignment:
            self._logger.warning("fenced while assigned; asking for a new assignment", partition=partition)
            asyncio.get_running_loop().call_later(_REJOIN_AFTER_S, self._rejoin_unless_newer, assignment)

    def _rejoin_unless_newer(self, assignment: int) -> None:
        if assignment == self._assignment:
            self._rejoin()

    async def _stop_up_to(self, assignment: int) -> None:
        stopping = [owned for owned in self._owned.values() if owned.assignment <= assignment]
        for owned in stopping:
            owned.task.stop()
        await _finish([owned.running for owned in stopping], self._stop_timeout_s)


async def _finish(running: Sequence["asyncio.Task[None]"], timeout_s: float) -> None:
    if not running:
        return
    _, late = await asyncio.wait(running, timeout=timeout_s)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late)
