"""Run events that go into the record per second, over the bare driver's way of inserting the same rows.

PostgreSQL: `COPY`, SQLite: `executemany`; into tables with the same keys and indexes, one transaction for each batch of
the same size. Ours has to decode the events, ask what is known of their runs, and make the rows. Blocks alternate.
"""

import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.services.history.settings import HistorySettings
from anabranch.shared.contracts.codec import Undecodable, decode
from anabranch.shared.contracts.ids import new_run_id
from anabranch.shared.contracts.messages import RUN_EVENTS, QueuedStep, RunEnded, RunStarted, StepChanged, StepsQueued
from anabranch.shared.record.database import is_sqlite, open_database
from anabranch.shared.record.rows import COLUMNS, Place, Row, Rows
from anabranch.shared.record.schema import upgrade
from anabranch.shared.record.writing import RecordWriter, write
from tests.performance.report import Report
from tests.performance.sizes import Sizes
from tests.support.databases import a_database, a_postgres

AT: Final = "2026-01-31T12:00:00.000000Z"
STEPS: Final = {"a": "simulate", "b": "simulate", "c": "simulate", "d": "simulate"}


async def measure(sizes: Sizes) -> None:
    """Measure and report."""
    report = Report("recording")
    batch = HistorySettings().record_batch_records
    with a_postgres() as server, tempfile.TemporaryDirectory(prefix="anabranch-bench-") as folder:
        async with a_database(server) as url:
            for name, each in {"PostgreSQL": url, "SQLite": f"sqlite:///{Path(folder)}/record.db"}.items():
                await _measure(report, name, each, sizes, batch)
    report.finish()


async def _measure(report: Report, name: str, url: str, sizes: Sizes, batch: int) -> None:
    ours: list[float] = []
    bare: list[float] = []
    offset = 0
    async with database_of(url) as database:
        for block in range(sizes.blocks + 1):
            at_a_time = batch // len(diamond())  # whole runs: a bare insert can change no row that is there
            batches = [
                [value for _ in range(at_a_time) for value in diamond()] for _ in range(sizes.pipelines // at_a_time)
            ]
            events = sum(map(len, batches))
            started = time.perf_counter()
            for some in batches:
                await _record(database, some, offset)
                offset += len(some)
            seconds = time.perf_counter() - started
            tables = [rows_of([value for _ in range(at_a_time) for value in diamond()]) for _ in batches]
            began = time.perf_counter()
            for rows in tables:
                await insert_rows(database, rows)
            if block:  # the first one warms up
                ours.append(events / seconds)
                bare.append(events / (time.perf_counter() - began))
    ratio = median(mine / its for mine, its in zip(ours, bare, strict=True))
    report.row(f"{name}: events/s recorded", f"{median(ours):.0f}   ({', '.join(f'{each:.0f}' for each in ours)})")
    report.row(f"{name}: events/s, the same rows bare", f"{median(bare):.0f}   ({', '.join(f'{x:.0f}' for x in bare)})")
    report.row(f"{name}: ratio, median of blocks", f"{ratio:.3f}", ">= 0.3")
    report.note(**{name: {"ours": ours, "bare": bare, "ratio": ratio}})


def diamond() -> list[bytes]:
    """Return the events of a run as history gets them."""
    run = new_run_id()
    started = RunStarted(
        run_id=run, seq=1, at=AT, pipeline="diamond", tenant="default", inputs={"n": 1}, labels={"team": "x"},
        body_hash="0" * 64, steps=STEPS, queued=(QueuedStep("a", "simulate", 1),),
    )  # fmt: skip
    events: list[Any] = [started]
    for name, following in (("a", ("b", "c")), ("b", ()), ("c", ("d",)), ("d", ())):
        for type_, status in (("StepStarted", "running"), ("StepSucceeded", "succeeded")):
            ended = status == "succeeded"
            events.append(
                StepChanged(
                    type=type_, run_id=run, seq=len(events) + 1, at=AT, step=name, uses="simulate", status=status,
                    attempt=1, queued_at=AT, started_at=AT, finished_at=AT if ended else None,
                    output={"value": 1} if ended else None,
                    queued=tuple(QueuedStep(each, "simulate", 1) for each in following) if ended else None,
                )
            )  # fmt: skip
    events.append(StepsQueued(run_id=run, seq=len(events) + 1, at=AT))
    events.append(
        RunEnded(type="RunSucceeded", run_id=run, seq=len(events) + 1, at=AT, status="succeeded", started_at=AT)
    )
    return [event.model_dump_json(exclude_none=True).encode() for event in events]


@asynccontextmanager
async def database_of(url: str) -> AsyncIterator[AsyncEngine]:
    """Open a database that has its tables."""
    engine = open_database(url, name="bench", timeout_s=600)
    await upgrade(engine)
    yield engine
    await engine.dispose()


async def _record(database: AsyncEngine, values: Sequence[bytes], offset: int) -> None:
    """Do what history does with a batch."""
    events = [_decoded(value) for value in values]
    async with RecordWriter(database).transaction() as session:
        rows = Rows(await session.known(sorted({event.run_id for event in events})))
        for number, (event, value) in enumerate(zip(events, values, strict=True)):
            place = Place(0, offset + number, 0, value)
            rows.passed(place)
            rows.add(event, place)
        await write(session, rows)


def _decoded(value: bytes) -> Any:
    event = decode(RUN_EVENTS, value)
    assert not isinstance(event, Undecodable), event.reason
    return event


def rows_of(values: Sequence[bytes]) -> dict[str, list[Row]]:
    """Return the rows of a batch, but for those that other batches have, too."""
    rows = Rows({})
    for number, value in enumerate(values):
        rows.add(_decoded(value), Place(0, number, 0, value))
    found = rows.tables()
    return {name: found[name] for name in ("runs", "run_values", "steps", "attempts", "events") if found[name]}


async def insert_rows(database: AsyncEngine, tables: dict[str, list[Row]]) -> None:
    """Insert rows as the driver does it, in one transaction."""
    async with database.connect() as connection:
        if not is_sqlite(database.url):
            raw: Any = (await connection.get_raw_connection()).driver_connection
            async with raw.transaction():
                for name, rows in tables.items():
                    await raw.copy_records_to_table(name, records=rows, columns=list(COLUMNS[name]))
            return
        await connection.execution_options(sqlite_begin="IMMEDIATE")
        async with connection.begin():
            for name, rows in tables.items():
                marks = ", ".join("?" * len(COLUMNS[name]))
                names = ", ".join(f'"{column}"' for column in COLUMNS[name])
                await connection.exec_driver_sql(f"INSERT INTO {name} ({names}) VALUES ({marks})", rows)
