"""What `anabranch db` does: an operator's command, which brings the tables of the record up or down."""

from collections.abc import Awaitable, Callable

from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.client.commands import FAILED, OK, put, say
from anabranch.shared.record import schema
from anabranch.shared.record.database import UNANSWERED, open_database
from anabranch.shared.record.settings import RecordSettings


async def upgrade(settings: RecordSettings, revision: str) -> int:
    """Bring the database up to a revision, and say from which to which."""
    return await _with_database(settings, lambda database: _moved(schema.upgrade(database, revision)))


async def downgrade(settings: RecordSettings, revision: str) -> int:
    """Take the database down to a revision: what the tables of later ones hold is gone."""
    return await _with_database(settings, lambda database: _moved(schema.downgrade(database, revision)))


async def current(settings: RecordSettings) -> int:
    """Print the revision of the database and the one that this version needs."""

    async def shown(database: AsyncEngine) -> None:
        put(f"{await schema.current(database) or 'none'}, needed is {schema.head()}")

    return await _with_database(settings, shown)


async def _moved(moving: Awaitable[tuple[str, str]]) -> None:
    before, now = await moving
    put(f"{before or 'none'} -> {now or 'none'}" if before != now else f"{now or 'none'}: nothing to do")


async def _with_database(settings: RecordSettings, work: Callable[[AsyncEngine], Awaitable[None]]) -> int:
    if not settings.database_url:
        say("DATABASE_URL is not set: postgresql://user:password@host/name, or sqlite:///PATH")
        return FAILED
    database = open_database(settings.database_url, name="anabranch db", timeout_s=3600.0)
    try:
        await work(database)
    except (*UNANSWERED, schema.CommandError) as error:
        say(f"the database {database.url.render_as_string(hide_password=True)}: {error}")
        return FAILED
    finally:
        await database.dispose()
    return OK
