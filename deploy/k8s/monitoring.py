"""What the Prometheus operator and Grafana read: where `/metrics` is, our rules, our dashboards."""

from pathlib import Path
from typing import Final

import yaml

from anabranch.deploy.k8s.objects import PART_OF, Object, metadata
from anabranch.deploy.k8s.services import METRICS_PORT_NAME

_DEPLOY: Final = Path(__file__).resolve().parents[1]
RULES: Final = _DEPLOY / "prometheus" / "rules"
DASHBOARDS: Final = _DEPLOY / "grafana" / "dashboards"


def pod_monitor() -> Object:
    """Return where the services answer `/metrics`, under the labels that rules and dashboards ask for."""

    def named(target: str, source: str) -> Object:
        return {"sourceLabels": [source], "targetLabel": target}

    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata("anabranch"),
        "spec": {
            "selector": {"matchLabels": PART_OF},
            "podMetricsEndpoints": [
                {
                    "port": METRICS_PORT_NAME,
                    "path": "/metrics",
                    "interval": "15s",
                    "relabelings": [
                        named("role", "__meta_kubernetes_pod_label_app_kubernetes_io_component"),
                        named("instance", "__meta_kubernetes_pod_name"),
                    ],
                }
            ],
        },
    }


def rules() -> list[Object]:
    """Return a PrometheusRule per file of rules."""
    return [
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": metadata(f"anabranch-{path.stem}"),
            "spec": yaml.safe_load(path.read_text()),
        }
        for path in sorted(RULES.glob("*.yml"))
    ]


def dashboards() -> list[Object]:
    """Return a ConfigMap per dashboard, with the label by which Grafana's sidecar finds it."""
    found = []
    for path in sorted(DASHBOARDS.glob("*.json")):
        config = metadata(path.stem)
        config["labels"] |= {"grafana_dashboard": "1"}
        found.append(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": config, "data": {path.name: path.read_text()}}
        )
    return found
