"""The objects of each service: Deployment, PodDisruptionBudget, ServiceAccount; of the gateway also Service and HPA."""

from typing import Any

from anabranch.deploy.k8s.objects import Object, labels, metadata, selector
from anabranch.deploy.k8s.services import (
    GRACE_S,
    HTTP_PORT,
    LEAVE_S,
    METRICS_PORT_NAME,
    MIGRATION,
    REDIS,
    SQL,
    STOP_S,
    WORKLOADS,
    Workload,
)

IMAGE = "anabranch"
SETTINGS = "anabranch-settings"
GATEWAY_SETTINGS = "gateway-settings"
_SECRETS_DIR = "/etc/anabranch/secrets"
_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "fsGroup": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def objects_of(workload: Workload) -> list[Object]:
    """Return every object of one service."""
    common = [service_account(workload.name, workload.service), deployment(workload), disruption_budget(workload)]
    if workload.service == "gateway":
        return [*common, service(workload), autoscaler(workload)]
    return common


def service_account(name: str, component: str) -> Object:
    """Return the account that a service runs as: it may ask the API server nothing."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(name, component),
        "automountServiceAccountToken": False,
    }


def deployment(workload: Workload) -> Object:
    """Return the Deployment. The gateway's count of replicas is its autoscaler's."""
    pod_labels = labels(workload.name, workload.service)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(workload.name, workload.service),
        "spec": {
            **({} if workload.service == "gateway" else {"replicas": 2}),
            "revisionHistoryLimit": 5,
            "progressDeadlineSeconds": 300,
            "minReadySeconds": 5,  # a pod that joins a group moves partitions: the next one waits until that is over
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": selector(workload.name)},
            "template": {"metadata": {"labels": pod_labels}, "spec": pod(workload)},
        },
    }


def pod(workload: Workload) -> Object:
    """Return a pod that keeps to the restricted standard, and may write to one directory alone."""
    return {
        "serviceAccountName": workload.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # they would set ANABRANCH_… variables of their own
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": _POD_SECURITY,
        "topologySpreadConstraints": [
            _spread(workload, "topology.kubernetes.io/zone"),
            _spread(workload, "kubernetes.io/hostname"),
        ],
        "containers": [container(workload)],
        "volumes": [
            {"name": "tmp", "emptyDir": {"sizeLimit": workload.scratch}},
            *([_step_secrets()] if workload.is_step else []),
        ],
    }


def _spread(workload: Workload, key: str) -> Object:
    return {
        "maxSkew": 1,
        "topologyKey": key,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector(workload.name)},
        "matchLabelKeys": ["pod-template-hash"],
    }


def container(workload: Workload) -> Object:
    """Return the one container of a pod."""
    return {
        "name": workload.service,
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "args": [workload.service],
        "ports": [{"name": METRICS_PORT_NAME, "containerPort": HTTP_PORT}],
        "envFrom": [{"configMapRef": {"name": name}} for name in _settings_of(workload)],
        "env": environment(workload),
        "resources": {
            "requests": {"cpu": workload.cpu, "memory": workload.memory, "ephemeral-storage": "64Mi"},
            "limits": {"memory": workload.memory_limit, "ephemeral-storage": _with_logs(workload.scratch)},
        },
        "securityContext": _RESTRICTED,
        **({"lifecycle": {"preStop": {"sleep": {"seconds": LEAVE_S}}}} if workload.service == "gateway" else {}),
        "startupProbe": probe("/healthz", periodSeconds=1, timeoutSeconds=2, failureThreshold=60),
        "readinessProbe": probe("/readyz", periodSeconds=2, timeoutSeconds=2, failureThreshold=2),
        # A loop that is blocked for half a minute; the service being without Kafka is no reason to kill it.
        "livenessProbe": probe("/healthz", periodSeconds=10, timeoutSeconds=5, failureThreshold=3),
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the container's own
            *([{"name": "step-secrets", "mountPath": _SECRETS_DIR, "readOnly": True}] if workload.is_step else []),
        ],
    }


def _settings_of(workload: Workload) -> list[str]:
    return [SETTINGS, GATEWAY_SETTINGS] if workload.service == "gateway" else [SETTINGS]


def probe(path: str, **numbers: int) -> Object:
    """Return a probe of the service's own HTTP port."""
    return {"httpGet": {"path": path, "port": METRICS_PORT_NAME}, **numbers}


def environment(workload: Workload) -> list[Object]:
    """Return what differs between services; what all share is in the ConfigMap."""
    from_secrets = {
        REDIS: _secret("REDIS_URL", "anabranch-redis", "url"),
        SQL: _secret("DATABASE_URL", "anabranch-database", "url"),
    }
    found = [from_secrets[store] for store in workload.talks_to if store in from_secrets]
    return [*found, *([{"name": "ANABRANCH_SECRETS_DIR", "value": _SECRETS_DIR}] if workload.is_step else [])]


def _secret(variable: str, name: str, key: str) -> Object:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}


def _step_secrets() -> Object:
    """Return the secrets that steps may name, if there are any."""
    return {"name": "step-secrets", "secret": {"secretName": "step-secrets", "optional": True, "defaultMode": 0o440}}


def _with_logs(scratch: str) -> str:
    return "256Mi" if scratch.endswith("Mi") else f"{int(scratch.removesuffix('Gi')) + 1}Gi"


def disruption_budget(workload: Workload) -> Object:
    """Return the budget: one pod at a time goes on purpose."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(workload.name, workload.service),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector(workload.name)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def service(workload: Workload) -> Object:
    """Return the Service that clients use."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(workload.name, workload.service),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(workload.name),
            "ports": [{"name": "http", "port": 80, "targetPort": METRICS_PORT_NAME}],
        },
    }


def autoscaler(workload: Workload) -> Object:
    """Return the autoscaler: quick to grow, slow to shrink, since clients hold streams open."""
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata(workload.name, workload.service),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": workload.name},
            "minReplicas": 2,
            "maxReplicas": 10,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}},
                }
            ],
            "behavior": {
                "scaleUp": {"policies": [{"type": "Percent", "value": 100, "periodSeconds": 30}]},
                "scaleDown": {
                    "stabilizationWindowSeconds": 300,
                    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
                },
            },
        },
    }


def migration() -> list[Object]:
    """Return the Job that brings the tables up to date, before the services of that version are rolled out."""
    name, pod_labels = MIGRATION, labels(MIGRATION, MIGRATION)
    like = next(workload for workload in WORKLOADS if workload.service == "history")
    same: dict[str, Any] = {
        key: value
        for key, value in container(like).items()
        if key in ("image", "imagePullPolicy", "envFrom", "resources", "securityContext")
    }
    return [
        service_account(name, name),
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata(
                name,
                name,
                annotations={
                    "argocd.argoproj.io/hook": "PreSync",
                    "argocd.argoproj.io/hook-delete-policy": "BeforeHookCreation",
                },
            ),
            "spec": {
                "backoffLimit": 6,
                "activeDeadlineSeconds": 3600,
                "ttlSecondsAfterFinished": 3600,
                "template": {
                    "metadata": {"labels": pod_labels},
                    "spec": {
                        "serviceAccountName": name,
                        "automountServiceAccountToken": False,
                        "enableServiceLinks": False,
                        "restartPolicy": "Never",
                        "securityContext": _POD_SECURITY,
                        "containers": [
                            {
                                "name": name,
                                "args": ["db", "upgrade"],
                                "env": [_secret("DATABASE_URL", "anabranch-database", "url")],
                                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
                                **same,
                            }
                        ],
                        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}],
                    },
                },
            },
        },
    ]


assert GRACE_S > LEAVE_S + STOP_S + 5, "a pod is killed after the service has ended itself, not before"
