"""A Docker engine, the base images on it, and containers of the image that end with the test."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

ROOT: Final = Path(__file__).parents[2]
BASE: Final = os.environ.get("ANABRANCH_TEST_BASE", "anabranch-base:latest")
BUILD_BASE: Final = os.environ.get("ANABRANCH_TEST_BUILD_BASE", "anabranch-base:build")
_OF_PIP: Final = ("PIP_CERT", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_TRUSTED_HOST")
_BUILD_S: Final = 560
_COMMAND_S: Final = 60


def docker(*arguments: str, check: bool = True, timeout_s: float = _COMMAND_S, **env: str) -> str:
    """Run the client; return what it prints. The classic builder, which needs nothing beside the engine."""
    done = subprocess.run(
        ["docker", *arguments],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        env=os.environ | {"DOCKER_BUILDKIT": "0"} | env,
    )
    assert not check or done.returncode == 0, done.stdout[-4000:]
    return done.stdout.strip()


def why_not() -> str | None:
    """Return why no image can be built here, None when one can."""
    if shutil.which("docker") is None:
        return "no docker client"
    if subprocess.run(["docker", "version"], check=False, capture_output=True, timeout=_COMMAND_S).returncode:
        return "no Docker engine answers"
    for name in (BASE, BUILD_BASE):
        if subprocess.run(["docker", "image", "inspect", name], check=False, capture_output=True).returncode:
            return f"no base image {name}: deploy/docker/debian-base.sh makes it, ANABRANCH_TEST_BASE names another"
    return None


def build(tag: str) -> None:
    """Build the image of this tree; pip finds its index as it does on this machine."""
    arguments = [f"--build-arg={name}={os.environ[name]}" for name in _OF_PIP if name in os.environ]
    docker(
        *("build", "--quiet", "--network=host", "--file=deploy/docker/Dockerfile", f"--tag={tag}"),
        *(f"--build-arg=BASE={BASE}", f"--build-arg=BUILD_BASE={BUILD_BASE}", *arguments, str(ROOT)),
        timeout_s=_BUILD_S,
    )


def restricted(*options: str, network: str = "none") -> list[str]:
    """Return the options of `docker run` that Kubernetes' restricted pods come to, with a directory for scratch."""
    return [
        *(f"--network={network}", "--read-only", "--tmpfs=/tmp:mode=1777", "--cap-drop=ALL"),
        *("--security-opt=no-new-privileges", *options),
    ]


@contextmanager
def container(tag: str, *arguments: str, options: tuple[str, ...] = ()) -> Iterator[str]:
    """Run the image in the background while the context lasts; yield the container's name."""
    name = f"anabranch-test-{uuid4().hex[:8]}"
    docker("run", "--detach", f"--name={name}", *restricted(*options), tag, *arguments)
    try:
        yield name
    finally:
        docker("rm", "--force", name)


def state(name: str) -> dict[str, Any]:
    """Return what the engine says of a container: its status, exit code and health."""
    found: dict[str, Any] = json.loads(docker("inspect", "--format={{json .State}}", name))
    return found
