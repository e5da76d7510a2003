"""The image: what it is made of, and how it runs where nothing may be written and nobody is root."""

import asyncio
import json
import re
import shutil
import signal
import time
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from anabranch.client import AnabranchClient
from anabranch.deploy.docker.__main__ import module_of
from anabranch.deploy.local.services import GATEWAY, Service, anabranch_services
from anabranch.deploy.local.stack import LocalStack
from tests.support.diamond import diamond, right_outputs
from tests.support.engine import build, container, docker, restricted, state, why_not
from tests.support.one_service import eventually

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
TAG = "anabranch:test"
WITHIN_S = 60.0
STOP_TIMEOUT_S = 20.0  # Settings.stop_timeout_s

needs_engine = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


# What it is made of


def locked(path: Path) -> dict[str, str]:
    """Return each pinned line of a lock file with its hashes, by the package's name and the line's marker."""
    entries = re.split(r"\n(?=\S)", path.read_text().strip())
    return {entry.partition(" \\")[0]: entry for entry in entries}


def names(path: Path) -> set[str]:
    """Return the packages that a lock file pins."""
    return {canonicalize_name(line.partition("==")[0]) for line in locked(path)}


def needed(requirements: list[str]) -> set[str]:
    """Return what requirements come to here, by what the installed packages say that they need."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found.add(name)
        for text in requires(name) or ():
            further = Requirement(text)
            if further.marker is None or any(further.marker.evaluate({"extra": e}) for e in extras | {""}):
                waiting.append(further)
    return found


def project() -> dict[str, Any]:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("lock", ["runtime.lock", "stores.lock", "wheel.lock"])
def test_the_image_is_locked_to_what_is_tested(lock: str) -> None:
    """The same version, marker and hashes as in the lock file that the tests are installed from."""
    tested = locked(ROOT / "requirements.lock")
    lines = locked(DOCKER / lock)
    assert lines
    assert {line: entry for line, entry in lines.items() if tested.get(line) != entry} == {}


def test_the_image_has_what_the_services_need() -> None:
    stated = project()["project"]
    extras = stated["optional-dependencies"]
    wanted = needed([*stated["dependencies"], *extras["steps"], *extras["tracing"]])
    assert wanted - names(DOCKER / "runtime.lock") == set()


def test_the_image_has_no_tool_of_developers_or_of_the_local_stack() -> None:
    stated = project()
    others = [
        Requirement(text).name
        for group in (*stated["dependency-groups"].values(), stated["project"]["optional-dependencies"]["local"])
        for text in group
        if isinstance(text, str)
    ]
    assert names(DOCKER / "runtime.lock") & {canonicalize_name(name) for name in others} == set()


def test_the_image_knows_every_service() -> None:
    for service in anabranch_services():
        assert service.command[-1] == module_of(service.role)
    assert module_of("db") is None


# How it runs


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    build(TAG)
    yield TAG
    docker("rmi", TAG, check=False)


async def becomes(name: str, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the container's state once it is so."""

    async def now() -> dict[str, Any] | None:
        found = await asyncio.to_thread(state, name)
        return found if is_so(found) else None

    found: dict[str, Any] = await eventually(now, WITHIN_S, lambda: f"{state(name)}\n{docker('logs', name)}")
    return found


def health_is(wanted: str) -> Callable[[dict[str, Any]], bool]:
    return lambda now: now["Health"]["Status"] == wanted


@needs_engine
def test_it_runs_as_a_number_that_is_not_root(image: str) -> None:
    config = json.loads(docker("image", "inspect", "--format={{json .Config}}", image))
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["python", "-m", "anabranch.deploy.docker"]  # exec form: no shell takes the signals
    assert not any(value.startswith(("PIP_", "http")) for value in config["Env"])


@needs_engine
def test_nothing_of_it_can_be_written_by_its_user(image: str) -> None:
    found = docker(
        *("run", "--rm", "--network=none", "--entrypoint=find", image),
        *("/", "-xdev", "-writable", "-not", "-type", "l", "-not", "-path", "/tmp", "-not", "-path", "/proc/*"),
        *("-not", "-path", "/dev/*", "-not", "-path", "/sys/*"),
        check=False,
    )
    own = [line for line in found.splitlines() if not line.startswith("find:")]
    assert set(own) <= {"/var/tmp", "/run/lock", "/var/lock"}  # open to everybody in every Debian


@needs_engine
def test_a_command_is_run_too(image: str) -> None:
    assert docker("run", "--rm", *restricted(), image, "--version").startswith("anabranch, version ")


@needs_engine
@pytest.mark.parametrize("service", ["orchestrator", "history", "simulate"])
async def test_sigterm_ends_a_service_in_good_order(image: str, service: str) -> None:
    """It is pid 1: a signal without a handler would be ignored, and the pod be killed at the end of its grace."""
    with container(image, service, options=("--health-interval=1s",)) as name:
        await becomes(name, health_is("healthy"))
        since = time.monotonic()
        docker("kill", "--signal=TERM", name)
        ended = await becomes(name, lambda now: now["Status"] == "exited")
        assert (ended["ExitCode"], ended["OOMKilled"]) == (0, False), docker("logs", name)
        assert time.monotonic() - since < STOP_TIMEOUT_S
        assert '"event":"stopped"' in docker("logs", name)


@needs_engine
async def test_sigterm_while_the_service_is_being_imported_ends_it_too(image: str) -> None:
    """Importing takes a second. What comes before, while the interpreter starts, is ignored as for every pid 1."""
    with container(image, "orchestrator") as name:
        await becomes(name, lambda now: handles_sigterm(now["Pid"]))
        docker("kill", "--signal=TERM", name)
        ended = await becomes(name, lambda now: now["Status"] == "exited")
        assert ended["ExitCode"] == 0, docker("logs", name)
        assert '"event":"listening"' not in docker("logs", name)


def handles_sigterm(pid: int) -> bool:
    """Return whether a process of this machine has a handler for SIGTERM."""
    caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


@needs_engine
async def test_a_service_that_does_not_answer_is_unhealthy(image: str) -> None:
    options = ("--health-interval=1s", "--health-timeout=2s", "--health-retries=2", "--health-start-period=0s")
    with container(image, "simulate", options=options) as name:
        await becomes(name, health_is("healthy"))
        docker("kill", "--signal=STOP", name)
        await becomes(name, health_is("unhealthy"))
        docker("kill", "--signal=CONT", name)
        await becomes(name, health_is("healthy"))


# The whole stack from the image

PASSED_ON = (
    *("KAFKA_BOOTSTRAP_SERVERS", "KAFKA_SECURITY_PROTOCOL", "REDIS_URL", "ANABRANCH_HTTP_HOST", "ANABRANCH_HTTP_PORT"),
    *("ANABRANCH_RATE_LIMIT", "ANABRANCH_READ_RATE_LIMIT", "ANABRANCH_TOPIC_PREFIX", "ANABRANCH_HTTP_ALLOW"),
)


@pytest_asyncio.fixture
async def stack(image: str, tmp_path: Path) -> AsyncIterator[LocalStack]:
    def from_image(service: Service) -> Service:
        options = restricted("--rm", "--label=anabranch-test", *(f"--env={name}" for name in PASSED_ON), network="host")
        return Service(service.role, (shutil.which("docker") or "docker", "run", *options, image, service.role))

    services = [from_image(service) for service in anabranch_services()]
    try:
        async with LocalStack(
            tmp_path, services=services, database_url="", port=0, restart=False, stop_deadline_s=2 * STOP_TIMEOUT_S
        ) as stack:
            yield stack
    finally:
        for left in docker("ps", "--quiet", "--filter=label=anabranch-test").split():
            docker("rm", "--force", left)


@needs_engine
async def test_a_stack_of_containers_runs_pipelines(stack: LocalStack) -> None:
    """Every service becomes ready read-only, without rights; what they do together is what they do elsewhere."""
    async with AnabranchClient(stack.gateway_url) as client:
        accepted = await client.submit(diamond("simulate"), inputs={"n": 7})
        ended = [run async for run in client.watch(accepted.id)][-1]
        assert (ended.status, ended.outputs) == ("succeeded", right_outputs(7))
        query = {"uses": "sql", "with": {"query": "SELECT 6 * 7 AS answer", "sources": {}}}
        accepted = await client.submit({"name": "scratch", "steps": {"ask": query}})
        ended = [run async for run in client.watch(accepted.id)][-1]
        assert ended.status == "succeeded", ended.steps["ask"].error
    assert stack.names(GATEWAY) == ["gateway"]
