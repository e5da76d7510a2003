"""A query in a DuckDB of its own. Blocking: runs in a thread."""

import base64
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from types import NoneType
from typing import Any, Final

import duckdb
from pydantic import BaseModel

from anabranch.services.steps.sql.sources import Format
from anabranch.shared.contracts.errors import ErrorType, TerminalError
from anabranch.shared.contracts.limits import MAX_INTEGER

_READERS: Final[dict[Format, str]] = {
    "csv": "read_csv(?, sample_size = -1)",
    "json": "read_json(?, sample_size = -1, maximum_object_size = 67108864)",
    "parquet": "read_parquet(?)",
}

# From here on the query is a stranger's: no files, no network, no extensions, and no way back.
_CLOSE_THE_DOORS: Final = (
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET allow_persistent_secrets = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


class Column(BaseModel):
    """A column of the answer and its SQL type."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What a query may use."""

    memory: str
    threads: int
    max_rows: int


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that is a table of the query."""

    name: str
    path: Path
    format: Format
    columns: dict[str, str] | None = None
    is_empty: bool = False


class Query:
    """One query; may be interrupted from another thread."""

    def __init__(self, sources: list[SourceFile], text: str, limits: Limits, directory: Path) -> None:
        self._sources = sources
        self._text = text
        self._limits = limits
        self._directory = directory
        self._connection = duckdb.connect(":memory:")

    def run(self) -> tuple[list[Column], list[dict[str, Any]]]:
        """Return columns and rows as JSON values. What DuckDB refuses is terminal: the next attempt would be, too."""
        with self._connection as connection:
            try:
                return self._run(connection)
            except duckdb.InterruptException:
                raise
            except duckdb.Error as error:
                raise TerminalError(
                    str(error), error_type="SqlError", details={"kind": type(error).__name__}
                ) from error

    def interrupt(self) -> None:
        """Have a query that is running end soon."""
        self._connection.interrupt()

    def _run(self, connection: duckdb.DuckDBPyConnection) -> tuple[list[Column], list[dict[str, Any]]]:
        connection.execute("SET temp_directory = ?", [str(self._directory / "spill")])
        connection.execute("SET memory_limit = ?", [self._limits.memory])
        connection.execute("SET threads = ?", [self._limits.threads])
        for source in self._sources:
            _load(connection, source)
        for statement in _CLOSE_THE_DOORS:
            connection.execute(statement)
        for source in self._sources:
            _declare(connection, source)
        answer = connection.execute(self._text)
        rows = answer.fetchmany(self._limits.max_rows + 1)
        if len(rows) > self._limits.max_rows:
            raise TerminalError(
                f"the query returns more than {self._limits.max_rows} rows: aggregate, LIMIT, or raise max_rows",
                error_type=ErrorType.PAYLOAD_TOO_LARGE,
            )
        columns = [Column(name=name, type=str(kind)) for name, kind, *_ in answer.description or []]
        return columns, [{c.name: _json(value) for c, value in zip(columns, row, strict=True)} for row in rows]


def _load(connection: duckdb.DuckDBPyConnection, source: SourceFile) -> None:
    """Read a source into a table of its name, or beside it if its columns are still to be declared."""
    if source.is_empty and source.columns is None:
        raise TerminalError(
            f"source {source.name} has no rows, so nothing tells its columns: say `columns`", error_type="SourceEmpty"
        )
    if not source.is_empty:
        table = _quoted(source.name if source.columns is None else _beside(source))
        connection.execute(f"CREATE TABLE {table} AS SELECT * FROM {_READERS[source.format]}", [str(source.path)])  # noqa: S608


def _declare(connection: duckdb.DuckDBPyConnection, source: SourceFile) -> None:
    """Give a table the columns that were asked for. Their types are a stranger's text: only behind closed doors."""
    if source.columns is None:
        return
    columns = ", ".join(f"{_quoted(column)} {kind}" for column, kind in source.columns.items())
    connection.execute(f"CREATE TABLE {_quoted(source.name)} ({columns})")
    if not source.is_empty:
        beside = _quoted(_beside(source))
        connection.execute(f"INSERT INTO {_quoted(source.name)} BY NAME SELECT * FROM {beside}")  # noqa: S608
        connection.execute(f"DROP TABLE {beside}")


def _beside(source: SourceFile) -> str:
    return f"{source.name} as read"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


_CONVERSIONS: Final[tuple[tuple[Any, Callable[[Any], Any]], ...]] = (
    (NoneType | bool | str, lambda value: value),
    (int, lambda value: value if abs(value) <= MAX_INTEGER else float(value)),
    (float, lambda value: value if math.isfinite(value) else None),
    (Decimal, lambda value: _json(int(value)) if value == value.to_integral_value() else float(value)),
    (datetime | date | time, lambda value: value.isoformat()),
    (timedelta, lambda value: value.total_seconds()),
    (bytes, lambda value: base64.b64encode(value).decode()),
    (list | tuple, lambda value: [_json(item) for item in value]),
    (dict, lambda value: {str(key): _json(item) for key, item in value.items()}),
)


def _json(value: Any) -> Any:
    """Return a value of DuckDB's as JSON has it; what JSON does not know is text."""
    for kinds, convert in _CONVERSIONS:
        if isinstance(value, kinds):
            return convert(value)
    return str(value)
