"""The mode in which nothing can hide in memory: after every record, checkpoint, forget everything and restore."""

from collections.abc import Sequence
from typing import Any

from anabranch.services.orchestrator.partition_task import PartitionTask
from anabranch.services.orchestrator.ports import InboxRecord


class RestoringTask:
    """Makes partition tasks that restore after every record."""

    @staticmethod
    def of(task_type: type[PartitionTask]) -> type[PartitionTask]:
        """Return the task type that does what this one does, and restores after every record."""

        class Restoring(task_type):  # type: ignore[misc,valid-type]
            async def _decide_all(self, records: Sequence[InboxRecord]) -> Any:
                if not records:
                    return
                await super()._decide_all(records[:1])  # the others are taken again
                await self._finish()
                self._forget()
                await self._restore()
                self._metrics.count("restores after a record")

        return Restoring
