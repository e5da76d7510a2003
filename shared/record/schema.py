"""The schema of a database: brought up to date by one command, and looked at by every service before it begins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.shared.contracts.errors import AnabranchError

__all__ = ["BASE", "HEAD", "CommandError", "SchemaBehind", "check", "current", "downgrade", "head", "upgrade"]

HEAD: Final = "head"
BASE: Final = "base"

_SCRIPTS: Final = Path(__file__).parent / "migrations"
_LOCK: Final = 0x616E6162  # two that migrate PostgreSQL at once: the second waits, and finds nothing left to do


class SchemaBehind(AnabranchError):
    """The database has not the tables that this version needs."""


async def upgrade(engine: AsyncEngine, to: str = HEAD) -> tuple[str, str]:
    """Bring the database up to a revision; return that of before and that of now, `` for an empty database."""
    return await _migrate(engine, lambda config: command.upgrade(config, to))


async def downgrade(engine: AsyncEngine, to: str) -> tuple[str, str]:
    """Take the database down to a revision, `base` for nothing; return that of before and that of now."""
    return await _migrate(engine, lambda config: command.downgrade(config, to))


async def current(engine: AsyncEngine) -> str:
    """Return the revision of the database, `` when it is empty."""
    async with engine.connect() as connection:
        return await connection.run_sync(_current)


def head() -> str:
    """Return the revision that this version of the code needs."""
    found = ScriptDirectory(str(_SCRIPTS)).get_current_head()
    assert found is not None
    return found


async def check(engine: AsyncEngine) -> None:
    """Return when this version can work on the database. Raises `SchemaBehind`.

    A revision that is not known here is of a later version, which keeps what this one needs (docs/record.md).
    """
    found = await current(engine)
    scripts = ScriptDirectory(str(_SCRIPTS))
    known = {script.revision for script in scripts.walk_revisions()}
    if found == head() or (found and found not in known):
        return
    raise SchemaBehind(
        f"the database is at revision {found or 'none'}, and {head()} is needed: run `anabranch db upgrade`"
    )


async def _migrate(engine: AsyncEngine, work: Callable[[Config], Any]) -> tuple[str, str]:
    async with engine.connect() as connection:
        await connection.execution_options(sqlite_begin="IMMEDIATE")
        async with connection.begin():
            return await connection.run_sync(_run, work)


def _run(connection: Connection, work: Callable[[Config], Any]) -> tuple[str, str]:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    before = _current(connection)
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    config.attributes["connection"] = connection
    work(config)
    return before, _current(connection)


def _current(connection: Connection) -> str:
    return MigrationContext.configure(connection).get_current_revision() or ""
