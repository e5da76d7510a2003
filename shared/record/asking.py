"""Asks the database of the record: one statement at a time, each with its answer in time or one error."""

import asyncio
import sqlite3
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
from sqlalchemy import Row
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.shared.record.database import CONNECTIONS, is_sqlite
from anabranch.shared.record.errors import RecordUnavailable

_OF_DRIVERS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, sqlite3.Error, OSError)
_FAILURES: Final = (SQLAlchemyError, TimeoutError, *_OF_DRIVERS)

WITHIN_S: Final = 5.0
"""A read that takes longer is of no use to who waits for it."""


@dataclass(frozen=True, slots=True)
class _Text:
    """A statement as its driver takes it: the values it has itself, and the names of all in their order."""

    sql: str
    own: dict[str, Any]
    names: Sequence[str]
    row: Callable[[Sequence[Any]], Any]


class _ConnectionGone(Exception):
    """The server has closed the connection, as it does with all when it is started anew."""


class Asking:
    """One statement sees one moment, and has its answer within `within_s`."""

    def __init__(self, engine: AsyncEngine, *, within_s: float = WITHIN_S) -> None:
        # PostgreSQL needs no transaction for one statement; SQLite has one anyway.
        self._engine = engine if is_sqlite(engine.url) else engine.execution_options(isolation_level="AUTOCOMMIT")
        self._is_sqlite = is_sqlite(engine.url)
        self._within_s = within_s
        self._texts: dict[Any, _Text] = {}

    async def ask_the_same(self, statement: Any, values: Mapping[str, Any]) -> Sequence[Any]:
        """Return the rows of a statement that is a constant of its module. Raises `RecordUnavailable`.

        Its driver is given the text itself, which takes a third of the time: SQLAlchemy crosses to the driver five
        times for one answer.
        """
        text = self._texts.get(statement)
        if text is None:
            text = self._texts[statement] = self._text(statement)
        try:
            async with asyncio.timeout(self._within_s):
                return [
                    text.row(row) for row in await self._fetch(text, [(text.own | dict(values))[n] for n in text.names])
                ]
        except (_ConnectionGone, *_FAILURES) as error:
            raise RecordUnavailable(f"the database does not answer: {_name_of(error)}") from error

    async def ask(self, statement: Any, values: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        """Return the rows. Raises `RecordUnavailable`."""
        try:
            async with asyncio.timeout(self._within_s):
                return await self._answer(statement, values or {})
        except _FAILURES as error:
            raise RecordUnavailable(f"the database does not answer: {_name_of(error)}") from error

    async def _answer(self, statement: Any, values: Mapping[str, Any]) -> Sequence[Row[Any]]:
        try:
            return await self._execute(statement, values)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        return await self._execute(statement, values)  # the server was started anew, and all connections went with it

    async def _execute(self, statement: Any, values: Mapping[str, Any]) -> Sequence[Row[Any]]:
        async with self._engine.connect() as connection:
            return (await connection.execute(statement, values)).all()

    def _text(self, statement: Any) -> _Text:
        compiled = statement.compile(dialect=self._engine.dialect)
        names = [column.name for column in statement.selected_columns]
        row = namedtuple("Row", names)  # type: ignore[misc]
        return _Text(str(compiled), dict(compiled.params), compiled.positiontup, row._make)

    async def _fetch(self, text: _Text, values: Sequence[Any]) -> Sequence[Sequence[Any]]:
        for _ in range(CONNECTIONS):  # the server was started anew, and all connections went with it
            try:
                return await self._fetch_once(text, values)
            except _ConnectionGone:
                continue
        return await self._fetch_once(text, values)

    async def _fetch_once(self, text: _Text, values: Sequence[Any]) -> Sequence[Sequence[Any]]:
        async with self._engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            try:
                if self._is_sqlite:
                    return list(await driver.execute_fetchall(text.sql, values))
                return list(await driver.fetch(text.sql, *values))
            except BaseException as error:
                await connection.invalidate()  # whatever it is in the middle of
                if isinstance(error, _GONE):
                    raise _ConnectionGone(type(error).__name__) from error
                raise


_GONE: Final = (asyncpg.InterfaceError, asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, OSError)


def is_possible(text: str) -> bool:
    """Return whether the record can have such a text: it takes no NUL, and UTF-8 no half of a character."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _name_of(error: BaseException) -> str:
    """Return what went wrong without the statement and its values, which SQLAlchemy would tell."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return type(cause).__name__
