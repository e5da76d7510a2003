"""One database for a process: SQLite in a file of its own, or PostgreSQL; asked and written through SQLAlchemy."""

import re
import sqlite3
import time
from pathlib import Path
from typing import Any, Final

import asyncpg
from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from anabranch.shared.contracts.errors import AnabranchError

DEFAULT_URL: Final = "sqlite:///anabranch.db"

UNANSWERED: Final = (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
"""What asking may raise. The driver's own errors come through when a server that is there lets nobody in: it is just
starting, does not know the user, or has not the database."""

CONNECTIONS: Final = 4
"""Of a process, at once: who finds none free waits."""

_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}
_BUSY_MS: Final = 5_000  # for so long one writer of SQLite waits for another
_AGAIN_S: Final = 0.01
_CONNECT_S: Final = 5.0
_SCHEME: Final = re.compile(r"[A-Za-z0-9+]+")


class UnusableDatabase(AnabranchError, ValueError):
    """The URL names no database that the record can be kept in."""


def database_url(text: str) -> URL:
    """Return the URL with the driver that is used here, whichever it named. Raises `UnusableDatabase`."""
    try:
        url = make_url(text)
    except ArgumentError as error:  # its own text repeats the URL, which has a password
        scheme = _SCHEME.match(text)
        raise UnusableDatabase(
            f"DATABASE_URL is no URL (it begins with {scheme.group() if scheme else ''!r}); for example {DEFAULT_URL}"
        ) from error
    if url.drivername not in _DRIVERS:
        raise UnusableDatabase(
            f"DATABASE_URL names a {url.drivername!r} database: only sqlite:///PATH and postgresql://… can be used"
        )
    if url.drivername.startswith("sqlite") and not url.database:
        raise UnusableDatabase("DATABASE_URL names no file: sqlite:///PATH, with four slashes for an absolute path")
    return url.set(drivername=_DRIVERS[url.drivername])


def open_database(text: str, *, name: str, connections: int = CONNECTIONS, timeout_s: float = 10.0) -> AsyncEngine:
    """Return an engine, not yet connected; `name` is what PostgreSQL shows of it, `timeout_s` the longest statement.

    Raises `UnusableDatabase`.
    """
    url = database_url(text)
    if is_sqlite(url):
        return _sqlite(url, connections)
    engine = create_async_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=timeout_s,
        pool_pre_ping=False,  # which asks the server: a round trip for each transaction
        connect_args={
            "timeout": _CONNECT_S,
            "command_timeout": timeout_s,
            # Statements here are short: planning them for the compiler costs more than they do.
            "server_settings": {"application_name": name[:63], "jit": "off"},
        },
    )

    @event.listens_for(engine.sync_engine, "checkout")
    def replace_closed(connection: Any, *_: object) -> None:
        # The pool sees no errors of the driver's own calls, which history writes with: it would lend a connection that
        # the server has closed again and again.
        if connection.driver_connection.is_closed():
            raise DisconnectionError("the server has closed the connection")

    return engine


def is_sqlite(url: URL) -> bool:
    """Return whether the database is a file of SQLite."""
    return url.get_backend_name() == "sqlite"


def _sqlite(url: URL, connections: int) -> AsyncEngine:
    assert url.database is not None
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(url, pool_size=connections, max_overflow=0, connect_args={"timeout": _BUSY_MS / 1000})

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver begins no transactions by itself: `begin` below does
        cursor = connection.cursor()
        _write_ahead(cursor)
        cursor.execute("PRAGMA synchronous = NORMAL")  # what a power cut takes is read from Kafka again
        cursor.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        cursor.execute("PRAGMA cache_size = -4096")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        # A reader that turns writer is refused at once when somebody else wrote meanwhile: writers say so at first.
        mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine


def _write_ahead(cursor: Any) -> None:
    """Turn the file to a write-ahead log, unless it is one. SQLite does not wait for others then, whatever time-out."""
    deadline = time.monotonic() + _BUSY_MS / 1000
    while True:
        cursor.execute("PRAGMA journal_mode")
        if cursor.fetchone()[0] == "wal":
            return
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:  # somebody else is at it, or writes
            if time.monotonic() > deadline:
                raise
            time.sleep(_AGAIN_S)
