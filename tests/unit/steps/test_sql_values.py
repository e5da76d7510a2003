"""Each type of DuckDB as JSON: what is exact stays exact."""

from typing import Any

import pytest

from anabranch.shared.contracts.errors import TerminalError
from tests.unit.steps.test_sql_zoo import a_service
from tests.unit.steps.test_step_types import call, sql

HUGE = 170141183460469231731687303715884105727
VALUES: list[tuple[str, Any]] = [
    ("NULL", None),
    ("true", True),
    ("1::TINYINT", 1),
    ("1::SMALLINT", 1),
    ("1::INTEGER", 1),
    ("9223372036854775807", 9223372036854775807),
    ("-9223372036854775808", "-9223372036854775808"),
    ("255::UTINYINT", 255),
    ("1::USMALLINT", 1),
    ("1::UINTEGER", 1),
    ("9223372036854775808::UBIGINT", "9223372036854775808"),
    ("18446744073709551615::UBIGINT", "18446744073709551615"),
    ("1::UBIGINT", 1),
    ("7::HUGEINT", 7),
    (f"{HUGE}::HUGEINT", str(HUGE)),
    (f"-{HUGE}::HUGEINT", str(-HUGE)),
    ("340282366920938463463374607431768211455::UHUGEINT", "340282366920938463463374607431768211455"),
    ("sum(9223372036854775807) FROM range(3)", "27670116110564327421"),
    ("12345678901234567890123::BIGNUM", "12345678901234567890123"),
    ("1.5::FLOAT", 1.5),
    ("0.1::DOUBLE", 0.1),
    ("'nan'::DOUBLE", "NaN"),
    ("'inf'::DOUBLE", "Infinity"),
    ("'-inf'::FLOAT", "-Infinity"),
    ("1.50::DECIMAL(10,2)", 1.5),
    ("3::DECIMAL(38,0)", 3),
    ("2.00::DECIMAL(38,2)", 2),
    ("99999999999999999999999999999999999999::DECIMAL(38,0)", "9" * 38),
    ("'123456789012345678901234567890.12345678'::DECIMAL(38,8)", "123456789012345678901234567890.12345678"),
    ("'0.00000000000000000000000000000000000001'::DECIMAL(38,38)", 1e-38),
    ("'a\u00e9'", "a\u00e9"),
    ("'{\"a\": 1}'::JSON", '{"a": 1}'),
    ("'ab'::BLOB", "YWI="),
    ("'0101'::BIT", "0101"),
    ("'a'::ENUM('a', 'b')", "a"),
    ("'00000000-0000-0000-0000-000000000001'::UUID", "00000000-0000-0000-0000-000000000001"),
    ("DATE '2024-02-29'", "2024-02-29"),
    ("DATE 'infinity'", "infinity"),
    ("DATE '-infinity'", "-infinity"),
    ("DATE '0044-03-15 (BC)'", "0044-03-15 (BC)"),
    ("DATE '12024-01-01'", "12024-01-01"),
    ("DATE '9999-12-31'", "9999-12-31"),
    ("TIME '01:02:03.000004'", "01:02:03.000004"),
    ("TIMETZ '01:02:03+02'", "01:02:03+02"),
    ("TIMESTAMP '2024-01-02 03:04:05.000006'", "2024-01-02T03:04:05.000006"),
    ("TIMESTAMP 'infinity'", "infinity"),
    ("TIMESTAMP '-infinity'", "-infinity"),
    ("'2024-01-02 03:04:05'::TIMESTAMP_S", "2024-01-02T03:04:05"),
    ("'2024-01-02 03:04:05.006'::TIMESTAMP_MS", "2024-01-02T03:04:05.006"),
    ("'2024-01-02 03:04:05.000000007'::TIMESTAMP_NS", "2024-01-02T03:04:05.000000007"),
    ("TIMESTAMPTZ '2024-01-02 03:04:05+02'", "2024-01-02T01:04:05+00"),
    ("TIMESTAMPTZ 'infinity'", "infinity"),
    ("INTERVAL '1 year 2 months 3 days 04:05:06.5'", "P1Y2M3DT4H5M6.5S"),
    ("INTERVAL 1 MONTH", "P1M"),
    ("INTERVAL 30 DAY", "P30D"),
    ("INTERVAL 0 DAY", "PT0S"),
    ("INTERVAL '-1.5 seconds'", "PT-1.5S"),
    ("INTERVAL '-1 month 2 days'", "P-1M2D"),
    ("INTERVAL 100 HOUR", "PT100H"),
    ("INTERVAL '1 microsecond'", "PT0.000001S"),
    ("[1, NULL]", [1, None]),
    ("[DATE 'infinity']", ["infinity"]),
    ("[]", []),
    ("array_value(1, 2)", [1, 2]),
    ("array_value(INTERVAL 1 DAY)", ["P1D"]),
    ("[[TIMESTAMP '2024-01-01 00:00:00']]", [["2024-01-01T00:00:00"]]),
    ("{'a': 1, 'b c': INTERVAL 1 DAY}", {"a": 1, "b c": "P1D"}),
    ("{'a': {'b': [DATE 'infinity']}}", {"a": {"b": ["infinity"]}}),
    ("row(1, 2)", [1, 2]),
    ("row(DATE 'infinity', 'x')", ["infinity", "x"]),
    ("MAP {'a': 1}", {"a": 1}),
    ("MAP {1: 2}", {"1": 2}),
    ("MAP {DATE 'infinity': INTERVAL 1 DAY}", {"infinity": "P1D"}),
    ("MAP {[1]: 2}", {"[1]": 2}),
    ("MAP {}", {}),
    ("union_value(a := 1)", 1),
    ("DATE 'infinity'::UNION(d DATE, i INTEGER)", "infinity"),
    ("{'a': NULL::DATE}", {"a": None}),
    ("['nan'::DOUBLE]", ["NaN"]),
    ("{'d': 99999999999999999999999999999999999999::DECIMAL(38,0)}", {"d": "9" * 38}),
    ("[NULL::INTERVAL]", [None]),
]


async def test_sql_values_stay_exact() -> None:
    """Each type alone; all answers that are wrong are named."""
    wrong = []
    async with a_service() as ask:
        for expression, expected in VALUES:
            rows = (await ask(f"SELECT {expression}")).rows
            value = next(iter(rows[0].values()))
            if value != expected or type(value) is not type(expected):
                wrong.append((expression, value, expected))
    assert wrong == []


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("SELECT 1 AS a, 2 AS a", ["a", "a_1"]),
        ("SELECT 1 AS a, 2 AS a, 3 AS a_2, 4 AS a", ["a", "a_1", "a_2", "a_3"]),
        ("SELECT * FROM (SELECT 1 x) a, (SELECT 2 x) b", ["x", "x_1"]),
        ("SELECT 1 AS a, INTERVAL 1 DAY AS a", ["a", "a_1"]),
        ("SELECT 1 AS a, 2 AS A", ["a", "A"]),
    ],
)
async def test_sql_columns_of_one_name_are_both_there(query: str, names: list[str]) -> None:
    """The second gets a number that no other has."""
    table = await call(sql, query=query)
    assert [column["name"] for column in table["columns"]] == list(table["rows"][0]) == names


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("SELECT DATE '2024-01-01' d;", [{"d": "2024-01-01"}]),
        ("SELECT DATE '2024-01-01' é; -- ;'", [{"é": "2024-01-01"}]),
        ("SELECT DATE '2024-01-01' d /* ; */ ; ; -- x\n", [{"d": "2024-01-01"}]),
        ("SELECT DATE '2024-01-01' d -- x", [{"d": "2024-01-01"}]),
        ("CREATE TABLE t (d DATE); INSERT INTO t VALUES ('2024-01-01'); FROM t", [{"d": "2024-01-01"}]),
        ("WITH t AS (SELECT INTERVAL 1 DAY i) FROM t", [{"i": "P1D"}]),
        ("VALUES (DATE '2024-01-01')", [{"col0": "2024-01-01"}]),
        (
            "SELECT DATE '2024-01-01' + range::INTEGER d FROM range(3) ORDER BY 1 DESC LIMIT 2",
            [{"d": "2024-01-03"}, {"d": "2024-01-02"}],
        ),
        ("SELECT '; --' a, DATE '2024-01-01' b", [{"a": "; --", "b": "2024-01-01"}]),
        ("DESCRIBE SELECT 1 a", None),
        ("SELECT 'it''s' || ';' a -- '", [{"a": "it's;"}]),
        ("EXPLAIN SELECT 1", None),
        ("SUMMARIZE SELECT 1 a", None),
        ("CREATE TABLE t AS SELECT 'x' b, 1 v; PIVOT t ON b USING sum(v)", [{"x": 1}]),
    ],
)
async def test_sql_of_any_shape_is_answered(query: str, rows: Any) -> None:
    """Semicolons, comments and statements before the last one change nothing."""
    answered = (await call(sql, query=query))["rows"]
    assert answered == rows if rows is not None else answered


@pytest.mark.parametrize("query", ["", " ", ";", "-- x", "/* x */", ";;"])
async def test_sql_empty_queries_are_refused_in_words(query: str) -> None:
    """Nothing to run is an error that says so."""
    with pytest.raises(TerminalError, match="empty"):
        await call(sql, query=query)


NO_TYPES = [
    "INT); create table pw as select 42 z; --",
    "INT); DROP TABLE t; CREATE TABLE t (a INT",
    "INT;",
    "INT; SELECT 1",
    "INT, b INT",
    "INT), (1",
    "INT) AS x, (SELECT 1",
    "INT) UNION SELECT (1",
    "INT DEFAULT 5",
    "INT AS (1)",
    "INT CHECK (a > 1)",
    "INT PRIMARY KEY",
    "INT --",
    "INT /*",
    "",
    " ",
    "'INT'",
    "(SELECT 1)",
    "INT\x00",
    "STRUCT(a INT); SELECT (1",
    "nonsense",
]


@pytest.mark.parametrize("kind", NO_TYPES)
async def test_sql_takes_no_more_than_a_type_as_the_type_of_a_column(kind: str) -> None:
    """What is not a type, or is more than one, is refused for good, and no statement is made of it."""
    async with a_service() as ask:
        asked = ask("SELECT * FROM t", sources={"t": {"rows": [], "columns": {"a": kind}}})
        with pytest.raises(TerminalError) as refused:
            await asked
    assert refused.value.error_type in ("SqlError", "SourceRefused")
    assert len(str(refused.value)) < 500


TYPES = {
    "int": "INTEGER",
    "decimal(10,2)": "DECIMAL(10,2)",
    "TIMESTAMP WITH TIME ZONE": "TIMESTAMP WITH TIME ZONE",
    "DOUBLE PRECISION": "DOUBLE",
    "VARCHAR(10)": "VARCHAR",
    "INT[3]": "INTEGER[3]",
    "MAP(VARCHAR, INT)": "MAP(VARCHAR, INTEGER)",
    'STRUCT(a INT, "b ""c"";" VARCHAR[])[]': 'STRUCT(a INTEGER, "b ""c"";" VARCHAR[])[]',
    "ENUM('a', 'b;c''d')": "ENUM('a', 'b;c''d')",
    "UNION(a INT, b VARCHAR)": "UNION(a INTEGER, b VARCHAR)",
    "JSON": "JSON",
}


async def test_sql_takes_every_type_as_the_type_of_a_column() -> None:
    """Types with parameters, names and texts of their own are those of the column."""
    async with a_service() as ask:
        columns = {f"c{number}": kind for number, kind in enumerate(TYPES)}
        table = await ask("SELECT * FROM t", sources={"t": {"rows": [], "columns": columns}})
    assert [column.type for column in table.columns] == list(TYPES.values())
