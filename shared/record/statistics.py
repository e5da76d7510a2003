"""How long runs and steps took and how often they failed, over a window of time, from the record."""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Select, case, func, literal, select
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.shared.record.asking import Asking, is_possible
from anabranch.shared.record.tables import RUNS, STEPS

LOOKED_AT: Final = 50_000
"""Runs, or steps, that are looked at: the newest of the window."""
GROUPS: Final = 500
"""Pipelines, or steps, that are answered for: those with the most runs."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What ended in the window: durations in milliseconds, none where nothing has one; `step` is `` for whole runs."""

    pipeline: str
    step: str
    ended: int
    failed: int
    p50_ms: int | None
    p95_ms: int | None

    @property
    def failure_rate(self) -> float:
        """The share of those that failed or timed out."""
        return self.failed / self.ended if self.ended else 0.0


@dataclass(frozen=True, slots=True)
class Statistics:
    """The figures, and how many runs or steps they are of; `is_all` if that is all of the window."""

    figures: list[Figures]
    looked_at: int
    is_all: bool


class RecordStatistics:
    """Asks the record for figures."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._asking = Asking(engine)

    async def of_pipelines(self, tenant: str, *, since_ms: int, pipeline: str | None = None) -> Statistics:
        """Return the figures of the tenant's runs that began since then. Raises `RecordUnavailable`."""
        ended = (
            select(
                RUNS.c.pipeline,
                literal("").label("step"),
                RUNS.c.status,
                (RUNS.c.finished_at - RUNS.c.created_at).label("ms"),
            )
            .where(*_of_runs(tenant, since_ms, pipeline), RUNS.c.finished_at.is_not(None))
            .order_by(RUNS.c.created_at.desc())
        )
        return await self._figures(ended, pipeline)

    async def of_steps(self, tenant: str, *, since_ms: int, pipeline: str | None = None) -> Statistics:
        """Return the figures of their steps, from start to end of the last attempt. Raises `RecordUnavailable`."""
        ended = (
            select(
                RUNS.c.pipeline, STEPS.c.step, STEPS.c.status, (STEPS.c.finished_at - STEPS.c.started_at).label("ms")
            )
            .select_from(RUNS.join(STEPS, STEPS.c.run_id == RUNS.c.run_id))
            .where(*_of_runs(tenant, since_ms, pipeline), STEPS.c.status.in_(_ENDED))
            .order_by(RUNS.c.created_at.desc())
        )
        return await self._figures(ended, pipeline)

    async def _figures(self, ended: Select[Any], pipeline: str | None) -> Statistics:
        if pipeline is not None and not is_possible(pipeline):
            return Statistics([], 0, is_all=True)
        found = await self._asking.ask(_grouped(ended.limit(LOOKED_AT)))
        looked_at = sum(row.ended for row in found)
        figures = [Figures(row.pipeline, row.step, row.ended, row.failed, row.p50, row.p95) for row in found[:GROUPS]]
        return Statistics(figures, looked_at, is_all=looked_at < LOOKED_AT)


_ENDED: Final = ("succeeded", "failed", "timed_out", "cancelled")
_STEP_MS: Final = STEPS.c.finished_at - STEPS.c.started_at
_FAILED: Final = ("failed", "timed_out")


def _of_runs(tenant: str, since_ms: int, pipeline: str | None) -> list[Any]:
    conditions = [RUNS.c.tenant == tenant, RUNS.c.created_at >= since_ms]
    return conditions if pipeline is None else [*conditions, RUNS.c.pipeline == pipeline]


def _grouped(ended: Select[Any]) -> Select[Any]:
    """Return the figures of each group. Percentiles by rank, which SQLite has no function for: the smallest duration
    that so large a share of all does not exceed (the nearest rank).
    """
    rows = ended.subquery()
    of_group = [rows.c.pipeline, rows.c.step, rows.c.ms.is_(None)]
    ranked = select(
        rows,
        func.row_number().over(order_by=rows.c.ms, partition_by=of_group).label("rank"),
        func.count().over(partition_by=of_group).label("of"),
    ).subquery()
    failed = func.sum(case((ranked.c.status.in_(_FAILED), 1), else_=0))
    return (
        select(
            ranked.c.pipeline,
            ranked.c.step,
            func.count().label("ended"),
            failed.label("failed"),
            _percentile(ranked.c, 50),
            _percentile(ranked.c, 95),
        )
        .group_by(ranked.c.pipeline, ranked.c.step)
        .order_by(func.count().desc(), ranked.c.pipeline, ranked.c.step)
    )


def _percentile(ranked: Any, share: int) -> Any:
    reached = ranked.rank * 100 >= ranked.of * share
    return func.min(case((reached, ranked.ms))).label(f"p{share}")
