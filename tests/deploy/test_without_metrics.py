"""The services whose cost without metrics is measured really count nothing."""

import subprocess
import sys

COUNTS = """
import runpy
from prometheus_client import CollectorRegistry, generate_latest
from anabranch.services.orchestrator.metrics import OrchestratorMetrics
from anabranch.services.steps.metrics import WorkerMetrics
from anabranch.services.gateway.metrics import GatewayMetrics
from tests.performance.without_metrics import count_nothing

if {silent}:
    count_nothing()
registry = CollectorRegistry()
orchestrator, worker = OrchestratorMetrics(registry), WorkerMetrics("sql", registry)
gateway = GatewayMetrics(CollectorRegistry())
before = generate_latest(registry), generate_latest(gateway.registry)
orchestrator.decided("SubmitRun", None)
orchestrator.said("RunStarted")
worker.answered("AttemptSucceeded", 0.1)
gateway.answered("GET", "/v1/runs", 200, 0.1)
print(before == (generate_latest(registry), generate_latest(gateway.registry)))
"""


def changes_nothing(silent: bool) -> str:
    command = [sys.executable, "-c", COUNTS.format(silent=silent)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def test_facts_are_counted_unless_they_are_silenced() -> None:
    """In a process of its own: what is silenced stays so."""
    assert changes_nothing(silent=True) == "True"
    assert changes_nothing(silent=False) == "False"
