"""Prometheus' own tool, where it is installed or `deploy/prometheus/install.sh` has put it."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNPACKED = ROOT / ".venv" / "prometheus" / "usr" / "bin"


def program(name: str) -> str | None:
    """Return the path of `promtool` or `prometheus`, or None."""
    return shutil.which(name) or shutil.which(name, path=str(UNPACKED))


needs_promtool = pytest.mark.skipif(
    program("promtool") is None, reason="promtool is not installed: run deploy/prometheus/install.sh"
)


def promtool(*arguments: str) -> str:
    """Run it; return what it says. Fails the test when it finds something wrong."""
    path = program("promtool")
    assert path is not None
    done = subprocess.run(
        [path, *arguments],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
