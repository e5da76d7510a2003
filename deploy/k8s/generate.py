"""Write the manifests that follow from tables: `python -m anabranch.deploy.k8s.generate`.

Services, topics, rights, arrows, scaling and monitoring come from the tables of the code; what is beside them in
`base`, `components` and `overlays` is written by hand. A test compares the files with what this would write.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from anabranch.deploy.k8s import kafka, monitoring, network, scaling, workloads
from anabranch.deploy.k8s.objects import Object, component, kustomization, text_of
from anabranch.deploy.k8s.services import MIGRATION, WORKLOADS

HERE: Final = Path(__file__).resolve().parent


def files() -> Iterator[tuple[Path, str]]:
    """Yield each file and its text."""
    yield from _base()
    yield from _kafka()
    yield from _scaling()
    yield from _written("components/network-policies", {"policies.yaml": network.policies()})
    yield from _written(
        "components/monitoring",
        {
            "pod-monitor.yaml": [monitoring.pod_monitor()],
            "rules.yaml": monitoring.rules(),
            "dashboards.yaml": monitoring.dashboards(),
        },
    )


def _base() -> Iterator[tuple[Path, str]]:
    for workload in WORKLOADS:
        folder = HERE / "base" / workload.name
        yield folder / "kustomization.yaml", text_of([kustomization(["objects.yaml"])])
        yield folder / "objects.yaml", text_of(workloads.objects_of(workload))
    folder = HERE / "base" / MIGRATION
    yield folder / "kustomization.yaml", text_of([kustomization(["objects.yaml"])])
    yield folder / "objects.yaml", text_of(workloads.migration())


def _kafka() -> Iterator[tuple[Path, str]]:
    folder = HERE / "components" / "kafka"
    yield folder / "topics.yaml", text_of(kafka.topic_objects())
    yield folder / "users.yaml", text_of(kafka.user_objects())
    yield folder / "login.yaml", text_of(kafka.login_patch(workload) for workload in WORKLOADS)


def _scaling() -> Iterator[tuple[Path, str]]:
    folder = HERE / "components" / "keda"
    patches = [scaling.count_is_scaled(workload) for workload in WORKLOADS if workload.is_step]
    yield folder / "kustomization.yaml", text_of([component(["scaling.yaml"], patches=patches)])
    yield folder / "scaling.yaml", text_of(scaling.objects())


def _written(folder: str, objects: dict[str, Iterable[Object]]) -> Iterator[tuple[Path, str]]:
    yield HERE / folder / "kustomization.yaml", text_of([component(objects)])
    for name, of_file in objects.items():
        yield HERE / folder / name, text_of(of_file)


def main() -> None:
    """Write all of them."""
    for path, text in files():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        sys.stdout.write(f"{path.relative_to(HERE)}\n")


if __name__ == "__main__":
    main()
