"""How the record in SQL is: runs go on without it, but nobody finds them."""

import time
from typing import Final

from sqlalchemy import Float, cast, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.shared.diagnosis.findings import Finding, fault, ok, warning
from anabranch.shared.diagnosis.in_redis import clock
from anabranch.shared.record import schema
from anabranch.shared.record.database import UNANSWERED, is_sqlite, open_database
from anabranch.shared.record.settings import RecordSettings

_SLOW_MS: Final = 100.0


async def examine_record(settings: RecordSettings) -> list[Finding]:
    """Return whether the database answers, has its tables, and whether its clock is ours."""
    if not settings.database_url:
        return [
            warning(
                "record",
                "none is kept: DATABASE_URL is not set here",
                "set it to what history and the gateways have; without a record runs are forgotten with Redis",
            )
        ]
    database = open_database(settings.database_url, name="anabranch doctor")
    try:
        return await _examined(database)
    except UNANSWERED as error:
        cause = getattr(error, "orig", None) or error
        where = database.url.render_as_string(hide_password=True)
        return [
            fault(
                "record",
                f"{where} does not answer: {type(cause).__name__}: {cause}"[:500],
                "start the database, or set DATABASE_URL; until then run events wait in Kafka, and are recorded later",
            )
        ]
    finally:
        await database.dispose()


async def _examined(database: AsyncEngine) -> list[Finding]:
    await schema.current(database)  # the first one connects
    began = time.perf_counter()
    revision = await schema.current(database)
    took_ms = 1000 * (time.perf_counter() - began)
    says = f"{database.dialect.name} answers in {took_ms:.1f} ms"
    found = [ok("record", says) if took_ms <= _SLOW_MS else warning("record", says, "look at the database's load")]
    try:
        await schema.check(database)
    except schema.SchemaBehind as error:
        found.append(fault("record tables", str(error), "run `anabranch db upgrade`"))
    else:
        found.append(ok("record tables", f"revision {revision}"))
    if not is_sqlite(database.url):
        async with database.connect() as connection:
            now_s = (
                await connection.execute(select(cast(func.extract("epoch", func.clock_timestamp()), Float)))
            ).scalar_one()
        found.append(clock("the database", now_s))
    return found
