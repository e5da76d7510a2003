"""Odd queries and odd sources: each has a definite end, and none disturbs the neighbour that is asked beside it."""

import asyncio
import gzip
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.sql import query
from anabranch.services.steps.sql.settings import SqlSettings, bytes_of
from anabranch.services.steps.sql.step import Table, open_tools, sql
from anabranch.shared.contracts.errors import TerminalError
from anabranch.shared.contracts.limits import MAX_STEP_OUTPUT_BYTES
from anabranch.shared.runtime.killable import ProcessEnded

HANG_S = 120.0  # generous: the machine may be busy

Ask = Callable[..., "asyncio.Task[Table]"]

NEVER_ENDS = {
    "a function that cannot be interrupted": "SELECT levenshtein(repeat('a', 200000), repeat('b', 200000))",
    "a plan that takes minutes": " UNION ALL ".join(["SELECT 1"] * 20_000),
    "a join without end": "SELECT count(*) FROM range(1000000000) a, range(1000000000) b WHERE a.range + b.range = -1",
    "a recursion without end": "WITH RECURSIVE t AS (SELECT 1 a UNION ALL SELECT a FROM t) SELECT count(*) FROM t",
}

REFUSED = {
    "rows of 900 KB each": ("SELECT repeat('x', 900000) FROM range(10000)", "MemoryExceeded"),
    "rows of 9 KB each": ("SELECT repeat('x', 9000) FROM range(1000000000)", "PayloadTooLarge"),
    "one large text": ("SELECT repeat('x', 1048576)", "PayloadTooLarge"),
    "a text that grows when escaped": ("SELECT repeat(chr(1), 200000)", "PayloadTooLarge"),
    "many columns": ("SELECT " + ", ".join(f"repeat('x', 9000) AS c{n}" for n in range(200)), "PayloadTooLarge"),
    "rows without end": ("SELECT * FROM range(1000000000000)", "PayloadTooLarge"),
    "a list of everything": ("SELECT list(range) FROM range(200000000)", "MemoryExceeded"),
    "a text of everything": ("SELECT string_agg(repeat('x', 1000)) FROM range(5000000)", "MemoryExceeded"),
    "lists in lists": ("SELECT " + "[" * 100 + "1" + "]" * 100, "OutputInvalid"),
    "nothing": ("", "SqlError"),
    "a comment": ("-- nothing", "SqlError"),
    "no SQL": ("\0\N{PILE OF POO}", "SqlError"),
    "the variables of the process": ("SELECT * FROM given", "SqlError"),
    "a setting": ("SET threads = 64", "SqlError"),
    "a pragma": ("PRAGMA memory_limit = '64GB'", "SqlError"),
    "an export": ("EXPORT DATABASE '/tmp/out'", "SqlError"),
    "a glob": ("SELECT * FROM glob('/*')", "SqlError"),
}

SOURCES: dict[str, tuple[dict[str, Any], str | None]] = {
    "no columns": ({"csv": ""}, None),
    "NULs": ({"csv": "a\n\0\n"}, None),
    "a byte order mark": ({"csv": "\ufeffa\n1\n"}, None),
    "ragged lines": ({"csv": "a,b\n1\n1,2,3\n" * 50}, None),
    "a quote that is not closed": ({"csv": 'a\n"1\n'}, None),
    "a line of 900 KB": ({"csv": "a\n" + "x" * 900_000}, None),
    "1,000 columns": ({"csv": ",".join(f"c{n}" for n in range(1_000)) + "\n"}, None),
    "a lone surrogate in CSV": ({"csv": "a\n\ud800\n"}, "SourceRefused"),
    "a lone surrogate in rows": ({"rows": [{"a": "\ud800"}]}, "SourceRefused"),
    "no rows": ({"rows": []}, "SourceEmpty"),
    "rows of other types": ({"rows": [{"a": 1}, {"a": "x"}, {"a": [1]}, {"a": None}, {}]}, None),
    "rows nested deeply": ({"rows": [{"a": eval("[" * 60 + "]" * 60)}]}, None),
    "empty Parquet": ({"path": "empty.parquet"}, "SqlError"),
    "broken Parquet": ({"path": "broken.parquet"}, "SqlError"),
    "Parquet that is CSV": ({"path": "csv.parquet"}, "SqlError"),
    "JSON that is none": ({"path": "broken.json"}, "SqlError"),
    "JSON of a huge number": ({"path": "huge.json"}, None),
    "compressed": ({"path": "small.csv.gz", "format": "csv"}, None),
    "a bomb": ({"path": "bomb.json.gz", "format": "json"}, "MemoryExceeded"),
    "what is not compressed": ({"path": "plain.csv.gz", "format": "csv"}, "SqlError"),
    "a NUL in its path": ({"path": "a\0.csv"}, "SourceRefused"),
    "a directory": ({"path": "directory.csv"}, "SourceMissing"),
    "a name too long": ({"path": "x" * 5000 + ".csv"}, "SourceRefused"),
    "a device": ({"path": "/dev/zero", "format": "csv"}, "SourceRefused"),
    "a format unknown": ({"path": "plain.xlsx"}, "SourceRefused"),
    "columns without a type": ({"rows": [], "columns": {"a": "NOTYPE"}}, "SqlError"),
    "columns that it has not": ({"csv": "a\n1\n", "columns": {"b": "INTEGER"}}, "SqlError"),
}


@asynccontextmanager
async def a_service() -> AsyncIterator[Ask]:
    """Provide the call of `sql` with what all attempts share, as a worker has it."""
    async with open_tools() as tools:
        context = StepContext(
            run_id="r", step="s", attempt=1, tenant="t", deadline=0, clock=lambda: 0, log=structlog.get_logger(),
            resource=tools,
        )  # fmt: skip

        def ask(query: str, **given: Any) -> "asyncio.Task[Table]":
            return asyncio.create_task(sql.handler(sql.input_model(query=query, **given), context))

        async with asyncio.timeout(HANG_S):
            yield ask


async def neighbour(ask: Ask) -> None:
    """Ask for something small, which is answered whatever goes on beside it."""
    assert (await ask("SELECT 42 AS a")).rows == [{"a": 42}]


def children() -> list[psutil.Process]:
    """Return the processes of queries; those that other tests left are not ours to judge."""
    return [child for child in psutil.Process().children(recursive=True) if _runs_queries(child)]


def _runs_queries(process: psutil.Process) -> bool:
    try:
        return "killable_child" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # it has ended meanwhile
        return False


def directory_of(path: Path) -> Path:
    (path / "empty.parquet").touch()
    (path / "broken.parquet").write_bytes(b"PAR1" + b"\xff" * 100 + b"PAR1")
    (path / "csv.parquet").write_text("a\n1\n")
    (path / "broken.json").write_text('{"a": ')
    (path / "huge.json").write_text('[{"a": ' + "9" * 300 + "}]")
    (path / "plain.csv.gz").write_text("a\n1\n")
    (path / "plain.xlsx").touch()
    (path / "directory.csv").mkdir()
    (path / "small.csv.gz").write_bytes(gzip.compress(b"a\n1\n"))
    with gzip.open(path / "bomb.json.gz", "wb", compresslevel=1) as bomb:
        bomb.write(b"[" + b"[" * 1_000_000)
        for _ in range(600):
            bomb.write(b"1," * 500_000)
    return path


@pytest.mark.parametrize("query", NEVER_ENDS.values(), ids=NEVER_ENDS)
async def test_sql_that_never_ends_is_killed_with_its_attempt(query: str) -> None:
    """A cancelled attempt ends although its query cannot be interrupted; a neighbour is answered all the while."""
    async with a_service() as ask:
        await neighbour(ask)
        endless = ask(query)
        await neighbour(ask)
        assert not endless.done()
        begun = asyncio.get_running_loop().time()
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        assert asyncio.get_running_loop().time() - begun < 60
        await neighbour(ask)
    assert children() == []


async def test_sql_refuses_what_is_too_much_in_time() -> None:
    """Each odd query fails for good with the type of its error, beside a neighbour; no process outgrows its limit."""
    worst = 0
    async with a_service() as ask:
        for name, (query, error_type) in REFUSED.items():
            asked = ask(query, max_rows=100_000)
            await neighbour(ask)
            while not asked.done():
                worst = max([worst, *(rss_of(child) for child in children())])
                await asyncio.wait([asked], timeout=0.05)
            error = asked.exception()
            assert isinstance(error, TerminalError), (name, error)
            assert error.error_type == error_type, (name, error)
            assert len(str(error)) < 2000, name
    assert worst <= bytes_of(SqlSettings().sql_memory_limit)


def rss_of(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


async def test_sql_reads_or_refuses_odd_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each odd source is read or refused for good, beside a neighbour."""
    monkeypatch.setenv("ANABRANCH_SQL_DIRECTORY", str(directory_of(tmp_path)))
    async with a_service() as ask:
        for name, (source, error_type) in SOURCES.items():
            asked = ask("SELECT count(*) AS n FROM t", sources={"t": source})
            await neighbour(ask)
            await asyncio.wait([asked])
            error = asked.exception()
            assert getattr(error, "error_type", None) == error_type, (name, error)
            if error is None:
                assert asked.result().row_count == 1, name
            else:
                assert isinstance(error, TerminalError), name
                assert "/tmp/" not in str(error), (name, error)


async def test_sql_process_that_is_killed_fails_its_attempt_alone() -> None:
    """An attempt whose process is killed says by what signal, and the next one is answered."""
    async with a_service() as ask:
        await neighbour(ask)
        asked = ask(NEVER_ENDS["a join without end"])
        await neighbour(ask)
        for child in children():
            child.send_signal(signal.SIGSEGV)
        with pytest.raises(ProcessEnded, match=r"signal 11 \(SIGSEGV\)"):
            await asked
        await neighbour(ask)


async def test_sql_processes_see_no_secrets_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a query's process has nothing of the service's settings."""
    monkeypatch.setenv("REDIS_URL", "redis://:secret@h")
    async with a_service() as ask:
        await neighbour(ask)
        assert [name for child in children() for name in child.environ() if "REDIS" in name] == []


async def test_sql_output_is_within_the_limit_when_it_is_full() -> None:
    """The largest answer that is let through is one that a step may output."""
    async with a_service() as ask:
        table = await ask("SELECT repeat('x', 1000) AS a FROM range(1030)")
    assert MAX_STEP_OUTPUT_BYTES * 0.98 < len(table.model_dump_json()) <= MAX_STEP_OUTPUT_BYTES


def test_sql_memory_is_read_as_duckdb_reads_it() -> None:
    """Decimal and binary units are told apart, and what is no size is refused."""
    assert [bytes_of(size) for size in ("512MB", "1.5 GiB", "200mb")] == [512_000_000, 3 * 2**29, 200_000_000]
    for size in ("", "1", "x MB", "1 XB", "12MB"):
        with pytest.raises(ValueError, match=r"size|needs at least"):
            SqlSettings(sql_memory_limit=size)


def test_processes_end_with_a_service_that_is_killed(tmp_path: Path) -> None:
    """A query in the middle of its work leaves no process behind when its service is killed."""
    import subprocess
    import sys

    script = (
        "import asyncio\nfrom tests.unit.steps.test_sql_zoo import *\n"
        "async def main():\n async with a_service() as ask:\n"
        "  asked = ask(NEVER_ENDS['a join without end'])\n  await neighbour(ask)\n"
        "  print(*[c.pid for c in children()], flush=True)\n  await asked\nasyncio.run(main())\n"
    )
    service = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        pids = [int(pid) for pid in service.stdout.readline().split()]
        found = [psutil.Process(pid) for pid in pids]
    finally:
        service.kill()
        service.communicate()
    assert found
    _, alive = psutil.wait_procs(found, timeout=60)
    assert alive == []


def test_a_query_waiting_for_its_turn_has_no_thread_for_each_core() -> None:
    """The process of a query has its memory for the query, however many cores the machine has."""
    query.prepare()
    assert query._prepared[-1].sql("SELECT current_setting('threads')").fetchall() == [(1,)]
