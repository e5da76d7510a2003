"""The migrations make the tables that the code knows, and can be undone."""

import asyncio

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from click.testing import CliRunner
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.client.cli import main
from anabranch.shared.record.database import UnusableDatabase, database_url, open_database
from anabranch.shared.record.schema import BASE, SchemaBehind, check, current, downgrade, head, upgrade
from anabranch.shared.record.tables import METADATA


async def test_the_migrations_make_the_tables_of_the_code(database: AsyncEngine) -> None:
    """Nothing is left that Alembic would change."""

    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, METADATA))

    async with database.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_every_migration_can_be_undone(empty: AsyncEngine) -> None:
    """Up, down and up again leaves the same tables, and down leaves none."""

    def tables(connection: Connection) -> list[str]:
        return sorted(set(inspect(connection).get_table_names()) - {"alembic_version"})

    async with empty.connect() as connection:
        assert await upgrade(empty) == ("", head())
        made = await connection.run_sync(tables)
        await connection.rollback()
        assert made == sorted(METADATA.tables)
        assert await downgrade(empty, BASE) == (head(), "")
        assert await connection.run_sync(tables) == []
        await connection.rollback()
        assert await upgrade(empty) == ("", head())
        assert await connection.run_sync(tables) == made


async def test_two_that_upgrade_at_once_do_it_once(database_url: str) -> None:
    """Whoever comes second waits, and finds nothing left to do."""
    engines = [open_database(database_url, name=f"test {n}") for n in range(4)]
    said = await asyncio.gather(*(upgrade(engine) for engine in engines))
    assert sorted(said) == [("", head())] + 3 * [(head(), head())]
    for engine in engines:
        await engine.dispose()


async def test_a_service_says_what_a_database_lacks(empty: AsyncEngine) -> None:
    """Without the tables it names the command; a later version's tables are taken."""
    with pytest.raises(SchemaBehind, match="anabranch db upgrade"):
        await check(empty)
    await upgrade(empty)
    await check(empty)
    async with empty.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert await current(empty) == "9999"
    await check(empty)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://bob:s3cret@host/db", "'mysql'"),
        ("bob:s3cret@host", "no URL"),
        ("sqlite://", "names no file"),
    ],
)
def test_an_unusable_database_is_refused_without_its_password(url: str, says: str) -> None:
    """The error says what is wrong and repeats no secret."""
    with pytest.raises(UnusableDatabase, match=says) as refused:
        database_url(url)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("argument", [["upgrade"], ["upgrade", "head"]])
def test_one_command_brings_the_tables_up_and_takes_them_down(
    database_url: str, argument: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator's `anabranch db`: what it did is said, and what went wrong without the password."""
    monkeypatch.setenv("DATABASE_URL", database_url)

    def said(*command: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["db", *command])
        return result.exit_code, result.output

    assert said("current") == (0, f"none, needed is {head()}\n")
    assert said(*argument) == (0, f"none -> {head()}\n")
    assert said(*argument) == (0, f"{head()}: nothing to do\n")
    assert said("upgrade", "nosuch")[0] == 1
    assert said("downgrade", "base", "--yes") == (0, f"{head()} -> none\n")


def test_the_command_says_that_a_server_does_not_let_it_in(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's error, which SQLAlchemy lets through; one line, no traceback."""
    monkeypatch.setenv("DATABASE_URL", postgres.replace("/postgres?", "/nosuch?"))
    result = CliRunner().invoke(main, ["db", "upgrade"])
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert 'database "nosuch" does not exist' in result.output


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "DATABASE_URL is not set"),
        ("mysql://who:pass-word@host/name", "only sqlite"),
        ("postgresql://who:pass-word@127.0.0.1:1/name", "127.0.0.1"),
    ],
)
def test_the_command_says_what_is_wrong_with_a_database(url: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never with the password."""
    monkeypatch.setenv("DATABASE_URL", url)
    result = CliRunner().invoke(main, ["db", "upgrade"])
    assert result.exit_code != 0
    assert words in result.output
    assert "pass-word" not in result.output
