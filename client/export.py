"""What `anabranch export` does: an operator's command, which writes runs and what happened to them as Parquet files.

Runs are read in pages, each with its steps, attempts and events in one transaction: a run and what belongs to it are of
one moment, and nobody who writes is held up. What is in memory is a page of runs and a row group of each file.
"""

from collections.abc import Callable, Mapping, Sequence
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
from sqlalchemy import ColumnElement, Row, Select, Table, and_, func, literal, select, tuple_
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.client.commands import FAILED, OK, say
from anabranch.shared.record.database import open_database
from anabranch.shared.record.reading import LOST
from anabranch.shared.record.settings import RecordSettings
from anabranch.shared.record.tables import ATTEMPTS, EVENTS, RUNS, STEPS
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
STEP_COLUMNS: Final = pa.schema(
    [
        pa.field("run_id", _NAME, nullable=False),
        pa.field("tenant", _NAME, nullable=False),
        pa.field("step", _NAME, nullable=False),
        pa.field("uses", _NAME, nullable=False),
        pa.field("status", _NAME, nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("queued_at", _TIME),
        pa.field("started_at", _TIME),
        pa.field("finished_at", _TIME),
        pa.field("output", _JSON),
        pa.field("error", _JSON),
        pa.field("error_type", _NAME),
    ]
)
ATTEMPT_COLUMNS: Final = pa.schema(
    [
        pa.field("run_id", _NAME, nullable=False),
        pa.field("tenant", _NAME, nullable=False),
        pa.field("step", _NAME, nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("status", _NAME, nullable=False),
        pa.field("queued_at", _TIME),
        pa.field("started_at", _TIME),
        pa.field("finished_at", _TIME),
        pa.field("error", _JSON),
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


COLUMNS: Final = {"runs": RUN_COLUMNS, "steps": STEP_COLUMNS, "attempts": ATTEMPT_COLUMNS, "events": EVENT_COLUMNS}
"""What there is a file of."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which runs: those created in a span of time, ms, from the first to before the second; of one tenant or of all."""

    since_ms: int | None = None
    until_ms: int | None = None
    tenant: str | None = None


async def export(settings: RecordSettings, out: Path, wanted: Wanted) -> int:
    """Write a file of each table into a directory, and say how many rows they have."""
    if not settings.database_url:
        say("DATABASE_URL is not set: postgresql://user:password@host/name, or sqlite:///PATH")
        return FAILED
    database = open_database(settings.database_url, name="anabranch export", connections=1, timeout_s=_STATEMENT_S)
    try:
        rows = await write(database, out, wanted)
    except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        say(f"nothing was exported: {error}")
        return FAILED
    finally:
        await database.dispose()
    *some, last = (f"{count:,} {name}" for name, count in rows.items())
    say(f"{', '.join(some)} and {last} are in {out}")
    return OK


async def write(database: AsyncEngine, out: Path, wanted: Wanted) -> dict[str, int]:
    """Write the files, and return how many rows each has. There are either all or none."""
    with ExitStack() as open_:
        files = {
            name: open_.enter_context(ParquetFile(out / f"{name}.parquet", columns))
            for name, columns in COLUMNS.items()
        }
        async with database.connect() as connection:
            whose = [wanted.tenant] if wanted.tenant is not None else await tenants(connection)
        for tenant in whose:
            await _write_tenant(database, tenant, wanted, files)
        for file in files.values():
            file.finish()
    return {name: file.rows for name, file in files.items()}


async def _write_tenant(database: AsyncEngine, tenant: str, wanted: Wanted, files: "Mapping[str, ParquetFile]") -> None:
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
                files["runs"].add(_run(run))
            last = page[-1].created_at, page[-1].run_id
            for name, (statement, made) in _OF_RUNS.items():
                selected = statement.where(and_(span, _place(last) >= _PLACE))
                async for row in await connection.stream(selected, execution_options={"yield_per": _FETCHED_ROWS}):
                    files[name].add(made(row))


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


def _of_runs(table: Table, columns: Sequence["ColumnElement[Any]"], *order: str) -> "Select[Any]":
    """Select what belongs to runs, run after run, in the order of these columns."""
    return (
        select(*columns, RUNS.c.tenant)
        .join(RUNS, RUNS.c.run_id == table.c.run_id)
        .order_by(RUNS.c.created_at, RUNS.c.run_id, *(table.c[name] for name in order))
    )


def _step(row: "Row[Any]") -> dict[str, Any]:
    step = row._asdict()
    document = from_json(step.pop("document"))
    return step | {"output": _text(document.get("output")), "error": _text(document.get("error"))}


def _attempt(row: "Row[Any]") -> dict[str, Any]:
    """Return an attempt as its columns; one that never ended and is not the last was lost (as over HTTP)."""
    attempt = row._asdict()
    if attempt["attempt"] < attempt.pop("last") and attempt["finished_at"] is None:
        attempt["status"] = LOST
    error = attempt.pop("error")
    return attempt | {"error": None if error is None else error.decode()}


def _event(row: "Row[Any]") -> dict[str, Any]:
    event = row._asdict()
    event["event"] = event.pop("body").decode()
    return event


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


# What belongs to runs: how it is read, and what a row becomes.
_LAST: Final = func.max(ATTEMPTS.c.attempt).over(partition_by=(ATTEMPTS.c.run_id, ATTEMPTS.c.step)).label("last")
_OF_RUNS: Final[Mapping[str, tuple["Select[Any]", Callable[["Row[Any]"], dict[str, Any]]]]] = {
    "steps": (_of_runs(STEPS, [each for each in STEPS.c if each.name != "seq"], "step"), _step),
    "attempts": (
        _of_runs(ATTEMPTS, [*(each for each in ATTEMPTS.c if each.name != "seq"), _LAST], "step", "attempt"),
        _attempt,
    ),
    "events": (_of_runs(EVENTS, list(EVENTS.c), "seq"), _event),
}


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
