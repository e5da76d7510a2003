"""A Grafana on this machine with our dashboards, which asks the stack's own Prometheus."""

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any, Final

import yaml

from anabranch.deploy.local.ports import HOST
from anabranch.deploy.local.process import Child, spawn
from anabranch.deploy.local.server import LocalServer
from anabranch.shared.runtime.settings import without_secrets

DASHBOARDS: Final = Path(__file__).resolve().parents[1] / "grafana" / "dashboards"

HOW_TO_INSTALL: Final = (
    "Grafana is not installed: its packages are at https://grafana.com/grafana/download; "
    "nothing draws the dashboards, which deploy/grafana/dashboards has"
)


def command() -> list[str] | None:
    """Return how Grafana is started, or None where it is not installed: `grafana-server` is its name before 10."""
    if program := shutil.which("grafana"):
        return [program, "server"]
    if program := shutil.which("grafana-server"):
        return [program]
    return None


def home_of(program: Path) -> Path | None:
    """Return where its defaults and its pages are: beside an unpacked archive's program, or where packages put them."""
    prefix = program.resolve().parents[1]
    places = (prefix, prefix / "share" / "grafana", Path("/usr/share/grafana"))
    return next((place for place in places if (place / "conf" / "defaults.ini").exists()), None)


def provisioning(prometheus_url: str) -> dict[str, dict[str, Any]]:
    """Return what Grafana reads at its start, by the path of the file."""
    source = {"name": "Prometheus", "type": "prometheus", "access": "proxy", "url": prometheus_url, "isDefault": True}
    dashboards = {"name": "Anabranch", "type": "file", "options": {"path": str(DASHBOARDS)}}
    return {
        "datasources/anabranch.yml": {"apiVersion": 1, "datasources": [source]},
        "dashboards/anabranch.yml": {"apiVersion": 1, "providers": [dashboards]},
    }


class LocalGrafana(LocalServer):
    """One Grafana server, open to whoever reaches it, which is this machine alone; it can change nothing."""

    name = "grafana"

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir, None)
        self.prometheus_url = ""
        """Whom it asks; to be set before it is started."""

    @property
    def url(self) -> str:
        """As in `http://127.0.0.1:3000`."""
        return f"http://{self.address}"

    @property
    def _folder(self) -> Path:
        return self.data_dir / "grafana"

    async def _prepare(self) -> None:
        for name, content in provisioning(self.prometheus_url).items():
            path = self._folder / "provisioning" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(content, sort_keys=False))

    async def _spawn(self) -> Child:
        found = command()
        if found is None:
            raise FileNotFoundError(HOW_TO_INSTALL)
        home = home_of(Path(found[0]))
        return await spawn(
            [*found, *(["--homepath", str(home)] if home else [])],
            env={**without_secrets(os.environ), **self._settings()},
            cwd=self.data_dir,
            log=self.log_path,
        )

    def _settings(self) -> dict[str, str]:
        return {
            "GF_SERVER_HTTP_ADDR": HOST,
            "GF_SERVER_HTTP_PORT": str(self.port),
            "GF_PATHS_DATA": str(self._folder / "data"),
            "GF_PATHS_LOGS": str(self._folder / "logs"),
            "GF_PATHS_PLUGINS": str(self._folder / "plugins"),
            "GF_PATHS_PROVISIONING": str(self._folder / "provisioning"),
            "GF_AUTH_ANONYMOUS_ENABLED": "true",
            "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
            "GF_AUTH_DISABLE_LOGIN_FORM": "true",
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
            "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
            "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
        }

    async def _answers(self) -> bool:
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            writer.write(f"GET /api/health HTTP/1.1\r\nHost: {self.address}\r\nConnection: close\r\n\r\n".encode())
            return (await reader.readline()).split(b" ")[1:2] == [b"200"]
        finally:
            writer.close()
