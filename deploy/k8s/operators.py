"""Stand-ins for the kinds of Strimzi and CloudNativePG, whose definitions are in no package that can be had here."""

from anabranch.deploy.k8s.kafka import API
from anabranch.deploy.k8s.objects import Object

_KINDS = (
    *((API, kind) for kind in ("Kafka", "KafkaNodePool", "KafkaTopic", "KafkaUser")),
    ("postgresql.cnpg.io/v1", "Cluster"),
)


def stand_ins() -> list[Object]:
    """Return a definition per kind that takes any spec: an API server stores such objects unchecked."""
    return [_definition(api, kind) for api, kind in _KINDS]


def _definition(api: str, kind: str) -> Object:
    group, _, version = api.partition("/")
    plural = f"{kind.lower()}s"
    spec = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "scope": "Namespaced",
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}},
                }
            ],
        },
    }
