"""`anabranch replay` tells when the record's rows of a run are not what its events make, and only then."""

import random
from uuid import UUID

import pytest
from sqlalchemy import Table, delete, update
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.client.stored_events import from_database, wrong_rows
from anabranch.services.orchestrator.core.effects import Channel
from anabranch.shared.contracts.messages import RUN_EVENTS
from anabranch.shared.record.rows import Place, Rows
from anabranch.shared.record.settings import RecordSettings
from anabranch.shared.record.tables import ATTEMPTS, RUN_VALUES, RUNS, STEPS
from anabranch.shared.record.writing import RecordWriter, write
from tests.support.builders import RUN
from tests.support.random_runs import live, outputs_of

LIVES = 12


async def record(database: AsyncEngine, chance: random.Random, run_id: str) -> list[bytes]:
    """Write the events of a random life into the record, in batches of any size; return them."""
    decisions = live(chance, largest=6).decisions
    outputs = [output.value for output in outputs_of(decisions) if output.channel is Channel.RUN_EVENTS]
    events = [value.replace(RUN.encode(), run_id.encode()) for value in outputs]
    writer, offset = RecordWriter(database), 0
    while offset < len(events):
        batch = events[offset : offset + chance.randint(1, 5)]
        async with writer.transaction() as session:
            rows = Rows(await session.known([run_id]))
            for number, value in enumerate(batch, start=offset):
                rows.add(RUN_EVENTS.validate_json(value), Place(0, number, 0, value))
            await write(session, rows)
        offset += len(batch)
    return events


async def test_rows_that_were_written_in_batches_are_those_of_all_events(
    database: AsyncEngine, database_url: str
) -> None:
    """Whatever the run went through, also a second run with its id."""
    settings, chance = RecordSettings(database_url=database_url), random.Random(10)
    for number in range(LIVES):
        run_id = str(UUID(int=number + 1))
        events = await record(database, chance, run_id)
        stored = await from_database(settings, run_id)
        assert [value for (value,) in stored.values()] == events[-len(stored) :]
        assert await wrong_rows(settings, run_id) == []


@pytest.mark.parametrize("table", [RUNS, STEPS, ATTEMPTS, RUN_VALUES], ids=lambda table: str(table.name))
async def test_a_row_that_was_changed_or_lost_is_found(database: AsyncEngine, database_url: str, table: Table) -> None:
    """In whichever table; that of an other run is none of its."""
    settings, chance = RecordSettings(database_url=database_url), random.Random(1)
    runs = [str(UUID(int=number)) for number in (1, 2)]
    for run_id in runs:
        await record(database, chance, run_id)
    changed = "value" if table is RUN_VALUES else "status"
    async with database.begin() as connection:
        await connection.execute(update(table).where(table.c.run_id == runs[0]).values({changed: "?"}))
        await connection.execute(delete(table).where(table.c.run_id == runs[1]))
    assert [await wrong_rows(settings, run_id) for run_id in runs] == 2 * [[table.name]]
