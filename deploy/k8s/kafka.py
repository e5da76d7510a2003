"""Kafka by Strimzi: the topics of the topic table, and a user per service with the least rights that it needs.

Who writes and who reads a topic stands in the table; `ROLES` says which user that is. Beside topics a service needs its
consumer groups, the orchestrator the transactional ids of its partitions, the gateway a look at what others have
committed, and everybody to see what the settings of the topics are that it checks at its start.
"""

from collections.abc import Iterable
from typing import Final

from anabranch.deploy.k8s.objects import Object, metadata
from anabranch.deploy.k8s.services import WORKLOADS, Workload
from anabranch.deploy.local.services import STEP_TYPES
from anabranch.shared.contracts import groups
from anabranch.shared.contracts.topics import (
    CONTROL,
    DEAD_LETTERS,
    DEFAULT_PARTITIONS,
    DEFAULT_PREFIX,
    INBOX,
    RUN_EVENTS,
    STEPS,
    TOPICS,
    Topic,
)
from anabranch.shared.contracts.topics import STEP_TYPES as ANNOUNCEMENTS

CLUSTER: Final = "kafka"
API: Final = "kafka.strimzi.io/v1"
REPLICAS: Final = 3
IN_SYNC: Final = 2

OPERATOR: Final = "operator"
"""Whoever uses `anabranch keys`, `replay` and `doctor`."""

AUTOSCALER: Final = "autoscaler"
"""KEDA: it sees how far the workers are."""

_CONSUMERS: Final = ("orchestrator", "history", *STEP_TYPES)  # of "any consumer"
_OPERATORS: Final = "operators"

Rule = dict[str, object]


def topic_objects() -> list[Object]:
    """Return every topic of the table, and a command topic per step type of the house."""
    return [
        _topic(topic, step_type)
        for topic in TOPICS
        for step_type in (STEP_TYPES if topic is STEPS else ("",))
    ]  # fmt: skip


def _topic(topic: Topic, step_type: str) -> Object:
    name = topic.name(DEFAULT_PREFIX, step_type)
    return {
        "apiVersion": API,
        "kind": "KafkaTopic",
        "metadata": _of_cluster(name),
        "spec": {
            "topicName": name,
            "partitions": topic.partition_count(runs=DEFAULT_PARTITIONS, steps=DEFAULT_PARTITIONS),
            "replicas": REPLICAS,
            "config": topic.settings()
            | {"min.insync.replicas": str(IN_SYNC), "unclean.leader.election.enable": "false"},
        },
    }


def _of_cluster(name: str) -> Object:
    found = metadata(name)
    found["labels"] |= {"strimzi.io/cluster": CLUSTER}
    return found


def user_objects() -> list[Object]:
    """Return a user per service, one for operators and one for the autoscaler."""
    services = [_user(workload.name, rules_of(workload.service)) for workload in WORKLOADS]
    return [*services, _user(OPERATOR, operator_rules()), _user(AUTOSCALER, autoscaler_rules())]


def _user(name: str, rules: Iterable[Rule]) -> Object:
    return {
        "apiVersion": API,
        "kind": "KafkaUser",
        "metadata": _of_cluster(name),
        "spec": {
            "authentication": {"type": "scram-sha-512"},
            "authorization": {"type": "simple", "acls": list(rules)},
        },
    }


def rules_of(service: str) -> list[Rule]:
    """Return the rights of a service."""
    writes = [topic for topic in TOPICS if _is_one_of(service, topic.written_by)]
    reads = [topic for topic in TOPICS if _is_one_of(service, topic.read_by)]
    looks_at = [topic for topic in _looked_at(service) if topic not in writes and topic not in reads]
    used = [topic for topic in TOPICS if topic in writes or topic in reads]
    return [
        *(_on_topic(topic, service, _operations(topic, writes, reads)) for topic in used),
        *(_on_topic(topic, service, ["Describe", "DescribeConfigs"]) for topic in looks_at),
        *_groups(service),
    ]


def _is_one_of(service: str, roles: Iterable[str]) -> bool:
    names = {service, "steps"} if service in STEP_TYPES else {service}
    if service in _CONSUMERS:
        names.add("any consumer")
    return not names.isdisjoint(roles)


def _operations(topic: Topic, writes: list[Topic], reads: list[Topic]) -> list[str]:
    return [
        *(["Read"] if topic in reads or topic is ANNOUNCEMENTS else []),  # who announces looks whether it still stands
        *(["Write"] if topic in writes else []),
        "Describe",
        "DescribeConfigs",
    ]


def _looked_at(service: str) -> tuple[Topic, ...]:
    """Return the topics that are neither read nor written, but checked at the start or measured for their lag."""
    if service in STEP_TYPES:
        return (INBOX, CONTROL, ANNOUNCEMENTS, DEAD_LETTERS)
    return {"gateway": (INBOX, RUN_EVENTS, STEPS)}.get(service, ())


def _on_topic(topic: Topic, service: str, operations: list[str]) -> Rule:
    if topic is not STEPS:
        return _rule("topic", topic.name(DEFAULT_PREFIX), operations)
    if service in STEP_TYPES:
        return _rule("topic", topic.name(DEFAULT_PREFIX, service), operations)
    return _rule("topic", topic.name(DEFAULT_PREFIX), operations, is_prefix=True)  # of any type, announced whenever


def _groups(service: str) -> list[Rule]:
    prefix = DEFAULT_PREFIX
    match service:
        case "orchestrator":
            own = groups.orchestrators(prefix)
            return [
                _rule("group", own, ["Read", "Describe"]),
                _rule("transactionalId", f"{own}-", ["Write", "Describe"], is_prefix=True),
            ]
        case "history":
            return [_rule("group", name(prefix), ["Read", "Describe"]) for name in (groups.history, groups.record)]
        case "gateway":  # how far orchestrators and workers are
            return [
                _rule("group", groups.orchestrators(prefix), ["Describe"]),
                _rule("group", groups.workers(prefix, ""), ["Describe"], is_prefix=True),
            ]
        case _:
            return [_rule("group", groups.workers(prefix, service), ["Read", "Describe"])]


def operator_rules() -> list[Rule]:
    """Return the rights of operators: to read everything, and to write what the table says."""
    written = [topic for topic in TOPICS if _OPERATORS in topic.written_by]
    return [
        _rule("topic", f"{DEFAULT_PREFIX}.", ["Read", "Describe", "DescribeConfigs"], is_prefix=True),
        *(_rule("topic", topic.name(DEFAULT_PREFIX), ["Write"]) for topic in written),
        _rule("group", f"{DEFAULT_PREFIX}.", ["Describe"], is_prefix=True),
    ]


def autoscaler_rules() -> list[Rule]:
    """Return the rights of KEDA: the ends of the command topics, and what their workers have committed."""
    return [
        _rule("topic", STEPS.name(DEFAULT_PREFIX), ["Describe"], is_prefix=True),
        _rule("group", groups.workers(DEFAULT_PREFIX, ""), ["Describe"], is_prefix=True),
    ]


def _rule(kind: str, name: str, operations: list[str], *, is_prefix: bool = False) -> Rule:
    pattern = "prefix" if is_prefix else "literal"
    return {"resource": {"type": kind, "name": name, "patternType": pattern}, "operations": operations, "host": "*"}


def login_patch(workload: Workload) -> Object:
    """Return what a Deployment needs to log in to Strimzi's Kafka: its password and the authority, as files."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": workload.name},
        "spec": {"template": {"spec": {
            "containers": [{
                "name": workload.service,
                "env": [
                    {"name": "KAFKA_SASL_USERNAME", "value": workload.name},
                    {"name": "KAFKA_SASL_PASSWORD_FILE", "value": "/etc/kafka/user/password"},
                    {"name": "KAFKA_SSL_CAFILE", "value": "/etc/kafka/ca/ca.crt"},
                ],
                "volumeMounts": [
                    {"name": "kafka-user", "mountPath": "/etc/kafka/user", "readOnly": True},
                    {"name": "kafka-ca", "mountPath": "/etc/kafka/ca", "readOnly": True},
                ],
            }],
            "volumes": [
                {"name": "kafka-user", "secret": {"secretName": workload.name, "defaultMode": 0o440,
                                                  "items": [{"key": "password", "path": "password"}]}},
                {"name": "kafka-ca", "secret": {"secretName": f"{CLUSTER}-cluster-ca-cert", "defaultMode": 0o440,
                                                "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            ],
        }}},
    }  # fmt: skip
