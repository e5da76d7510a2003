"""Tries the local overlay on a real cluster: `python -m anabranch.deploy.k8s.trial`, with the cluster in KUBECONFIG.

Applies it, waits until all is ready, runs the README's examples through the gateway's Service, then under load restarts
every Deployment, kills pods at random, scales step services, drains the node, and rolls out an image that is not there.
Prints how long everything took, and exits with 1 when a run did not end right, an answer was 5xx without `Retry-After`
or a Deployment did not come back. A connection that broke is counted and tried again.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from anabranch.deploy.k8s.objects import text_of
from anabranch.deploy.k8s.operators import stand_ins
from anabranch.deploy.k8s.services import WORKLOADS

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
NAMESPACE: Final = "anabranch"
CRDS: Final = ROOT / ".tools" / "crds"
KUBECTL: Final = os.environ.get("KUBECTL", "kubectl")
_READY_S: Final = 300
_DRIVER: Final = "deploy/k8s/driver.yaml"
_SAID: Final = "/tmp/load"  # noqa: S108 - in the driver's own directory
_GONE: Final = "anabranch:is-not-there"

DEPLOYMENTS: Final = tuple(workload.name for workload in WORKLOADS)
STEPS: Final = tuple(workload.name for workload in WORKLOADS if workload.is_step)

EXAMPLES: Final = (
    ("data-pipeline/airports.yaml", "url=http://examples:8090/airports.csv"),
    ("site-audit/audit.yaml", "site=http://examples:8090/docs/"),
)


class TrialFailed(Exception):
    """Something that was tried did not do what it must."""


def kubectl(*arguments: str, text: str | None = None, check: bool = True, timeout_s: float = _READY_S + 30) -> str:
    """Run kubectl in the namespace; return what it prints."""
    done = subprocess.run(  # noqa: S603 - our own words
        [KUBECTL, "--namespace", NAMESPACE, *arguments],
        check=False,
        input=text,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    if check and done.returncode:
        raise TrialFailed(f"kubectl {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Trial:
    """The phases, and when each was."""

    def __init__(self, rate: float, seed: int) -> None:
        self._rate = rate
        self._chance = random.Random(seed)  # noqa: S311 - so that a trial can be made again
        self._phases: list[tuple[str, float, float]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is done in the context."""
        began = time.time()
        say(f"{name} …")
        yield
        self._phases.append((name, began, time.time()))
        say(f"{name}: {time.time() - began:.1f} s")

    def run(self) -> None:
        """Carry out all of it. Raises `TrialFailed`."""
        with self.phase("apply, until all is ready"):
            self._apply()
        with self.phase("examples"):
            self._examples()
        with self._load():
            with self.phase("steady"):
                time.sleep(20)
            for name in DEPLOYMENTS:
                with self.phase(f"restart {name}"):
                    kubectl("rollout", "restart", f"deployment/{name}")
                    self._rolled_out(name)
            with self.phase("kill ten pods"):
                self._kill(10)
            with self.phase("scale steps to 3"):
                self._scale(3)
            with self.phase("scale steps to 1"):
                self._scale(1)
            with self.phase("drain, uncordon"):
                self._drain()
            for name in ("gateway", "orchestrator"):
                with self.phase(f"image of {name} that is not there, undone"):
                    self._bad_image(name)
            with self.phase("steady again"):
                time.sleep(20)
        self._with_operators()

    def _apply(self) -> None:
        kubectl("apply", "--server-side", "-k", str(HERE / "overlays" / "local"))
        kubectl("wait", "--for=condition=Complete", "job/migrate", f"--timeout={_READY_S}s")
        for kind, name in [("statefulset", "kafka"), ("deployment", "examples")]:
            kubectl("rollout", "status", f"{kind}/{name}", f"--timeout={_READY_S}s")
        for name in DEPLOYMENTS:
            self._rolled_out(name)
        kubectl("apply", "-f", str(ROOT / _DRIVER))
        kubectl("wait", "--for=condition=Ready", "pod/driver", "--timeout=60s")

    def _examples(self) -> None:
        """Run what the README shows, by the command, through the Service."""
        block = re.search(r"write `hello.yaml`\n\n```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
        if block is None:
            raise TrialFailed("the README has no hello.yaml")
        said = kubectl("exec", "-i", "driver", "--", "anabranch", "run", "-", "--input", "name=Murray", text=block[1])
        if "Hello, Murray!" not in said:
            raise TrialFailed(f"the README's example put out {said!r}")
        for file, given in EXAMPLES:
            kubectl("exec", "driver", "--", "anabranch", "run", f"/opt/stores/{file}", "--input", given)

    @contextmanager
    def _load(self) -> Iterator[None]:
        """Submit runs while the context lasts, and judge them when it is over."""
        command = f"exec python -m anabranch.deploy.k8s.load http://gateway {self._rate} > {_SAID} 2>&1"
        kubectl("exec", "driver", "--", "sh", "-c", f"({command}) & echo $! > /tmp/load.pid")
        yield
        with self.phase("last runs"):
            kubectl("exec", "driver", "--", "sh", "-c", "kill -TERM $(cat /tmp/load.pid)")
            deadline = time.monotonic() + _READY_S
            while '"answers"' not in (said := kubectl("exec", "driver", "--", "cat", _SAID)):
                if time.monotonic() > deadline:
                    raise TrialFailed(f"the load did not end: {said[-2000:]}")
                time.sleep(1)
        self._judge([json.loads(line) for line in said.splitlines()])

    def _judge(self, lines: list[dict[str, Any]]) -> None:
        *lines, summary = lines
        runs = [line for line in lines if "number" in line]
        say(f"{len(runs)} runs; answers: {summary['answers']}; ends: {summary['ends']}")
        say(f"{'':<48} {'s':>6} {'runs':>5} {'broken':>6}  latency p50, p99, worst in s")
        for name, began, ended in self._phases:
            took = sorted(run["took"] for run in runs if began <= run["at"] < ended)
            broken = sum("broken" in line and began <= line["at"] < ended for line in lines)
            latencies = ", ".join(f"{_share(took, at):.2f}" for at in (0.5, 0.99, 1.0)) if took else ""
            say(f"{name:<48} {ended - began:>6.1f} {len(took):>5} {broken:>6}  {latencies}")
        if summary["faults"]:
            raise TrialFailed("\n".join(summary["faults"]))

    def _with_operators(self) -> None:
        """Let the API server take staging and production, with the kinds of the operators: a warning is an error."""
        if not CRDS.is_dir():
            say("staging and production are not applied: make tools fetches the kinds of the operators")
            return
        with self.phase("local taken away"):
            kubectl("delete", "namespace", NAMESPACE, "--timeout=120s")
        kubectl("apply", "--server-side", "-f", str(CRDS))
        kubectl("apply", "--server-side", "-f", "-", text=text_of(stand_ins()))
        kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        for overlay in ("staging", "production"):
            with self.phase(f"apply {overlay}"):
                text = kubectl("kustomize", str(HERE / "overlays" / overlay))
                done = subprocess.run(  # noqa: S603 - our own words
                    [KUBECTL, "apply", "--server-side", "--warnings-as-errors", "-f", "-"],
                    check=False, input=text, capture_output=True, text=True, timeout=120,
                )  # fmt: skip
                if done.returncode:
                    raise TrialFailed(f"{overlay}: {done.stderr[-3000:]}")

    def _rolled_out(self, name: str) -> None:
        kubectl("rollout", "status", f"deployment/{name}", f"--timeout={_READY_S}s")

    def _all_ready(self) -> None:
        for name in DEPLOYMENTS:
            self._rolled_out(name)

    def _kill(self, times: int) -> None:
        for _ in range(times):
            pods = self._pods()
            kubectl("delete", "pod", "--force", "--grace-period=0", self._chance.choice(pods))
            time.sleep(3)
        self._all_ready()

    def _pods(self, *conditions: str) -> list[str]:
        found = kubectl("get", "pods", "-l", "app.kubernetes.io/part-of=anabranch", "-o", "json")
        return sorted(
            pod["metadata"]["name"]
            for pod in json.loads(found)["items"]
            if pod["metadata"]["labels"]["app.kubernetes.io/name"] in (conditions or DEPLOYMENTS)
            and "deletionTimestamp" not in pod["metadata"]
        )

    def _scale(self, count: int) -> None:
        kubectl("scale", f"--replicas={count}", *(f"deployment/{name}" for name in STEPS))
        self._all_ready()

    def _drain(self) -> None:
        """Drain the node: where it is the only one, what is evicted waits for it, and the budgets keep the rest."""
        [node, *others] = kubectl("get", "nodes", "-o", "name").split()
        kubectl(
            *("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=30s"),
            "--pod-selector=app.kubernetes.io/name notin (driver)",
            check=bool(others),
        )
        try:
            for name in ("gateway", "orchestrator", "history"):
                ready = kubectl("get", "deployment", name, "-o", "jsonpath={.status.readyReplicas}")
                if int(ready or 0) < 1:
                    raise TrialFailed(f"no pod of {name} was left by the drain")
        finally:
            kubectl("uncordon", node)
        self._all_ready()

    def _bad_image(self, name: str) -> None:
        before = kubectl("get", "deployment", name, "-o", "jsonpath={.status.readyReplicas}")
        kubectl("set", "image", f"deployment/{name}", f"{name}={_GONE}")
        kubectl("rollout", "status", f"deployment/{name}", "--timeout=15s", check=False)
        during = kubectl("get", "deployment", name, "-o", "jsonpath={.status.readyReplicas}")
        if during != before:
            raise TrialFailed(f"{name} had {before} ready pods, and {during} while an image was missing")
        kubectl("rollout", "undo", f"deployment/{name}")
        self._rolled_out(name)


def _share(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def main() -> None:
    """Run the trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=5.0, help="runs submitted each second")
    parser.add_argument("--seed", type=int, default=0, help="of which pods are killed")
    given = parser.parse_args()
    try:
        Trial(given.rate, given.seed).run()
    except TrialFailed as failure:
        say(f"FAILED: {failure}")
        say(kubectl("get", "pods", "-o", "wide", check=False))
        sys.exit(1)
    say("every accepted run ended right, and no answer was 5xx without Retry-After")


if __name__ == "__main__":
    main()
