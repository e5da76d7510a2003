"""The task that keeps the record from growing for ever."""

import asyncio
from typing import Final

import asyncpg
from sqlalchemy.exc import SQLAlchemyError
from structlog.typing import FilteringBoundLogger

from anabranch.services.history.metrics import HistoryMetrics
from anabranch.services.history.settings import HistorySettings
from anabranch.shared.record.database import open_database
from anabranch.shared.record.retention import Retention
from anabranch.shared.runtime.clock import now_ms

_EVERY_S: Final = 600.0
_STATEMENT_S: Final = 60.0  # the longest: of a very large run


class RecordRetention:
    """Deletes what need not be kept, every ten minutes, on a connection of its own."""

    def __init__(self, settings: HistorySettings, *, metrics: HistoryMetrics, log: FilteringBoundLogger) -> None:
        self._database = open_database(
            settings.database_url, name=f"{settings.instance} retention", connections=1, timeout_s=_STATEMENT_S
        )
        self._retention = Retention(self._database, settings.keeping, now_ms=now_ms, deleted=metrics.runs_deleted)
        self._log = log

    async def run(self, stopping: asyncio.Event) -> None:
        """Sweep until the service stops; what is under way then is undone, and done by the next sweep."""
        try:
            async with asyncio.TaskGroup() as tasks:
                sweeping = tasks.create_task(self._sweep_for_ever(), name="sweep the record")
                await stopping.wait()
                sweeping.cancel()
        finally:
            await self._database.dispose()

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                await self._retention.sweep()
            except (
                SQLAlchemyError,
                asyncpg.PostgresError,
                OSError,
                TimeoutError,
            ) as error:  # it has no tables yet, or is away
                self._log.warning("the record was not swept; the next time it is", error=repr(error))
            await asyncio.sleep(_EVERY_S)
