"""Writes batches of run events into the record: each once, whatever is repeated, in one transaction with how far it is.

PostgreSQL is given the columns of a table as arrays, by its driver itself: one statement for each table and batch, half
the time of a statement for each row. SQLite takes rows by `executemany`, which is a call of C per row.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeVar

import asyncpg
from sqlalchemy import BigInteger, Integer, LargeBinary, Text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.record.database import is_sqlite
from anabranch.shared.record.errors import RecordUnavailable, RowsRefused
from anabranch.shared.record.rows import COLUMNS, Known, Row, Rows
from anabranch.shared.record.tables import METADATA

T = TypeVar("T")

_OF_A_RUN: Final = ("runs", "run_values", "steps", "attempts", "events")

# What becomes of a row that is there already. A run's start and end are set once and stay; what a later event says of a
# step or attempt takes the place of what an earlier one said.
_UNTIL_SET: Final = (
    "tenant", "pipeline", "revision", "started_at", "header", "ending", "finished_at", "error_type", "error_text",
)  # fmt: skip
_CONFLICTS: Final[Mapping[str, str]] = {
    "runs": "(run_id) DO UPDATE SET "
    + ", ".join(f"{name} = COALESCE(runs.{name}, excluded.{name})" for name in _UNTIL_SET)
    + ", status = CASE WHEN runs.ending IS NULL THEN excluded.status ELSE runs.status END"
    ", created_at = CASE WHEN runs.header IS NULL AND excluded.header IS NOT NULL"
    " THEN excluded.created_at ELSE runs.created_at END"
    ", body_hash = CASE WHEN runs.header IS NULL THEN excluded.body_hash ELSE runs.body_hash END"
    ", seq = CASE WHEN excluded.seq > runs.seq THEN excluded.seq ELSE runs.seq END",
    "run_values": "(run_id, name) DO NOTHING",
    "steps": "(run_id, step) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in COLUMNS["steps"][2:])
    + " WHERE excluded.seq > steps.seq",
    "attempts": "(run_id, step, attempt) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in COLUMNS["attempts"][3:])
    + " WHERE excluded.seq > attempts.seq AND attempts.finished_at IS NULL",
    "events": "(run_id, seq) DO NOTHING",
    "revisions": "(tenant, pipeline, revision) DO UPDATE SET first_used_at = excluded.first_used_at"
    " WHERE excluded.first_used_at < revisions.first_used_at",
    "progress": "(partition) DO UPDATE SET next_offset = excluded.next_offset, at = excluded.at",
}


class Session(Protocol):
    """One transaction of a database."""

    async def known(self, run_ids: Sequence[str]) -> dict[str, Known]:
        """Return what the record holds of these runs."""
        ...

    async def forget(self, run_ids: Sequence[str]) -> None:
        """Delete every row of these runs."""
        ...

    async def write(self, table: str, rows: Sequence[Row]) -> None:
        """Insert rows into a table, or change those that are there."""
        ...

    async def progress(self) -> dict[int, int]:
        """Return by partition the offset that the record goes on from."""
        ...


class RecordWriter:
    """The record as history writes it."""

    def __init__(self, database: AsyncEngine) -> None:
        self._database = database

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Session]:
        """Yield a session whose changes stand when the context ends. Raises `RecordUnavailable`, `RowsRefused`."""
        try:
            async with self._database.connect() as connection:
                if is_sqlite(self._database.url):
                    await connection.execution_options(sqlite_begin="IMMEDIATE")
                    async with connection.begin():
                        yield _SqliteSession(connection)
                else:
                    raw: Any = (await connection.get_raw_connection()).driver_connection
                    try:
                        async with raw.transaction():
                            yield _PostgresSession(raw)
                    except (asyncpg.InterfaceError, OSError, TimeoutError):  # what state it is in nobody knows
                        raw.terminate()
                        raise
        except SQLAlchemyError as error:  # of the pool, too, when every connection is taken
            raise _refused_or_unavailable(getattr(error, "orig", None) or error) from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise _refused_or_unavailable(error) from error

    async def progress(self) -> dict[int, int]:
        """Return by partition the offset that the record goes on from. Raises `RecordUnavailable`."""
        async with self.transaction() as session:
            return await session.progress()


async def write(session: Session, rows: Rows, changed: Collection[str] = frozenset(COLUMNS)) -> None:
    """Write a batch; `changed` may leave tables out."""
    if replaced := rows.replaced():
        await session.forget(replaced)
    for table, of_table in rows.tables().items():
        if of_table and table in changed:
            await session.write(table, of_table)


class _SqliteSession:
    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def known(self, run_ids: Sequence[str]) -> dict[str, Known]:
        found: dict[str, Known] = {}
        for some in _chunks(run_ids, _MOST_OF_SQLITE):
            marks = ", ".join("?" * len(some))
            answer = await self._connection.exec_driver_sql(_KNOWN.format(f"IN ({marks})"), tuple(some))
            found |= {row[0]: _known(row) for row in answer}
        return found

    async def forget(self, run_ids: Sequence[str]) -> None:
        for table in _OF_A_RUN:
            await self._connection.exec_driver_sql(
                f"DELETE FROM {table} WHERE run_id = ?",  # noqa: S608  the tables are ours
                [(run_id,) for run_id in run_ids],
            )

    async def write(self, table: str, rows: Sequence[Row]) -> None:
        await self._connection.exec_driver_sql(_SQLITE[table], list(rows))

    async def progress(self) -> dict[int, int]:
        return {row[0]: row[1] for row in await self._connection.exec_driver_sql(_PROGRESS)}


class _PostgresSession:
    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def known(self, run_ids: Sequence[str]) -> dict[str, Known]:
        rows = await self._connection.fetch(_KNOWN.format("= ANY($1::text[])"), list(run_ids))
        return {row[0]: _known(row) for row in rows}

    async def forget(self, run_ids: Sequence[str]) -> None:
        for table in _OF_A_RUN:
            await self._connection.execute(
                f"DELETE FROM {table} WHERE run_id = ANY($1::text[])",  # noqa: S608  the tables are ours
                list(run_ids),
            )

    async def write(self, table: str, rows: Sequence[Row]) -> None:
        for some in _chunks(rows, _ROWS_AT_ONCE):
            await self._connection.execute(_POSTGRES[table], *zip(*some, strict=True))

    async def progress(self) -> dict[int, int]:
        return {row[0]: row[1] for row in await self._connection.fetch(_PROGRESS)}


_ROWS_AT_ONCE: Final = 500  # of a statement: they are encoded in one turn of the loop, some 10 ms
_MOST_OF_SQLITE: Final = 500  # parameters of one statement; older builds allow 999
_KNOWN: Final = (
    "SELECT run_id, seq, CASE WHEN header IS NULL THEN NULL ELSE created_at END, finished_at FROM runs WHERE run_id {}"
)
_PROGRESS: Final = "SELECT partition, next_offset FROM progress"
_TYPES: Final = {Text: "text", BigInteger: "bigint", Integer: "integer", LargeBinary: "bytea"}


def _into(table: str) -> str:
    names = ", ".join(f'"{name}"' for name in COLUMNS[table])
    return f"INSERT INTO {table} ({names})"


def _arrays(table: str) -> str:
    columns = METADATA.tables[table].c
    return ", ".join(
        f"${number}::{_TYPES[type(columns[name].type)]}[]" for number, name in enumerate(COLUMNS[table], start=1)
    )


_SQLITE: Final = {
    table: f"{_into(table)} VALUES ({', '.join('?' * len(columns))}) ON CONFLICT {_CONFLICTS[table]}"
    for table, columns in COLUMNS.items()
}
_POSTGRES: Final = {
    table: f"{_into(table)} SELECT * FROM unnest({_arrays(table)}) ON CONFLICT {_CONFLICTS[table]}"  # noqa: S608
    for table in COLUMNS
}


def _known(row: Sequence[Any]) -> Known:
    return Known(row[1], row[2], row[3])


def _chunks(items: Sequence[T], most: int) -> list[Sequence[T]]:
    return [items[start : start + most] for start in range(0, len(items), most)]


# Of what is wrong with the rows, and would be again: all else may pass.
_FOR_EVER: Final = (
    asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError,
)  # fmt: skip


def _refused_or_unavailable(error: BaseException) -> AnabranchError:
    cause = error.__cause__ if isinstance(error.__cause__, asyncpg.PostgresError) else error
    of_sqlite = type(error).__module__ == "sqlite3" and type(error).__name__ in _SQLITE_FOR_EVER
    if isinstance(cause, _FOR_EVER) or of_sqlite:
        return RowsRefused(str(error))
    return RecordUnavailable(f"{type(error).__name__}: {error}")


_SQLITE_FOR_EVER: Final = frozenset({"DataError", "IntegrityError", "InterfaceError", "ProgrammingError"})
