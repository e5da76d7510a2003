"""Deletes from the record the runs that are too old or too many, all rows of a run at once.

Only runs that have ended are deleted. A transaction takes a bounded number of rows, and after each there is a pause at
least as long as it took: whoever records meanwhile gets half of the database at the worst. One process deletes at a
time: on PostgreSQL who holds an advisory lock, on SQLite who writes.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import ColumnElement, Row, Select, and_, delete, func, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from anabranch.shared.contracts.limits import MAX_DELETED_EVENTS, MAX_DELETED_RUNS
from anabranch.shared.record.database import is_sqlite
from anabranch.shared.record.tables import ATTEMPTS, EVENTS, RUN_VALUES, RUNS, STEPS
from anabranch.shared.record.tenants import tenants
from anabranch.shared.runtime.snapshots import ENDED_STATUSES

_TABLES: Final = (EVENTS, ATTEMPTS, STEPS, RUN_VALUES, RUNS)
LOCK: Final = 0x616E6162_72657431
"""PostgreSQL's advisory lock of who deletes: any number that nothing else of the database uses."""

_PAUSE_S: Final = 0.05  # at least
_DAY_MS: Final = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Keep:
    """What is kept of a tenant's runs: those that ended in so many days, and of them the newest so many; 0: all."""

    days: int = 0
    runs: int = 0


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is kept of whose runs."""

    default: Keep
    tenants: Mapping[str, Keep] = field(default_factory=dict)

    def of(self, tenant: str | None) -> Keep:
        """Return what is kept of a tenant's runs; nobody's are those whose start is not in the record."""
        return self.default if tenant is None else self.tenants.get(tenant, self.default)


class Retention:
    """Deletes what need not be kept."""

    def __init__(
        self,
        database: AsyncEngine,
        keeping: Keeping,
        *,
        now_ms: Callable[[], int],
        deleted: Callable[[int], None],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self._keeping = keeping
        self._now_ms = now_ms
        self._deleted = deleted
        self._pause = pause

    async def sweep(self) -> None:
        """Delete everything that is due, or nothing more once another process is at it.

        `deleted` is told how many runs after each batch. Raises what the database raises; what was told is gone then.
        """
        async with self._database.connect() as connection:
            whose = [None, *await tenants(connection)]
        for tenant in whose:
            for is_due in await self._due(tenant, self._keeping.of(tenant)):
                while await self._delete_some(tenant, is_due):
                    pass

    async def _due(self, tenant: str | None, keep: Keep) -> "Sequence[ColumnElement[bool]]":
        due = []
        if keep.days:
            before = self._now_ms() - keep.days * _DAY_MS
            due.append(and_(RUNS.c.created_at < before, func.coalesce(RUNS.c.finished_at, RUNS.c.created_at) < before))
        if keep.runs and tenant is not None:
            async with self._database.connect() as connection:
                newest = (await connection.execute(_beyond(tenant, keep.runs))).one_or_none()
            if newest is not None:
                due.append(tuple_(RUNS.c.created_at, RUNS.c.run_id) <= tuple_(*map(literal, newest)))
        return due

    async def _delete_some(self, tenant: str | None, is_due: "ColumnElement[bool]") -> bool:
        """Delete some runs and pause; return whether there were any, and no other process that deletes."""
        began = time.monotonic()
        async with self._database.connect() as connection:
            await connection.execution_options(sqlite_begin="IMMEDIATE")
            async with connection.begin():
                chosen = _few(await connection.execute(_ended(tenant, is_due))) if await self._may(connection) else []
                for table in _TABLES if chosen else ():
                    await connection.execute(delete(table).where(table.c.run_id.in_(chosen)))
        if chosen:
            self._deleted(len(chosen))
            await self._pause(max(_PAUSE_S, time.monotonic() - began))
        return bool(chosen)

    async def _may(self, connection: AsyncConnection) -> bool:
        """Take the lock until the transaction ends, unless it is taken."""
        if is_sqlite(self._database.url):
            return True
        return bool(await connection.scalar(select(func.pg_try_advisory_xact_lock(LOCK))))


def _beyond(tenant: str, runs: int) -> "Select[tuple[int, str]]":
    """Select the newest run of a tenant behind its newest `runs`: live ones count, though they stay."""
    by_age = RUNS.c.created_at.desc(), RUNS.c.run_id.desc()
    return (
        select(RUNS.c.created_at, RUNS.c.run_id).where(RUNS.c.tenant == tenant).order_by(*by_age).offset(runs).limit(1)
    )


def _ended(tenant: str | None, is_due: "ColumnElement[bool]") -> "Select[tuple[str, int]]":
    """Select the oldest runs of a tenant that are due and have ended; of them nobody else writes while this lasts."""
    return (
        select(RUNS.c.run_id, RUNS.c.seq)
        .where(RUNS.c.tenant.is_(None) if tenant is None else RUNS.c.tenant == tenant)
        .where(is_due, RUNS.c.status.in_(sorted(ENDED_STATUSES)))
        .order_by(RUNS.c.created_at, RUNS.c.run_id)
        .limit(MAX_DELETED_RUNS)
        .with_for_update(skip_locked=True)
    )


def _few(runs: Iterable[Row[tuple[str, int]]]) -> list[str]:
    """Return the first runs that have no more rows together than one transaction should delete; at least one."""
    chosen: list[str] = []
    events = 0
    for run_id, seq in runs:
        events += seq
        if chosen and events > MAX_DELETED_EVENTS:
            break
        chosen.append(run_id)
    return chosen
