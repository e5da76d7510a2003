"""Reads runs from the record: as the fields that every run document is made of, and what only the record knows.

Whose a run is stands in the statement itself: the answer to a foreign id is that to an unknown one, at the same price.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import BindParameter, Row, Select, bindparam, func, literal, null, select, text, union_all
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.shared.contracts.times import rfc3339
from anabranch.shared.record.asking import WITHIN_S, Asking, is_possible
from anabranch.shared.record.database import is_sqlite
from anabranch.shared.record.tables import ATTEMPTS, PROGRESS, RUNS, STEPS
from anabranch.shared.runtime.snapshots import (
    BODY_HASH,
    CREATED_AT,
    END,
    RUN,
    SEQ,
    STATUS,
    STEP_PREFIX,
    TENANT,
    Fields,
    Standing,
)

LOST: Final = "lost"


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt of a step; times in milliseconds since the epoch, `error` as JSON."""

    attempt: int
    status: str
    queued_at: int | None
    started_at: int | None
    finished_at: int | None
    error: bytes | None

    @property
    def queued_ms(self) -> int | None:
        """How long it waited for a worker."""
        return _between(self.queued_at, self.started_at)

    @property
    def ran_ms(self) -> int | None:
        """How long its worker had it."""
        return _between(self.started_at, self.finished_at)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the record is in a partition of the run events: the next offset, and when the one before was written."""

    next_offset: int
    at: int


@dataclass(frozen=True, slots=True)
class RecordedKey:
    """What the record has of a run that came with an idempotency key; `finished_at` in ms, None while it goes on."""

    body_hash: str
    status: str
    finished_at: int | None


class RecordReader:
    """Reads the record. Each question is one statement, which sees one moment, and has its answer within `within_s`."""

    def __init__(self, engine: AsyncEngine, *, within_s: float = WITHIN_S) -> None:
        self._asking = Asking(engine, within_s=within_s)
        self._keys = text(_KEYS.format(wanted=_WANTED[is_sqlite(engine.url)])).columns(*_KEY_COLUMNS)

    async def standing(self, run_id: str, tenant: str) -> Standing | None:
        """Return where the tenant's run stands, None when it has none such. Raises `RecordUnavailable`."""
        found = await self._ask(_STANDING, run_id, tenant)
        if not found:
            return None
        status, seq, created_at, size = found[0]
        return Standing(status, seq, rfc3339(created_at), int(size))

    async def status(self, run_id: str) -> str | None:
        """Return the status alone, whosever the run is. Raises `RecordUnavailable`."""
        found = await self._ask(_STATUS, run_id)
        return found[0][0] if found else None

    async def keys(self, run_ids: Sequence[str]) -> list[RecordedKey | None]:
        """Return what is known of each run's key, None where the record has not the run. Raises `RecordUnavailable`."""
        values = {"wanted": orjson.dumps(run_ids).decode()}
        found = {
            row.run_id: RecordedKey(row.body_hash, row.status, row.finished_at)
            for row in await self._asking.ask_the_same(self._keys, values)
        }
        return [found.get(run_id) for run_id in run_ids]

    async def fields(self, run_id: str, tenant: str) -> Fields | None:
        """Return the tenant's run, None when it has none such. Raises `RecordUnavailable`."""
        found = await self._ask(_FIELDS, run_id, tenant)
        of_run = next((row for row in found if row.step is None), None)
        if of_run is None:
            return None
        fields = {
            SEQ: str(of_run.seq).encode(),
            CREATED_AT: rfc3339(of_run.created_at).encode(),
            RUN: of_run.document,
            STATUS: of_run.status.encode(),
            TENANT: tenant.encode(),
            BODY_HASH: of_run.body_hash.encode(),
        }
        if of_run.ending is not None:
            fields[END] = of_run.ending
        return fields | {STEP_PREFIX + row.step.encode(): row.document for row in found if row.step is not None}

    async def attempts(self, run_id: str, step: str, tenant: str) -> list[Attempt] | None:
        """Return the attempts of a step of the tenant's run, the first one first; None when it has no such step.

        One that never ended and is not the last was lost: its worker fell silent, and another took the step.
        Raises `RecordUnavailable`.
        """
        found = await self._ask(_ATTEMPTS, run_id, tenant, step=step)
        header = next((row.error for row in found if row.attempt == _NO_ATTEMPT), None)
        attempts = sorted((row for row in found if row.attempt != _NO_ATTEMPT), key=lambda row: row.attempt)
        if header is None or not (attempts or step in orjson.loads(header)["steps"]):
            return None
        return [_attempt(row, is_last=row is attempts[-1]) for row in attempts]

    async def progress(self) -> dict[int, Progress]:
        """Return how far the record is, by partition. Raises `RecordUnavailable`."""
        return {row.partition: Progress(row.next_offset, row.at) for row in await self._ask(_PROGRESS)}

    async def _ask(self, statement: Any, run_id: str = "", tenant: str = "", **values: str | int) -> Sequence[Any]:
        values |= {"run_id": run_id, "tenant": tenant}
        if not all(is_possible(value) for value in values.values() if isinstance(value, str)):
            return []
        return await self._asking.ask_the_same(statement, values)


def _between(begin: int | None, end: int | None) -> int | None:
    return None if begin is None or end is None else max(0, end - begin)


def _attempt(row: Row[Any], *, is_last: bool) -> Attempt:
    is_lost = row.finished_at is None and not is_last
    return Attempt(
        row.attempt, LOST if is_lost else row.status, row.queued_at, row.started_at, row.finished_at, row.error
    )


_NO_ATTEMPT: Final = 0  # attempts count from 1

_RUN_ID: Final[BindParameter[str]] = bindparam("run_id")
_IS_OF: Final = (RUNS.c.run_id == _RUN_ID) & (RUNS.c.tenant == bindparam("tenant")) & RUNS.c.header.is_not(None)
_OF_STEPS: Final = (
    select(func.sum(func.length(STEPS.c.document))).where(STEPS.c.run_id == RUNS.c.run_id).scalar_subquery()
)
_STATUS: Final = select(RUNS.c.status).where(RUNS.c.run_id == _RUN_ID)
_STANDING: Final = select(
    RUNS.c.status,
    RUNS.c.seq,
    RUNS.c.created_at,
    (func.length(RUNS.c.header) + func.coalesce(func.length(RUNS.c.ending), 0) + func.coalesce(_OF_STEPS, 0)).label(
        "size"
    ),
).where(_IS_OF)


def _if_of(statement: Select[Any]) -> Select[Any]:
    return statement.where(select(RUNS.c.run_id).where(_IS_OF).exists())


# The run itself has no step; its header stands where its steps have their documents.
_FIELDS: Final = union_all(
    select(
        null().label("step"),
        RUNS.c.header.label("document"),
        RUNS.c.seq,
        RUNS.c.created_at,
        RUNS.c.status,
        RUNS.c.body_hash,
        RUNS.c.ending,
    ).where(_IS_OF),
    _if_of(
        select(STEPS.c.step, STEPS.c.document, null(), null(), null(), null(), null()).where(STEPS.c.run_id == _RUN_ID)
    ),
)

# The run's header, which names its steps, stands where its attempts have their errors.
_ATTEMPTS: Final = union_all(
    select(
        literal(_NO_ATTEMPT).label("attempt"),
        RUNS.c.status,
        null().label("queued_at"),
        null().label("started_at"),
        null().label("finished_at"),
        RUNS.c.header.label("error"),
    ).where(_IS_OF),
    _if_of(
        select(
            ATTEMPTS.c.attempt,
            ATTEMPTS.c.status,
            ATTEMPTS.c.queued_at,
            ATTEMPTS.c.started_at,
            ATTEMPTS.c.finished_at,
            ATTEMPTS.c.error,
        ).where(ATTEMPTS.c.run_id == _RUN_ID, ATTEMPTS.c.step == bindparam("step"))
    ),
)
_PROGRESS: Final = select(PROGRESS)

# Many runs come as one JSON text, so that the statement is the same for any number of them; by whether it is SQLite.
_WANTED: Final = {
    True: "SELECT value FROM json_each(:wanted)",
    False: "SELECT json_array_elements_text(CAST(:wanted AS json))",
}
_KEYS: Final = (
    "SELECT run_id, body_hash, status, finished_at FROM runs WHERE run_id IN ({wanted}) AND header IS NOT NULL"
)
_KEY_COLUMNS: Final = (RUNS.c.run_id, RUNS.c.body_hash, RUNS.c.status, RUNS.c.finished_at)
