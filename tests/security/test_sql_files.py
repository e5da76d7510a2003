"""Queries of a stranger: no SQL reads or writes a file of this machine, asks the network, or changes a setting."""

from pathlib import Path

import pytest

from anabranch.shared.contracts.errors import TerminalError
from tests.unit.steps.test_sql_zoo import a_service

# {secret} is a file that is there, with `s3cret` in it; {new} is one that is not.
ATTEMPTS = [
    "SELECT * FROM read_csv('{secret}')",
    "SELECT * FROM read_csv_auto('{secret}')",
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM read_blob('{secret}')",
    "SELECT * FROM read_json('{secret}')",
    "SELECT * FROM read_ndjson('{secret}')",
    "SELECT * FROM read_json_objects('{secret}')",
    "SELECT * FROM read_parquet('{secret}')",
    "SELECT * FROM parquet_scan('{secret}')",
    "SELECT * FROM parquet_metadata('{secret}')",
    "SELECT * FROM sniff_csv('{secret}')",
    "FROM '{secret}'",
    'FROM "{secret}"',
    "SELECT * FROM 'file://{secret}'",
    "SELECT * FROM read_csv(['{secret}'])",
    "SELECT * FROM read_csv('{folder}/../{name}/*.csv')",
    "SELECT * FROM read_text('/proc/self/environ')",
    "SELECT * FROM read_text('/proc/self/cmdline')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_text('../../../../../../../../etc/passwd')",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM glob('/*')",
    "COPY (SELECT 1) TO '{new}'",
    "COPY (SELECT 1) TO '{new}' (FORMAT parquet)",
    "CREATE TABLE t (a VARCHAR); COPY t FROM '{secret}'",
    "EXPORT DATABASE '{folder}/x'",
    "IMPORT DATABASE '{folder}'",
    "ATTACH '{new}' AS x",
    "ATTACH '{secret}' AS x (READ_ONLY)",
    "ATTACH 'sqlite:{secret}' AS x",
    "ATTACH ':memory:' AS x; SELECT * FROM read_text('{secret}')",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{secret}'",
    "INSTALL spatial FROM community",
    "FORCE INSTALL json",
    "UPDATE EXTENSIONS",
    "SET enable_external_access = true",
    "SET allowed_directories = ['/']",
    "SET allowed_paths = ['{secret}']",
    "RESET enable_external_access",
    "SET lock_configuration = false",
    "PRAGMA enable_external_access",
    "SET GLOBAL enable_external_access = true",
    "SET temp_directory = '{folder}'",
    "SET memory_limit = '64GB'",
    "SET home_directory = '/'",
    "SET extension_directory = '{folder}'",
    "SET secret_directory = '{folder}'",
    "SET log_query_path = '{new}'",
    "PRAGMA enable_profiling; SET profiling_output = '{new}'",
    "PRAGMA profiling_output = '{new}'",
    "SELECT getenv('HOME')",
    "SELECT getenv('PATH')",
    "SELECT * FROM read_csv('http://127.0.0.1:1/a.csv')",
    "SELECT * FROM read_parquet('s3://a/b')",
    "FROM 'https://127.0.0.1:1/a.parquet'",
    "CREATE SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "CREATE PERSISTENT SECRET s (TYPE s3, KEY_ID 'a')",
    "CALL enable_logging('FileSystem', storage_path = '{folder}')",
    "CREATE MACRO m(p) AS TABLE SELECT * FROM read_text(p); FROM m('{secret}')",
    "CREATE VIEW v AS SELECT * FROM read_text('{secret}'); FROM v",
    "SELECT * FROM query('SELECT * FROM read_text(''{secret}'')')",
    "SELECT * FROM query_table('{secret}')",
    "EXECUTE p",
    "SELECT * FROM given",
    "PREPARE p AS SELECT * FROM read_text('{secret}'); EXECUTE p",
    "EXPLAIN ANALYZE SELECT * FROM read_text('{secret}')",
    "SELECT (SELECT content FROM read_text('{secret}')) a",
    "SELECT 1 AS a) UNION ALL (SELECT content FROM read_text('{secret}')",
    "DESCRIBE SELECT * FROM read_csv('{secret}')",
    "SUMMARIZE '{secret}'",
    "SELECT * FROM sqlite_scan('{secret}', 't')",
    "SELECT * FROM read_duckdb('{secret}')",
    "CHECKPOINT; SELECT * FROM read_text('{secret}')",
    "SELECT * FROM postgres_scan('host=127.0.0.1', 'a', 'b')",
    "USE x",
    "CREATE TABLE t AS FROM read_csv('{secret}'); FROM t",
    "INSERT INTO t SELECT * FROM read_text('{secret}')",
    "SELECT load_aws_credentials()",
    "SELECT * FROM st_read('{secret}')",
    "SELECT write_log('x', log_path := '{new}')",
]


async def test_no_query_reads_or_writes_a_file(tmp_path: Path) -> None:
    """Each attempt fails for good, shows nothing of a file, and leaves none."""
    secret = tmp_path / "secret.csv"
    secret.write_text("a\ns3cret\n")
    before = sorted(tmp_path.iterdir())
    passed = []
    async with a_service() as ask:
        for attempt in ATTEMPTS:
            query = (
                attempt.replace("{secret}", str(secret)).replace("{new}", str(tmp_path / "new"))
                .replace("{folder}", str(tmp_path)).replace("{name}", tmp_path.name)
            )  # fmt: skip
            try:
                table = await ask(query, sources={"own": {"rows": [{"a": 1}]}})
            except TerminalError as error:
                assert error.error_type == "SqlError", (attempt, error)
                assert "s3cret" not in f"{error}{error.details}", attempt
            else:
                passed.append((attempt, table.rows[:2]))
        assert passed == []
        assert (await ask("SELECT a FROM own", sources={"own": {"rows": [{"a": 1}]}})).rows == [{"a": 1}]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "path",
    [
        "../secret.csv",
        "/etc/passwd",
        "a/../../secret.csv",
        "link.csv",
        "link/secret.csv",
        "./../secret.csv",
        "..",
        "~/x.csv",
        "%2e%2e/secret.csv",
        "..\\secret.csv",
        "file:///etc/passwd",
        "*.csv",
        "**/*.csv",
        "/proc/self/environ",
    ],
)
async def test_no_path_of_a_source_leads_out_of_the_directory(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither dots, nor links, nor patterns, nor another spelling."""
    (tmp_path / "secret.csv").write_text("a\ns3cret\n")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.csv").symlink_to(tmp_path / "secret.csv")
    (inside / "link").symlink_to(tmp_path)
    monkeypatch.setenv("ANABRANCH_SQL_DIRECTORY", str(inside))
    async with a_service() as ask:
        with pytest.raises(TerminalError) as failure:
            await ask("SELECT * FROM t", sources={"t": {"path": path, "format": "csv"}})
    assert failure.value.error_type in ("SourceRefused", "SourceMissing")
