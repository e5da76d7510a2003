"""Puts run events into the record, for tests of what reads them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.shared.contracts.messages import RunEventMessage
from anabranch.shared.record.rows import Place, Rows
from anabranch.shared.record.tables import ATTEMPTS
from anabranch.shared.record.writing import RecordWriter, write


async def record(database: AsyncEngine, events: Sequence[RunEventMessage]) -> None:
    """Write the events as history does, of partition 0 from its beginning on."""
    async with RecordWriter(database).transaction() as session:
        rows = Rows(await session.known(sorted({event.run_id for event in events})))
        for offset, event in enumerate(events):
            place = Place(0, offset, 0, event.model_dump_json().encode())
            rows.passed(place)
            rows.add(event, place)
        await write(session, rows)


async def record_attempts(database: AsyncEngine, run_id: str, step: str, *rows: dict[str, Any]) -> None:
    """Insert attempts of a step, numbered from 1."""
    async with database.begin() as connection:
        for number, row in enumerate(rows, start=1):
            of_step = {"run_id": run_id, "step": step, "attempt": number, "seq": number}
            await connection.execute(insert(ATTEMPTS), of_step | row)
