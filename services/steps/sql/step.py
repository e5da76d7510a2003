"""One query per attempt, in a DuckDB of its own that can reach nothing but its sources.

Sources are loaded first, with our own statements; then external access is switched off and the configuration locked;
only then the query runs.
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import aiohttp
from pydantic import BaseModel, ConfigDict, Field

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.fetch import open_session, refusal, unreachable
from anabranch.services.steps.sql.query import Column, Limits, Query, SourceFile
from anabranch.services.steps.sql.settings import SqlSettings
from anabranch.services.steps.sql.sources import Source, format_of, written
from anabranch.services.steps.step_type import step_type
from anabranch.shared.contracts.errors import ErrorType, TerminalError

_CONCURRENCY: Final = 4  # queries at once: each takes its memory limit and its threads
_CHUNK_BYTES: Final = 256 * 1024


class Question(BaseModel):
    """A query over named sources."""

    model_config = ConfigDict(extra="forbid")

    sources: dict[str, Source] = Field({}, description="The tables of the query, by name.")
    query: str
    max_rows: int = Field(10_000, ge=1, le=100_000, description="More rows than this are an error.")


class Table(BaseModel):
    """The rows of the answer, each by column name."""

    columns: list[Column]
    rows: list[dict[str, Any]]
    row_count: int


@dataclass(frozen=True, slots=True)
class Tools:
    """What all attempts share."""

    session: aiohttp.ClientSession
    threads: ThreadPoolExecutor
    settings: SqlSettings


@asynccontextmanager
async def open_tools() -> AsyncIterator[Tools]:
    """Open what all attempts share."""
    threads = ThreadPoolExecutor(_CONCURRENCY, thread_name_prefix="sql")
    async with open_session() as session:
        yield Tools(session, threads, SqlSettings())
    threads.shutdown(wait=False, cancel_futures=True)


@step_type("sql", description="Query CSV, Parquet and JSON with SQL.", concurrency=_CONCURRENCY, lifespan=open_tools)
async def sql(given: Question, context: StepContext) -> Table:
    """Load the sources, close the doors, run the query."""
    tools: Tools = context.resource
    settings = tools.settings
    with TemporaryDirectory(prefix="anabranch-sql-") as directory:
        places = [Path(directory, str(number)) for number in range(len(given.sources))]
        files = [
            await _file(name, source, place, tools)
            for place, (name, source) in zip(places, given.sources.items(), strict=True)
        ]
        limits = Limits(settings.sql_memory_limit, settings.sql_threads, given.max_rows)
        query = Query(files, given.query, limits, Path(directory))
        columns, rows = await _in_thread(query, tools.threads)
    return Table(columns=columns, rows=rows, row_count=len(rows))


async def _in_thread(query: Query, threads: ThreadPoolExecutor) -> tuple[list[Column], list[dict[str, Any]]]:
    """Run the query in a thread; a cancelled attempt interrupts it and waits for its end."""
    running = asyncio.get_running_loop().run_in_executor(threads, query.run)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        query.interrupt()
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()
        raise


async def _file(name: str, source: Source, place: Path, tools: Tools) -> SourceFile:
    """Return the file that holds a source."""
    if source.url is not None:
        path = await _fetched(source.url, place, tools)
    elif source.path is not None:
        path = _below(tools.settings.sql_directory, source.path)
    else:
        path = written(source, place)
    return SourceFile(name, path, format_of(source), source.columns, is_empty=source.rows == [])


async def _fetched(url: str, path: Path, tools: Tools) -> Path:
    try:
        async with tools.session.get(url) as response:
            if response.status != 200:
                start = await response.content.read(2000)
                raise refusal("GET", url, response.status, response.headers, start.decode(errors="replace"))
            with path.open("wb") as file:
                async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                    file.write(chunk)
                    if file.tell() > tools.settings.sql_max_source_bytes:
                        raise TerminalError(
                            f"{url} is larger than {tools.settings.sql_max_source_bytes} bytes",
                            error_type=ErrorType.PAYLOAD_TOO_LARGE,
                        )
    except (aiohttp.ClientError, OSError) as error:
        raise unreachable("GET", url, error) from error
    return path


def _below(directory: Path | None, relative: str) -> Path:
    if directory is None:
        raise TerminalError(
            "`path` sources need ANABRANCH_SQL_DIRECTORY on the step service", error_type="SourceRefused"
        )
    path = (directory / relative).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise TerminalError(f"{relative} is outside the directory of sources", error_type="SourceRefused")
    if not path.is_file():
        raise TerminalError(f"there is no source {relative}", error_type="SourceMissing")
    return path
