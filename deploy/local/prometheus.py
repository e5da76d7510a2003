"""A real Prometheus on this machine, which scrapes every service of a stack and evaluates our rules."""

import asyncio
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from anabranch.deploy.local.ports import HOST
from anabranch.deploy.local.process import Child, spawn
from anabranch.deploy.local.server import LocalServer
from anabranch.deploy.local.targets import TARGETS

_OURS: Final = Path(__file__).resolve().parents[1] / "prometheus"
_RULES: Final = _OURS / "rules"
_UNPACKED: Final = Path(sys.prefix) / "prometheus" / "usr" / "bin"  # by deploy/prometheus/install.sh

HOW_TO_INSTALL: Final = (
    "Prometheus is not installed: `apt install prometheus`, or deploy/prometheus/install.sh; nothing is scraped"
)


def binary() -> str | None:
    """Return the program's path, or None where it is not installed."""
    return shutil.which("prometheus") or shutil.which("prometheus", path=str(_UNPACKED))


def configuration(targets: Path, *, interval_s: float, rules: Path = _RULES) -> dict[str, Any]:
    """Return ours for a stack: its own targets, absolute paths, and how often; `rules` is a folder."""
    ours: dict[str, Any] = yaml.safe_load((_OURS / "prometheus.yml").read_text())
    interval = f"{round(1000 * interval_s)}ms"
    ours["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
    ours["rule_files"] = [str(rules / "*.yml")]
    (job,) = ours["scrape_configs"]
    job["file_sd_configs"] = [{"files": [str(targets)], "refresh_interval": "15s"}]
    job["scrape_timeout"] = interval
    return ours


class LocalPrometheus(LocalServer):
    """One Prometheus server; a `port` that is taken gives way, `rules` is a folder of them."""

    name = "prometheus"

    def __init__(
        self, data_dir: Path, port: int | None = None, *, interval_s: float = 5.0, rules: Path = _RULES
    ) -> None:
        super().__init__(data_dir, port)
        self._rules = rules
        self._interval_s = interval_s

    @property
    def url(self) -> str:
        """As in `http://127.0.0.1:9090`."""
        return f"http://{self.address}"

    async def _prepare(self) -> None:
        written = configuration(self.data_dir / TARGETS, interval_s=self._interval_s, rules=self._rules)
        self._config.write_text(yaml.safe_dump(written, sort_keys=False))

    @property
    def _config(self) -> Path:
        return self.data_dir / "prometheus.yml"

    async def _spawn(self) -> Child:
        program = binary()
        if program is None:
            raise FileNotFoundError(HOW_TO_INSTALL)
        return await spawn(
            [
                program,
                f"--config.file={self._config}",
                f"--storage.tsdb.path={self.data_dir / 'prometheus'}",
                "--storage.tsdb.retention.time=7d",
                "--enable-feature=exemplar-storage",
                f"--web.listen-address={self.address}",
                "--log.level=warn",
            ],
            env={},
            cwd=self.data_dir,
            log=self.log_path,
        )

    async def _answers(self) -> bool:
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            writer.write(f"GET /-/ready HTTP/1.1\r\nHost: {self.address}\r\nConnection: close\r\n\r\n".encode())
            return (await reader.readline()).split(b" ")[1:2] == [b"200"]
        finally:
            writer.close()
