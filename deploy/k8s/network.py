"""Who may talk to whom: nobody, except along the arrows of the architecture (docs/kubernetes.md has the picture).

The policies know our pods by their name and the stores by a label that this installation gives their pods
(`anabranch.dev/store`), whoever runs them.
"""

from typing import Any, Final

from anabranch.deploy.k8s.objects import PART_OF, Object, metadata, selector
from anabranch.deploy.k8s.services import (
    HTTP_PORT,
    INTERNET,
    KAFKA,
    MAIL,
    METRICS_PORT_NAME,
    MIGRATION,
    PORTS,
    REDIS,
    SQL,
    WORKLOADS,
    Workload,
)

STORE: Final = "anabranch.dev/store"
_PRIVATE: Final = ["10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"]
_PRIVATE_V6: Final = ["fc00::/7", "fe80::/10"]


def policies() -> list[Object]:
    """Return every policy: the denial, what all need, a policy per service, and one per store."""
    return [
        _policy("default-deny", {}, ingress=[], egress=[]),
        _policy("names", {}, egress=[_dns()]),
        _policy("metrics", {"matchLabels": PART_OF}, ingress=[_from_namespace("monitoring", METRICS_PORT_NAME)]),
        *(_of_service(workload) for workload in WORKLOADS),
        _policy(MIGRATION, {"matchLabels": selector(MIGRATION)}, egress=[_to_store(SQL)]),
        *(_of_store(store) for store in (KAFKA, REDIS, SQL)),
    ]


def _of_service(workload: Workload) -> Object:
    ingress = None
    if workload.service == "gateway":
        ingress = [_from_namespace("ingress-nginx", METRICS_PORT_NAME)]
    egress = [_to_store(store) for store in workload.talks_to if store in PORTS]
    if INTERNET in workload.talks_to:
        egress.append(_to_the_internet([80, 443] if workload.is_step else [443]))
    if MAIL in workload.talks_to:
        egress.append(_to_the_internet([465, 587]))
    return _policy(workload.name, {"matchLabels": selector(workload.name)}, ingress=ingress, egress=egress)


def _of_store(store: str) -> Object:
    """Return who may use a store: its clients on its port, its own pods among each other, its operator."""
    clients = [workload.name for workload in WORKLOADS if store in workload.talks_to]
    names = sorted([*clients, MIGRATION] if store == SQL else clients)
    own = {"podSelector": {"matchLabels": {STORE: store}}}
    ingress: list[Any] = [
        {
            "from": [{"podSelector": {"matchLabels": PART_OF, "matchExpressions": [
                {"key": "app.kubernetes.io/name", "operator": "In", "values": names}]}}],
            "ports": [_tcp(PORTS[store])],
        }
    ]  # fmt: skip
    egress: list[Any] = []
    if store != REDIS:  # clusters with an operator
        ingress += [{"from": [own]}, {"from": [_namespace(f"{store}-operator")]}]
        egress += [{"to": [own]}, {"ports": [_tcp(443), _tcp(6443)]}]  # the API server has no label
    if store == KAFKA:
        ingress.append({"from": [_namespace("keda")], "ports": [_tcp(PORTS[KAFKA])]})
    return _policy(store, {"matchLabels": {STORE: store}}, ingress=ingress, egress=egress)


def _to_store(store: str) -> Object:
    return {"to": [{"podSelector": {"matchLabels": {STORE: store}}}], "ports": [_tcp(PORTS[store])]}


def _to_the_internet(ports: list[int]) -> Object:
    blocks = [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": _PRIVATE}},
        {"ipBlock": {"cidr": "::/0", "except": _PRIVATE_V6}},
    ]
    return {"to": blocks, "ports": [_tcp(port) for port in ports]}


def _dns() -> Object:
    to = {**_namespace("kube-system"), "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}
    return {"to": [to], "ports": [{"protocol": "UDP", "port": 53}, _tcp(53)]}


def _from_namespace(name: str, port: str) -> Object:
    return {"from": [_namespace(name)], "ports": [_tcp(port)]}


def _namespace(name: str) -> Object:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _tcp(port: int | str) -> Object:
    return {"protocol": "TCP", "port": port}


def _policy(
    name: str, pods: Object, *, ingress: list[Any] | None = None, egress: list[Any] | None = None
) -> Object:  # fmt: skip
    """Return a policy for some pods; a direction that is None is left to the other policies."""
    rules: dict[str, Any] = {
        **({"ingress": ingress} if ingress else {}),
        **({"egress": egress} if egress else {}),
    }
    types = [kind for kind, given in (("Ingress", ingress), ("Egress", egress)) if given is not None]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(name),
        "spec": {"podSelector": pods, "policyTypes": types, **rules},
    }


assert HTTP_PORT not in PORTS.values()
