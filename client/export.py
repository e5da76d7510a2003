"""What `anabranch export` does: an operator's command, which writes runs and their events as Parquet files.

Runs are read in pages, each with its events in one transaction: a run and its events are of one moment, and nobody who
writes is held up. What is in memory is a page of runs and a row group of events.
"""

from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import asyncpg
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json, to_json
from sqlalchemy import ColumnElement, Row, Select, and_, literal, select, tuple_
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from anabranch.client.commands import FAILED, OK, say
from anabranch.shared.record.database import open_database
from anabranch.shared.record.settings import RecordSettings
from anabranch.shared.record.tables import EVENTS, RUNS
from anabranch.shared.record.tenants import tenants

PAGE_RUNS: Final = 500
GROUP_ROWS: Final = 65_536  # what readers take at once; pyarrow's own is sixteen times that
GROUP_BYTES: Final = 32 * 1024 * 1024  # of the texts in it
_FETCHED_ROWS: Final = 1_000  # at once
_STATEMENT_S: Final = 600.0

Place = tuple[int, str]
"""Where a run stands among those of its tenant: when it was created, and its id."""

_TIME: Final = pa.timestamp("ms", tz="UTC")
_NAME: Final = pa.string()
_JSON: Final = pa.string()

RUN_COLUMNS: Final = pa.schema(
    [
        pa.field("run_id", _NAME, nullable=False),
        pa.field("tenant", _NAME, nullable=False),
        pa.field("pipeline", _NAME),
        pa.field("revision", pa.int32()),
        pa.field("status", _NAME, nullable=False),
        pa.field("created_at", _TIME, nullable=False),
        pa.field("started_at", _TIME),
        pa.field("finished_at", _TIME),
        pa.field("last_seq", pa.int32(), nullable=False),
        pa.field("labels", pa.map_(_NAME, pa.string())),
        pa.field("inputs", _JSON),
        pa.field("outputs", _JSON),
        pa.field("error", _JSON),
        pa.field("error_type", _NAME),
    ]
)
EVENT_COLUMNS: Final = pa.schema(
    [
        pa.field("run_id", _NAME, nullable=False),
        pa.field("tenant", _NAME, nullable=False),
        pa.field("seq", pa.int32(), nullable=False),
        pa.field("type", _NAME, nullable=False),
        pa.field("at", _TIME, nullable=False),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("event", _JSON, nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which runs: those created in a span of time, ms, from the first to before the second; of one tenant or of all."""

    since_ms: int | None = None
    until_ms: int | None = None
    tenant: str | None = None


async def export(settings: RecordSettings, out: Path, wanted: Wanted) -> int:
    """Write `runs.parquet` and `events.parquet` into a directory, and say how many rows they have."""
    if not settings.database_url:
        say("DATABASE_URL is not set: postgresql://user:password@host/name, or sqlite:///PATH")
        return FAILED
    database = open_database(settings.database_url, name="anabranch export", connections=1, timeout_s=_STATEMENT_S)
    try:
        runs, events = await write(database, out, wanted)
    except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        say(f"nothing was exported: {error}")
        return FAILED
    finally:
        await database.dispose()
    say(f"{runs:,} runs and {events:,} events are in {out}")
    return OK


async def write(database: AsyncEngine, out: Path, wanted: Wanted) -> tuple[int, int]:
    """Write both files, and return how many rows they have. There is either both or none."""
    with ExitStack() as files:
        runs = files.enter_context(ParquetFile(out / "runs.parquet", RUN_COLUMNS))
        events = files.enter_context(ParquetFile(out / "events.parquet", EVENT_COLUMNS))
        async with database.connect() as connection:
            whose = [wanted.tenant] if wanted.tenant is not None else await tenants(connection)
        for tenant in whose:
            await _write_tenant(database, tenant, wanted, runs, events)
        runs.finish()
        events.finish()
    return runs.rows, events.rows


async def _write_tenant(
    database: AsyncEngine, tenant: str, wanted: Wanted, runs: "ParquetFile", events: "ParquetFile"
) -> None:
    last: Place | None = None
    while True:
        async with database.connect() as connection:
            if connection.dialect.name == "postgresql":  # SQLite's transactions see one moment anyway
                await connection.execution_options(isolation_level="REPEATABLE READ")
            span = _span(tenant, wanted, last)
            page = (await connection.execute(_page(span))).all()
            if not page:
                return
            for run in page:
                runs.add(_run(run))
            last = page[-1].created_at, page[-1].run_id
            async for event in _events(connection, and_(span, _place(last) >= _PLACE)):
                events.add(event)


def _span(tenant: str, wanted: Wanted, after: Place | None) -> "ColumnElement[bool]":
    """Return which runs of a tenant are still wanted."""
    conditions = [RUNS.c.tenant == tenant]
    if wanted.since_ms is not None:
        conditions.append(RUNS.c.created_at >= wanted.since_ms)
    if wanted.until_ms is not None:
        conditions.append(RUNS.c.created_at < wanted.until_ms)
    if after is not None:
        conditions.append(_place(after) < _PLACE)
    return and_(*conditions)


def _page(span: "ColumnElement[bool]") -> "Select[Any]":
    """Select the next runs, in the order of an index."""
    columns = (RUNS.c[name] for name in _READ)
    return select(*columns).where(span).order_by(RUNS.c.created_at, RUNS.c.run_id).limit(PAGE_RUNS)


_READ: Final = (
    "run_id", "tenant", "pipeline", "revision", "status", "created_at", "started_at", "finished_at", "seq", "header",
    "ending", "error_type",
)  # fmt: skip
_PLACE: Final = tuple_(RUNS.c.created_at, RUNS.c.run_id)


def _place(place: Place) -> Any:
    return tuple_(literal(place[0]), literal(place[1]))


async def _events(connection: AsyncConnection, of_runs: "ColumnElement[bool]") -> AsyncIterator[dict[str, Any]]:
    """Yield the events of some runs, run after run, as they happened."""
    columns = (EVENTS.c[name] for name in ("run_id", "seq", "type", "at", "partition", "offset", "body"))
    wanted = (
        select(*columns, RUNS.c.tenant)
        .join(RUNS, RUNS.c.run_id == EVENTS.c.run_id)
        .where(of_runs)
        .order_by(RUNS.c.created_at, RUNS.c.run_id, EVENTS.c.seq)
    )
    async for row in await connection.stream(wanted, execution_options={"yield_per": _FETCHED_ROWS}):
        event = row._asdict()
        event["event"] = event.pop("body").decode()
        yield event


def _run(row: "Row[Any]") -> dict[str, Any]:
    """Return a run as its columns; what the record has as one JSON is taken apart."""
    run = row._asdict()
    header, ending = (from_json(run.pop(name) or b"{}") for name in ("header", "ending"))
    return run | {
        "last_seq": run.pop("seq"),
        "labels": list(header.get("labels", {}).items()),
        "inputs": _text(header.get("inputs")),
        "outputs": _text(ending.get("outputs")),
        "error": _text(ending.get("error")),
    }


def _text(value: Any) -> str | None:
    if value is None:
        return None
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer beyond 64 bits
        return to_json(value).decode()


class ParquetFile:
    """A file that has its name once it is whole; rows are held until they make a row group."""

    def __init__(self, path: Path, columns: pa.Schema) -> None:
        self._path = path
        self._unfinished = path.with_name(f".{path.name}.unfinished")
        self._columns = columns
        self._waiting: list[dict[str, Any]] = []
        self._bytes = 0
        self.rows = 0

    def __enter__(self) -> Self:
        if self._path.exists():
            raise FileExistsError(f"{self._path} is there already")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self._unfinished, self._columns, compression="zstd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        if kind is None:
            self._unfinished.replace(self._path)
        else:
            self._unfinished.unlink()

    def add(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self._waiting.append(row)
        self._bytes += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(self._waiting) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self.finish()

    def finish(self) -> None:
        """Write what is held as a row group."""
        if self._waiting:
            self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=self._columns))
            self.rows += len(self._waiting)
            self._waiting, self._bytes = [], 0
