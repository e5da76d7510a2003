"""A real Prometheus scrapes a real stack under load: it has every panel's metrics, and no alert fires."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import aiohttp
import psutil
import pytest
import yaml

from anabranch.deploy.grafana.panels import ALL
from anabranch.deploy.local.ports import free_port
from anabranch.deploy.local.prometheus import LocalPrometheus
from anabranch.deploy.local.services import STEP_TYPES, anabranch_services
from anabranch.deploy.local.stack import LocalStack, ready_line
from tests.deploy.test_prometheus import ALERTS
from tests.performance.submitter import Submitter
from tests.performance.throughput import diamonds
from tests.support.prometheus import ask, asked_as_of_grafana, firing, needs_prometheus

WITHIN_S = 120.0
# Nothing of the kind happens on a healthy stack: their series come with the first of its kind, or a quantile has none.
NOTHING_TO_SHOW = {
    "Dead letters", "Commands refused by their topic", "Restore", "Not HTTP as it should be",
    "Without or with wrong credentials", "Messages ignored, by reason",
}  # fmt: skip


def queries() -> list[tuple[str, str]]:
    """Return every panel's title, with a query as Grafana asks it."""
    panels = [panel for shown in ALL for row in shown.rows.values() for panel in row]
    return [(panel.title, asked_as_of_grafana(query.expr)) for panel in panels for query in panel.queries]


@needs_prometheus
async def test_every_panel_has_data_under_load_and_no_alert_fires(tmp_path: Path) -> None:
    """Every process is scraped, runs are submitted and read until the last query has samples."""
    expected = {"gateway", "orchestrator", "history", *STEP_TYPES}
    async with (
        asyncio.timeout(3 * WITHIN_S),
        LocalStack(tmp_path, services=anabranch_services(), port=free_port()) as stack,
        LocalPrometheus(tmp_path, interval_s=1.0) as prometheus,
        aiohttp.ClientSession() as session,
        Submitter(stack.gateway_url) as submitter,
    ):
        deadline = asyncio.get_running_loop().time() + WITHIN_S
        while True:
            await submitter.submit(diamonds(20, b"?wait=30s"))
            for run_id in submitter.accepted[-20:]:
                async with session.get(f"{stack.gateway_url}/v1/runs/{run_id}") as answer:
                    assert answer.status == 200
            up = {each["metric"]["instance"] for each in await ask(session, prometheus.url, "up == 1")}
            empty = [(title, asked) for title, asked in queries() if not await ask(session, prometheus.url, asked)]
            if up == expected and {title for title, _ in empty} <= NOTHING_TO_SHOW:
                break
            if asyncio.get_running_loop().time() > deadline:
                pytest.fail(f"scraped: {sorted(up)}; without data: {empty}")
        assert await firing(session, prometheus.url) == set()
        samples = await ask(session, prometheus.url, "sum(scrape_samples_scraped)")
        print("series of the whole stack:", samples[0]["value"][1], "panels without data:", sorted(dict(empty)))


FAKE_GRAFANA = """\
import http.server, os, sys

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()

open("asked.txt", "w").write(" ".join(sys.argv[1:]))
address = os.environ["GF_SERVER_HTTP_ADDR"], int(os.environ["GF_SERVER_HTTP_PORT"])
http.server.HTTPServer(address, Health).serve_forever()
"""


@needs_prometheus
async def test_up_observe_scrapes_every_process_and_says_what_is_missing(tmp_path: Path) -> None:
    """As a user starts it, on a machine without Grafana; Ctrl-C leaves no process."""
    program = Path(sys.executable).with_name("anabranch")
    command = [program, "up", "--observe", "--port", "0"]
    path = os.pathsep.join(
        each for each in os.environ["PATH"].split(os.pathsep) if not (Path(each) / "grafana").exists()
    )
    env = {**os.environ, "PATH": path, "ANABRANCH_HOME": str(tmp_path / "home")}
    process = await asyncio.create_subprocess_exec(
        *command, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said: list[str] = []
    try:
        async with asyncio.timeout(WITHIN_S), aiohttp.ClientSession() as session:
            assert process.stdout is not None
            async for line in process.stdout:
                said.append(line.decode())
                if line.startswith(b"ready "):
                    break
            found = re.search(r"  prometheus (http://127\.0\.0\.1:\d+)$", said[-1].rstrip())
            assert found is not None, "".join(said)
            url, expected = found[1], {"gateway", "orchestrator", "history", *STEP_TYPES}
            while {each["metric"]["instance"] for each in await ask(session, url, "up == 1")} != expected:
                await asyncio.sleep(0.2)
            async with session.get(f"{url}/api/v1/rules") as answer:
                groups = (await answer.json())["data"]["groups"]
            assert sum(rule["type"] == "alerting" for group in groups for rule in group["rules"]) == len(ALERTS)
            process.send_signal(signal.SIGINT)
            rest, _ = await process.communicate()
            assert process.returncode == 0, rest.decode()
        assert any("Grafana is not installed" in line for line in said), "".join(said)
        async with aiohttp.ClientSession() as gone:
            with pytest.raises(aiohttp.ClientError):
                await ask(gone, url, "up")
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@needs_prometheus
async def test_a_grafana_that_is_installed_is_started_with_our_dashboards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in for it answers as it does; what it is given is what Grafana reads."""
    program = tmp_path / "unpacked" / "bin" / "grafana"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\n{FAKE_GRAFANA}")
    program.chmod(0o755)
    (tmp_path / "unpacked" / "conf").mkdir()
    (tmp_path / "unpacked" / "conf" / "defaults.ini").touch()
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    home = tmp_path / "home"
    async with (
        asyncio.timeout(WITHIN_S),
        LocalStack(home, port=0, observe=True, services=anabranch_services()) as stack,
    ):
        assert stack.prometheus is not None
        assert stack.grafana is not None
        assert ready_line(stack).endswith(f"  prometheus {stack.prometheus.url}  grafana {stack.grafana.url}")
        given = home / "grafana" / "provisioning"
        (source,) = yaml.safe_load((given / "datasources" / "anabranch.yml").read_text())["datasources"]
        assert (source["type"], source["url"]) == ("prometheus", stack.prometheus.url)
        (provider,) = yaml.safe_load((given / "dashboards" / "anabranch.yml").read_text())["providers"]
        assert {each.stem for each in Path(provider["options"]["path"]).glob("*.json")} == {each.uid for each in ALL}
        assert (home / "asked.txt").read_text() == f"server --homepath {tmp_path / 'unpacked'}"
        pid = stack.grafana.pid
    assert not psutil.pid_exists(pid)
