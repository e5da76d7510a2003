"""Every test that asks for `database` runs on SQLite and on PostgreSQL."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.deploy.local.ports import free_port
from anabranch.deploy.local.redis import LocalRedis
from anabranch.shared.record.database import open_database
from anabranch.shared.record.schema import upgrade
from tests.support.databases import a_database, a_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Yield the URL of a PostgreSQL server."""
    with a_postgres() as url:
        yield url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def valkey(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalRedis]:
    """Yield a Redis."""
    async with LocalRedis(tmp_path_factory.mktemp("redis"), free_port()) as server:
        yield server


@pytest.fixture
async def redis(valkey: LocalRedis) -> AsyncIterator[Redis]:
    """Yield a client of an empty Redis."""
    client = Redis.from_url(valkey.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """Yield the URL of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/record.db"
        return
    async with a_database(request.getfixturevalue("postgres")) as url:
        yield url


@pytest.fixture
async def empty(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Yield an engine on an empty database."""
    engine = open_database(database_url, name="test")
    yield engine
    await engine.dispose()


@pytest.fixture
async def database(empty: AsyncEngine) -> AsyncEngine:
    """Return an engine on a database with the tables of today."""
    await upgrade(empty)
    return empty
