"""The objects that `kubectl kustomize` makes of an overlay, and the tools that check them."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT: Final = Path(__file__).parents[2]
K8S: Final = ROOT / "deploy" / "k8s"
TOOLS: Final = ROOT / ".tools"
OVERLAYS: Final = ("local", "staging", "production")
VERSIONS: Final = sorted(path.name for path in (TOOLS / "schemas").glob("v*"))

Object = dict[str, Any]

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def needs(program: str) -> pytest.MarkDecorator:
    """Skip a test where `make tools` has not built a program and fetched the schemas."""
    has_it = (TOOLS / "bin" / program).exists() and bool(VERSIONS)
    return pytest.mark.skipif(not has_it, reason=f"{program} is not built here: make tools")


@cache
def text_of(overlay: str) -> str:
    """Return what an overlay comes to."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(K8S / "overlays" / overlay)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(overlay: str) -> list[Object]:
    """Return its objects."""
    return list(yaml.load_all(text_of(overlay), Loader=yaml.CSafeLoader))


def of_kind(overlay: str, *kinds: str) -> list[Object]:
    """Return the objects of some kinds."""
    return [each for each in objects(overlay) if each["kind"] in kinds]


def named(each: Object) -> str:
    """Return how an object is called in a report."""
    return f"{each['kind']}/{each['metadata']['name']}"


def pods(overlay: str) -> list[tuple[str, Object, Object]]:
    """Return the workloads with their pods: the name, the pod's labels, its spec."""
    return [
        (named(each), each["spec"]["template"]["metadata"]["labels"], each["spec"]["template"]["spec"])
        for each in of_kind(overlay, "Deployment", "StatefulSet", "Job")
    ]


def is_ours(labels: Object) -> bool:
    """Return whether a pod runs one of our services, and not a store."""
    return labels.get("app.kubernetes.io/part-of") == "anabranch"


def tool(program: str, *arguments: str, stdin: str = "") -> tuple[int, str]:
    """Run one of the tools; return its exit code and what it says."""
    done = subprocess.run(
        [str(TOOLS / "bin" / program), *arguments],
        check=False,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout
