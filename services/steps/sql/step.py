"""One query per attempt, in a DuckDB of its own that can reach nothing but its sources.

Sources are loaded first, with our own statements; then external access is switched off and the configuration locked;
only then the query runs. All of it in a process that holds no more than its memory and is killed with its attempt.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import aiohttp
import orjson
from pydantic import BaseModel, ConfigDict, Field

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.fetch import open_session, refusal, requested
from anabranch.services.steps.sql.settings import SqlSettings, bytes_of
from anabranch.services.steps.sql.sources import Source, format_of, written
from anabranch.services.steps.step_type import step_type
from anabranch.shared.contracts.errors import ErrorType, TerminalError
from anabranch.shared.contracts.limits import MAX_STEP_OUTPUT_BYTES, MIB
from anabranch.shared.contracts.urls import shown_url
from anabranch.shared.runtime.killable import KillableProcesses, ProcessLimits, killable

_QUERY: Final = "anabranch.services.steps.sql.query:answer"
_CONCURRENCY: Final = 4  # queries at once: each takes its memory limit and its threads
_CHUNK_BYTES: Final = 256 * 1024
_OF_THE_PROCESS_BYTES: Final = 128 * MIB  # Python and DuckDB themselves, and what DuckDB holds without counting it
_OF_DUCKDB: Final = 0.8  # of the rest, what it is told: it is a little late to notice
_FRAME_BYTES: Final = 1024  # the output's own names around columns and rows


class Question(BaseModel):
    """A query over named sources."""

    model_config = ConfigDict(extra="forbid")

    sources: dict[str, Source] = Field({}, description="The tables of the query, by name.")
    query: str
    max_rows: int = Field(10_000, ge=1, le=100_000, description="More rows than this are an error.")


class Column(BaseModel):
    """A column of the answer and its SQL type."""

    name: str
    type: str


class Table(BaseModel):
    """The rows of the answer, each by column name."""

    columns: list[Column]
    rows: list[dict[str, Any]]
    row_count: int


@dataclass(frozen=True, slots=True)
class Tools:
    """What all attempts share."""

    session: aiohttp.ClientSession
    processes: KillableProcesses
    settings: SqlSettings


@asynccontextmanager
async def open_tools() -> AsyncIterator[Tools]:
    """Open what all attempts share."""
    settings = SqlSettings()
    limits = ProcessLimits(bytes_of(settings.sql_memory_limit))
    async with (
        open_session() as session,
        killable(_QUERY, processes=settings.concurrency or _CONCURRENCY, limits=limits) as processes,
    ):
        yield Tools(session, processes, settings)


@step_type("sql", description="Query CSV, Parquet and JSON with SQL.", concurrency=_CONCURRENCY, lifespan=open_tools)
async def sql(given: Question, context: StepContext) -> Table:
    """Load the sources, close the doors, run the query."""
    tools: Tools = context.resource
    with TemporaryDirectory(prefix="anabranch-sql-") as directory:
        places = [Path(directory, str(number)) for number in range(len(given.sources))]
        files = [
            await _file(name, source, place, tools)
            for place, (name, source) in zip(places, given.sources.items(), strict=True)
        ]
        answer = await tools.processes.run(_request(given, files, directory, tools.settings))
    return Table.model_validate(orjson.loads(answer))


def _request(given: Question, files: list[dict[str, Any]], directory: str, settings: SqlSettings) -> bytes:
    """Return what the process is asked; its limits follow from its memory."""
    limits = {
        "memory_bytes": int((bytes_of(settings.sql_memory_limit) - _OF_THE_PROCESS_BYTES) * _OF_DUCKDB),
        "spill_bytes": settings.sql_max_spill_bytes,
        "threads": settings.sql_threads,
        "max_rows": given.max_rows,
        "max_bytes": MAX_STEP_OUTPUT_BYTES - _FRAME_BYTES,
    }
    return orjson.dumps({"query": given.query, "sources": files, "directory": directory, "limits": limits})


async def _file(name: str, source: Source, place: Path, tools: Tools) -> dict[str, Any]:
    """Return the file that holds a source, as the query's process is told of it."""
    if source.url is not None:
        path = await _fetched(source.url, place, tools)
    elif source.path is not None:
        path = _below(tools.settings.sql_directory, source.path)
    else:
        path = written(source, place)
    return {
        "name": name, "path": str(path), "format": format_of(source), "columns": source.columns,
        "is_empty": source.rows == [],
    }  # fmt: skip


async def _fetched(url: str, path: Path, tools: Tools) -> Path:
    async with requested(tools.session, "GET", url) as response:
        if response.status != 200:
            raise await refusal("GET", url, response)
        with path.open("wb") as file:
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                file.write(chunk)
                await asyncio.sleep(0)  # a body that is always there, a bomb, must not keep the loop
                if file.tell() > tools.settings.sql_max_source_bytes:
                    raise TerminalError(
                        f"{shown_url(url)} is larger than {tools.settings.sql_max_source_bytes} bytes",
                        error_type=ErrorType.PAYLOAD_TOO_LARGE,
                    )
    return path


def _below(directory: Path | None, relative: str) -> Path:
    if directory is None:
        raise TerminalError(
            "`path` sources need ANABRANCH_SQL_DIRECTORY on the step service", error_type="SourceRefused"
        )
    try:
        path = (directory / relative).resolve()
        is_file = path.is_file()
    except (OSError, ValueError) as error:  # a NUL, or longer than a name may be
        raise TerminalError(f"{relative[:200]!r} is no path", error_type="SourceRefused") from error
    if not path.is_relative_to(directory.resolve()):
        raise TerminalError(f"{relative} is outside the directory of sources", error_type="SourceRefused")
    if not is_file:
        raise TerminalError(f"there is no source {relative}", error_type="SourceMissing")
    return path
