"""Tracing as a service is told of it by its environment: a wrong setting is one line, and off is not imported."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest


async def test_a_wrong_setting_is_one_line_at_the_start() -> None:
    """It says what is wrong and what may stand there."""
    env = os.environ | {"OTEL_TRACES_EXPORTER": "jaeger"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "anabranch.services.history", env=env, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    lines = [line for line in said.decode().splitlines() if '"level":"error"' in line]
    assert len(lines) == 1
    assert "OTEL_TRACES_EXPORTER is 'jaeger': traces go by otlp, or there are none" in lines[0]


@pytest.mark.parametrize("service", ["gateway", "orchestrator", "history", "steps.http"])
def test_without_tracing_a_service_never_imports_opentelemetry(service: str, tmp_path: Path) -> None:
    """It is started, waits for Kafka, and is stopped again: what it has imported by then has none of it."""
    script = f"""
import os, runpy, signal, sys, threading
import anabranch.shared.runtime.kafka as kafka

async def stop_at_once(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    import asyncio
    await asyncio.Event().wait()

kafka.wait_for_kafka = stop_at_once
try:
    runpy.run_module("anabranch.services.{service}", run_name="__main__")
finally:
    found = sorted(name for name in sys.modules if name.partition(".")[0] == "opentelemetry")
    print("imported:", found, file=sys.stderr)
"""
    told = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert '"event":"stopped"' in told.stdout.replace(" ", "")
    assert "imported: []" in told.stderr
