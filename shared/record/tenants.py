"""Whose runs the record holds."""

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from anabranch.shared.record.tables import RUNS


async def tenants(connection: AsyncConnection) -> list[str]:
    """Return the tenants that have runs, in order, by one look into an index for each."""
    found: list[str] = []
    wanted = select(func.min(RUNS.c.tenant))
    while (tenant := await connection.scalar(wanted)) is not None:
        found.append(tenant)
        wanted = select(func.min(RUNS.c.tenant)).where(RUNS.c.tenant > tenant)
    return found
