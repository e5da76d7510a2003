"""A query in a DuckDB of its own. Blocking, and not to be interrupted: runs in a process that can be killed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import duckdb
import orjson

from anabranch.services.steps.sql.exact import converter, quoted, text_type
from anabranch.shared.contracts.limits import MAX_NESTING
from anabranch.shared.contracts.nesting import is_too_deep
from anabranch.shared.runtime.killable_child import Refused

if TYPE_CHECKING:  # the process has no use for the rest of it
    from anabranch.services.steps.sql.sources import Format

# Of `ErrorType`, whose module takes as long to import as DuckDB does.
_PAYLOAD_TOO_LARGE: Final = "PayloadTooLarge"
_OUTPUT_INVALID: Final = "OutputInvalid"
_BATCH_ROWS: Final = 32  # each may be as large as an output: more at once would be memory for nothing
_SHOWN_CHARS: Final = 100  # of a type that is none
_MAX_ROW_NESTING: Final = MAX_NESTING - 2  # a row lies in the list of rows, and that in the output

_READERS: Final[dict["Format", str]] = {
    "csv": "read_csv(?, sample_size = -1)",
    "json": "read_json(?, sample_size = -1, maximum_object_size = 67108864)",
    "parquet": "read_parquet(?)",
}

# From here on the query is a stranger's: no files, no network, no extensions, and no way back.
_CLOSE_THE_DOORS: Final = (
    "SET TimeZone = 'UTC'",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET allow_persistent_secrets = false",
    "SET python_enable_replacements = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a query may use."""

    memory_bytes: int
    spill_bytes: int
    threads: int
    max_rows: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that is a table of the query."""

    name: str
    path: str
    format: "Format"
    columns: dict[str, str] | None = None
    is_empty: bool = False


_prepared: Final[list[duckdb.DuckDBPyConnection]] = []  # the DuckDB of the next query


def prepare() -> None:
    """Open the DuckDB of the next query: that takes ten times as long as a small query itself.

    It gets its threads with its query. DuckDB would begin with one for each core of the machine, whose stacks and
    buffers are 8 MiB each of the process's memory: with 64 cores more than all of it.
    """
    if not _prepared:
        _prepared.append(duckdb.connect(":memory:", config={"threads": 1}))


def answer(given: dict[str, Any]) -> bytes:
    """Return columns and rows as JSON. What DuckDB refuses is terminal: the next attempt would be, too."""
    sources = [SourceFile(**source) for source in given["sources"]]
    limits = Limits(**given["limits"])
    with _prepared.pop() as connection:
        try:
            _load_all(connection, sources, limits, given["directory"])
            return _table(connection, given["query"], limits)
        except duckdb.OutOfMemoryException as error:
            raise MemoryError from error
        except duckdb.Error as error:
            raise Refused(_shown(error, sources), "SqlError", {"kind": type(error).__name__}) from error


def _shown(error: duckdb.Error, sources: list[SourceFile]) -> str:
    """Return what DuckDB says, without what it says of this machine: the places of files, the stack of its own bugs."""
    text = str(error).partition("\n\nStack Trace:")[0]
    for source in sources:
        text = text.replace(source.path, f"source {source.name}")
    return text


def _load_all(connection: duckdb.DuckDBPyConnection, sources: list[SourceFile], limits: Limits, directory: str) -> None:
    """Load the sources, then close the doors."""
    connection.execute("SET temp_directory = ?", [f"{directory}/spill"])
    connection.execute("SET max_temp_directory_size = ?", [f"{limits.spill_bytes}B"])
    connection.execute("SET memory_limit = ?", [f"{limits.memory_bytes}B"])
    connection.execute("SET threads = ?", [limits.threads])
    for source in sources:
        _load(connection, source)
    for statement in _CLOSE_THE_DOORS:
        connection.execute(statement)
    for source in sources:
        _declare(connection, source)


def _table(connection: duckdb.DuckDBPyConnection, text: str, limits: Limits) -> bytes:
    """Run the query and take its rows batch by batch, until they are all there or too many or too large."""
    result, columns = _asked(connection, text)
    names = _unique([name for name, _ in columns])
    makers = [converter(kind) for _, kind in columns]
    head = orjson.dumps([{"name": name, "type": str(kind)} for name, (_, kind) in zip(names, columns, strict=True)])
    rows: list[bytes] = []
    size = len(head)
    while batch := result.fetchmany(_BATCH_ROWS):
        for row in batch:
            rows.append(_encoded(names, makers, row))
            size += len(rows[-1]) + 1
            _check(len(rows), size, limits)
    return b'{"columns":%b,"rows":[%b],"row_count":%d}' % (head, b",".join(rows), len(rows))


Columns = list[tuple[str, Any]]
"""Names and types of what a query answers."""


def _asked(connection: duckdb.DuckDBPyConnection, text: str) -> tuple[duckdb.DuckDBPyConnection, Columns]:
    """Run the statements of a query; return the answer of the last, with its columns as the query has them."""
    statements = connection.extract_statements(text)
    if not statements:
        raise Refused("the query is empty", "SqlError")
    for statement in statements[:-1]:
        connection.execute(statement)
    last = statements[-1]
    if not _is_select(last):
        columns = _columns(connection.execute(last))
        for name, kind in columns:
            if text_type(kind) != str(kind):
                raise Refused(f"column {name} is {kind}, which only a SELECT returns: cast it to VARCHAR", "SqlError")
        return connection, columns
    inner = _without_end(last.query)
    columns = _columns(connection.execute(f"SELECT * FROM ({inner}\n) LIMIT 0"))  # noqa: S608  behind closed doors
    if all(text_type(kind) == str(kind) for _, kind in columns):
        connection.execute(last)
        return connection, _columns(connection)
    given = ", ".join(f"c{number}" for number in range(len(columns)))
    cast = ", ".join(f"CAST(c{number} AS {text_type(kind)})" for number, (_, kind) in enumerate(columns))
    connection.execute(f"SELECT {cast} FROM ({inner}\n) AS answer({given})")  # noqa: S608  behind closed doors
    return connection, columns


_SELECTS: Final = (duckdb.StatementType.SELECT, duckdb.StatementType.MULTI)


def _is_select(statement: duckdb.Statement) -> bool:
    try:
        return statement.type in _SELECTS
    except ValueError:  # a type that the Python package does not know yet
        return False


def _columns(result: duckdb.DuckDBPyConnection) -> Columns:
    if not result.description:
        raise Refused("the query returns nothing: end it with a SELECT", "SqlError")
    return [(name, kind) for name, kind, *_ in result.description]


def _without_end(text: str) -> str:
    """Return a statement without the semicolons and comments behind it."""
    raw, end = text.encode(), None
    for offset, kind in reversed(duckdb.tokenize(text)):
        if raw[offset : offset + 1] == b";":
            end = offset
        elif kind is not duckdb.token_type.comment:
            break
    return raw[:end].decode()


def _unique(names: list[str]) -> list[str]:
    """Return the names of columns, those that come again with a number, as DuckDB does: `a`, `a_1`."""
    taken: set[str] = set()
    found = []
    for name in names:
        unique, number = name, 1
        while unique in taken or (unique != name and unique in names):
            unique, number = f"{name}_{number}", number + 1
        taken.add(unique)
        found.append(unique)
    return found


def _check(rows: int, size: int, limits: Limits) -> None:
    if rows > limits.max_rows:
        raise Refused(
            f"the query returns more than {limits.max_rows} rows: aggregate, LIMIT, or raise max_rows",
            _PAYLOAD_TOO_LARGE,
        )
    if size > limits.max_bytes:
        raise Refused(
            f"the query returns more than a step may output ({limits.max_bytes} bytes): aggregate, LIMIT, or take "
            "fewer columns",
            _PAYLOAD_TOO_LARGE,
        )


def _encoded(names: list[str], makers: list[Callable[[Any], Any]], row: tuple[Any, ...]) -> bytes:
    values = {name: maker(value) for name, maker, value in zip(names, makers, row, strict=True)}
    if is_too_deep(values, _MAX_ROW_NESTING):
        raise Refused(f"a row of the answer is nested more than {_MAX_ROW_NESTING} levels deep", _OUTPUT_INVALID)
    return orjson.dumps(values)


def _load(connection: duckdb.DuckDBPyConnection, source: SourceFile) -> None:
    """Read a source into a table of its name, or beside it if its columns are still to be declared."""
    if source.is_empty and source.columns is None:
        raise Refused(f"source {source.name} has no rows, so nothing tells its columns: say `columns`", "SourceEmpty")
    if not source.is_empty:
        table = quoted(source.name if source.columns is None else _beside(source))
        connection.execute(f"CREATE TABLE {table} AS SELECT * FROM {_READERS[source.format]}", [source.path])  # noqa: S608


def _declare(connection: duckdb.DuckDBPyConnection, source: SourceFile) -> None:
    """Give a table the columns that were asked for. Their types are a stranger's text: only behind closed doors."""
    if source.columns is None:
        return
    columns = ", ".join(
        f"{quoted(column)} {_type_of(connection, kind, f'column {column} of source {source.name}')}"
        for column, kind in source.columns.items()
    )
    connection.execute(f"CREATE TABLE {quoted(source.name)} ({columns})")
    if not source.is_empty:
        beside = quoted(_beside(source))
        connection.execute(f"INSERT INTO {quoted(source.name)} BY NAME SELECT * FROM {beside}")  # noqa: S608
        connection.execute(f"DROP TABLE {beside}")


def _type_of(connection: duckdb.DuckDBPyConnection, text: str, where: str) -> str:
    """Return a type as DuckDB writes it: no more than a type gets into a statement, no default, no second statement."""
    try:
        connection.extract_statements(f"SELECT CAST(NULL AS {text})")  # `dtype` takes more, as of a column
        return str(connection.dtype(text))
    except duckdb.CatalogException:  # it says which type there is not, and which it could be
        raise
    except duckdb.Error as error:
        raise Refused(f"{where} is given as {text[:_SHOWN_CHARS]!r}, which is no type", "SqlError") from error


def _beside(source: SourceFile) -> str:
    return f"{source.name} as read"
