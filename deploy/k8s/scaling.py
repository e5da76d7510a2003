"""Step services by KEDA: as many workers as the lag of their commands is worth, up to the partitions, down to none.

Lag alone is not enough to stop the last worker: the command of a step that takes longer is released when the step is
leased, so that a worker with an hour's work in hand has no lag. `anabranch_steps_busy` says that it has.
"""

from typing import Final

from anabranch.deploy.k8s.kafka import AUTOSCALER, CLUSTER
from anabranch.deploy.k8s.objects import Object, metadata
from anabranch.deploy.k8s.services import KAFKA, PORTS, WORKLOADS, Workload
from anabranch.shared.contracts import groups
from anabranch.shared.contracts.topics import DEFAULT_PARTITIONS, DEFAULT_PREFIX, STEPS

BOOTSTRAP: Final = f"{CLUSTER}-kafka-bootstrap:{PORTS[KAFKA]}"
PROMETHEUS: Final = "http://prometheus-operated.monitoring.svc:9090"
_LOGIN: Final = "kafka-login"


def objects() -> list[Object]:
    """Return KEDA's login, and what scales each step service."""
    return [_login(), *(_scaled(workload) for workload in WORKLOADS if workload.is_step)]


def _login() -> Object:
    password = {"parameter": "password", "name": AUTOSCALER, "key": "password"}
    authority = {"parameter": "ca", "name": f"{CLUSTER}-cluster-ca-cert", "key": "ca.crt"}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "TriggerAuthentication",
        "metadata": metadata(_LOGIN),
        "spec": {"secretTargetRef": [password, authority]},
    }


def _scaled(workload: Workload) -> Object:
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata(workload.name, workload.service),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": workload.name},
            "pollingInterval": 5,
            "cooldownPeriod": 300,
            "minReplicaCount": 0,
            "maxReplicaCount": DEFAULT_PARTITIONS,
            "triggers": [_lag(workload), _busy(workload)],
        },
    }


def _lag(workload: Workload) -> Object:
    return {
        "type": "kafka",
        "metadata": {
            "bootstrapServers": BOOTSTRAP,
            "consumerGroup": groups.workers(DEFAULT_PREFIX, workload.service),
            "topic": STEPS.name(DEFAULT_PREFIX, workload.service),
            "lagThreshold": str(workload.lag_for_one),
            "activationLagThreshold": "0",
            "offsetResetPolicy": "earliest",
            "allowIdleConsumers": "false",
            "sasl": "scram_sha512",
            "username": AUTOSCALER,
            "tls": "enable",
        },
        "authenticationRef": {"name": _LOGIN},
    }


def _busy(workload: Workload) -> Object:
    return {
        "type": "prometheus",
        "metadata": {
            "serverAddress": PROMETHEUS,
            "query": f'sum(anabranch_steps_busy{{uses="{workload.service}"}}) or vector(0)',
            "threshold": str(workload.lag_for_one),
            "activationThreshold": "0",
        },
    }


def count_is_scaled(workload: Workload) -> Object:
    """Return the patch that takes the count out of a Deployment: it is KEDA's."""
    return {
        "target": {"kind": "Deployment", "name": workload.name},
        "patch": "- op: remove\n  path: /spec/replicas\n",
    }
