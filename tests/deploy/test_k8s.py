"""The manifests: they are what the tables say, keep to our rules, and are valid on three versions of Kubernetes."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from anabranch.deploy.k8s import kafka
from anabranch.deploy.k8s.generate import HERE, files
from anabranch.deploy.k8s.objects import GENERATED
from anabranch.deploy.k8s.services import GRACE_S, STOP_S, WORKLOADS
from anabranch.deploy.local.services import STEP_TYPES, anabranch_services
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.services.history.settings import HistorySettings
from anabranch.services.orchestrator.settings import OrchestratorSettings
from anabranch.services.steps.settings import StepServiceSettings
from anabranch.shared.contracts.topics import DEFAULT_PREFIX, STEPS, TOPICS
from anabranch.shared.runtime.settings import Settings, unknown_names
from tests.support.manifests import (
    K8S,
    OVERLAYS,
    TOOLS,
    VERSIONS,
    Object,
    is_ours,
    named,
    needs,
    needs_kubectl,
    objects,
    of_kind,
    pods,
    text_of,
    tool,
)

WITH_OPERATORS = ("staging", "production")
FROM_OPERATORS = ("kafka.strimzi.io", "postgresql.cnpg.io")  # whose schemas cannot be had here
WATCHDOG_S = 5  # after which a service that hangs ends itself
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
pytestmark = needs_kubectl


# What follows from tables


def test_generated_files_are_current() -> None:
    """`python -m anabranch.deploy.k8s.generate` would change nothing."""
    stale = [str(path.relative_to(HERE)) for path, text in files() if not path.exists() or path.read_text() != text]
    assert stale == []


def test_no_generated_file_is_left_over() -> None:
    written = {path for path, _ in files()}
    found = {path for path in K8S.rglob("*.yaml") if path.read_text().startswith(GENERATED)}
    assert {path.resolve() for path in found} == written


def test_every_service_has_a_deployment() -> None:
    assert {workload.service for workload in WORKLOADS} == {service.role for service in anabranch_services()}
    deployed = {each["metadata"]["name"] for each in of_kind("production", "Deployment")}
    assert deployed == {workload.name for workload in WORKLOADS}


def test_every_topic_of_the_table_is_declared_as_the_services_create_it() -> None:
    declared = {each["spec"]["topicName"]: each["spec"] for each in of_kind("production", "KafkaTopic")}
    names = {
        topic.name(DEFAULT_PREFIX, step_type): topic
        for topic in TOPICS
        for step_type in (STEP_TYPES if topic is STEPS else ("",))
    }
    assert set(declared) == set(names)
    for name, topic in names.items():
        assert declared[name]["partitions"] == topic.partition_count(runs=12, steps=12)
        assert declared[name]["config"].items() >= topic.settings().items()
        assert (declared[name]["replicas"], declared[name]["config"]["min.insync.replicas"]) == (3, "2")


def rights() -> dict[str, Counter[tuple[str, str, str]]]:
    """Return what each Kafka user may do: operation, kind and name, a prefix with a star."""
    found = {}
    for user in of_kind("production", "KafkaUser"):
        rules = user["spec"]["authorization"]["acls"]
        found[user["metadata"]["name"]] = Counter(
            (operation, rule["resource"]["type"], _pattern(rule["resource"]))
            for rule in rules
            for operation in rule["operations"]
        )
    return found


def _pattern(resource: Object) -> str:
    return str(resource["name"]) + ("*" if resource["patternType"] == "prefix" else "")


def may(operation: str, topic: str) -> set[str]:
    """Return the users that may do something with a topic."""
    return {
        user
        for user, rules in rights().items()
        if any(
            op == operation
            and kind == "topic"
            and (pattern == topic or (pattern[-1] == "*" and topic.startswith(pattern[:-1])))
            for op, kind, pattern in rules
        )
    }


def users(roles: tuple[str, ...], step_type: str = "") -> set[str]:
    """Return the Kafka users that the roles of the topic table are."""
    steps = {f"step-{each}" for each in STEP_TYPES}
    consumers = {"orchestrator", "history", *steps}
    meant = {"steps": {f"step-{step_type}"} if step_type else steps, "any consumer": consumers, "anyone": set()}
    return set().union(*(meant.get(role, {"operator" if role == "operators" else role}) for role in roles))


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.suffix)
def test_those_who_write_a_topic_may_and_nobody_else(topic: Any) -> None:
    for step_type in STEP_TYPES if topic is STEPS else ("",):
        name = topic.name(DEFAULT_PREFIX, step_type)
        assert may("Write", name) == users(topic.written_by, step_type)


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.suffix)
def test_those_who_read_a_topic_may_and_nobody_else(topic: Any) -> None:
    """But operators, who see everything, and who announces a type and looks whether that still stands."""
    for step_type in STEP_TYPES if topic is STEPS else ("",):
        announcers = users(("steps",)) if topic.suffix == "step-types" else set()
        name = topic.name(DEFAULT_PREFIX, step_type)
        assert may("Read", name) == users(topic.read_by, step_type) | {"operator"} | announcers


def test_nobody_has_a_right_to_everything() -> None:
    found = {(op, kind) for rules in rights().values() for op, kind, _ in rules}
    assert {op for op, _ in found} <= {"Read", "Write", "Describe", "DescribeConfigs"}
    assert {kind for _, kind in found} <= {"topic", "group", "transactionalId"}


def test_a_right_stands_once() -> None:
    assert {user: [rule for rule, times in rules.items() if times > 1] for user, rules in rights().items()} == {
        user: [] for user in rights()
    }


# Our rules


@each_overlay
def test_every_pod_keeps_to_the_restricted_standard(overlay: str) -> None:
    for name, _, spec in pods(overlay):
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert all({"emptyDir", "secret", "configMap"} & volume.keys() for volume in spec["volumes"]), name
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name


@each_overlay
def test_every_namespace_enforces_that_standard(overlay: str) -> None:
    [namespace] = of_kind(overlay, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    elsewhere = [named(each) for each in objects(overlay) if each["metadata"].get("namespace") not in
                 {namespace["metadata"]["name"], None}]  # fmt: skip
    assert elsewhere == []


@each_overlay
def test_no_pod_may_ask_the_api_server_or_is_told_of_services_by_variables(overlay: str) -> None:
    """Kubernetes would set ANABRANCH_HTTP_PORT itself, to an address, for a Service named anabranch-http."""
    for name, _, spec in pods(overlay):
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name


@each_overlay
def test_images_are_named_by_a_version(overlay: str) -> None:
    images = {container["image"] for _, _, spec in pods(overlay) for container in spec["containers"]}
    assert [image for image in images if image.rpartition(":")[2] in {image, "latest"}] == []


@each_overlay
def test_resources_are_asked_for_and_memory_and_disk_are_limited(overlay: str) -> None:
    """Not CPU: a limit would make a service wait while the node has time for it."""
    for name, _, spec in pods(overlay):
        for container in spec["containers"]:
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, name
            assert container["resources"]["limits"].keys() == {"memory", "ephemeral-storage"}, name
        for volume in spec["volumes"]:
            assert "emptyDir" not in volume or volume["emptyDir"].get("sizeLimit"), name


@each_overlay
def test_probes_are_three_different_ones(overlay: str) -> None:
    for name, labels, spec in pods(overlay):
        if name.startswith("Job/"):
            continue
        [container] = spec["containers"]
        probes = [container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]
        assert len({str(probe) for probe in probes}) == 3, name
        if is_ours(labels):
            assert [probe["httpGet"]["path"] for probe in probes] == ["/healthz", "/readyz", "/healthz"], name


@each_overlay
def test_a_pod_has_longer_to_end_than_its_service_takes(overlay: str) -> None:
    [settings] = [each for each in of_kind(overlay, "ConfigMap") if "ANABRANCH_STOP_TIMEOUT_S" in each["data"]]
    stop_s = float(settings["data"]["ANABRANCH_STOP_TIMEOUT_S"])
    assert stop_s == STOP_S
    for name, labels, spec in pods(overlay):
        if is_ours(labels) and not name.startswith("Job/"):
            pause = spec["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            assert spec["terminationGracePeriodSeconds"] == GRACE_S, name
            assert spec["terminationGracePeriodSeconds"] > pause + stop_s + WATCHDOG_S, name


@each_overlay
def test_every_replicated_workload_has_one_disruption_budget_and_is_spread(overlay: str) -> None:
    budgets = [each["spec"]["selector"]["matchLabels"] for each in of_kind(overlay, "PodDisruptionBudget")]
    for name, labels, spec in pods(overlay):
        if name.startswith("Job/") or name == "Deployment/examples":
            continue
        assert sum(budget.items() <= labels.items() for budget in budgets) == 1, name
        if is_ours(labels):
            keys = {each["topologyKey"] for each in spec["topologySpreadConstraints"]}
            assert keys == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}, name


@each_overlay
def test_what_a_pod_refers_to_is_there(overlay: str) -> None:
    """In the overlay, or made by an operator: Strimzi makes a Secret of each user, CloudNativePG `postgresql-app`."""
    there = {(each["kind"], each["metadata"]["name"]) for each in objects(overlay)}
    there |= {("Secret", each["spec"]["target"]["name"]) for each in of_kind(overlay, "ExternalSecret")}
    there |= {("Secret", each["metadata"]["name"]) for each in of_kind(overlay, "KafkaUser")}
    there |= {("Secret", f"{each['metadata']['name']}-cluster-ca-cert") for each in of_kind(overlay, "Kafka")}
    there |= {("Secret", f"{each['metadata']['name']}-app") for each in of_kind(overlay, "Cluster")}
    for name, _, spec in pods(overlay):
        assert {reference for reference in references(spec) if reference not in there} == set(), name


def references(spec: Object) -> set[tuple[str, str]]:
    """Return the objects that a pod needs, but for those that may be missing."""
    found = {("ServiceAccount", spec["serviceAccountName"])} if "serviceAccountName" in spec else set()
    for volume in spec["volumes"]:
        if "secret" in volume and not volume["secret"].get("optional"):
            found.add(("Secret", volume["secret"]["secretName"]))
        if "configMap" in volume:
            found.add(("ConfigMap", volume["configMap"]["name"]))
    for container in spec["containers"]:
        found |= {("ConfigMap", each["configMapRef"]["name"]) for each in container.get("envFrom", [])}
        for variable in container.get("env", []):
            if key := variable.get("valueFrom", {}).get("secretKeyRef"):
                found.add(("Secret", key["name"]))
    return found


@each_overlay
def test_a_service_is_told_nothing_that_it_does_not_know(overlay: str) -> None:
    """It would say so in its log at every start, as of a typing error."""
    kinds: dict[str, type[Settings]] = {
        "gateway": GatewaySettings, "history": HistorySettings, "orchestrator": OrchestratorSettings
    }  # fmt: skip
    config = {each["metadata"]["name"]: each.get("data", {}) for each in of_kind(overlay, "ConfigMap")}
    for name, labels, spec in pods(overlay):
        if is_ours(labels) and not name.startswith("Job/"):
            [container] = spec["containers"]
            told = {variable["name"] for variable in container["env"]}
            told.update(*(config[each["configMapRef"]["name"]] for each in container["envFrom"]))
            kind = kinds.get(container["name"], StepServiceSettings)
            assert unknown_names(kind, dict.fromkeys(told, "")) == [], name


@pytest.mark.parametrize("overlay", WITH_OPERATORS)
def test_no_secret_stands_in_the_manifests(overlay: str) -> None:
    assert of_kind(overlay, "Secret") == []


@pytest.mark.parametrize("overlay", WITH_OPERATORS)
def test_counts_that_are_an_autoscalers_stand_nowhere_else(overlay: str) -> None:
    scaled = {each["spec"]["scaleTargetRef"]["name"]: each for each in
              of_kind(overlay, "ScaledObject", "HorizontalPodAutoscaler")}  # fmt: skip
    assert scaled.keys() == {"gateway", *(f"step-{each}" for each in STEP_TYPES)}
    for deployment in of_kind(overlay, "Deployment"):
        assert ("replicas" in deployment["spec"]) == (deployment["metadata"]["name"] not in scaled)


@pytest.mark.parametrize("overlay", WITH_OPERATORS)
def test_step_services_are_scaled_on_lag_and_work_in_hand_up_to_the_partitions(overlay: str) -> None:
    partitions = {each["spec"]["topicName"]: each["spec"]["partitions"] for each in of_kind(overlay, "KafkaTopic")}
    for scaled in of_kind(overlay, "ScaledObject"):
        lag, busy = scaled["spec"]["triggers"]
        assert lag["metadata"]["topic"] in partitions
        assert lag["metadata"]["consumerGroup"] == lag["metadata"]["topic"]  # groups.workers
        assert scaled["spec"]["minReplicaCount"] == 0
        assert scaled["spec"]["maxReplicaCount"] == partitions[lag["metadata"]["topic"]]
        assert "anabranch_steps_busy" in busy["metadata"]["query"]


# Who may talk to whom


def arrows(overlay: str) -> set[tuple[str, str]]:
    """Return from whom to whom, among our pods and the stores, both ends' policies let a connection through."""
    policies = [each["spec"] for each in of_kind(overlay, "NetworkPolicy")]
    ends = {name.partition("/")[2]: labels for name, labels, _ in pods(overlay) if is_ours(labels)}
    ends |= {store: {"anabranch.dev/store": store} for store in ("kafka", "valkey", "postgresql")}
    return {
        (source, target)
        for source, out in ends.items()
        for target, into in ends.items()
        if allows(policies, "egress", "to", out, into) and allows(policies, "ingress", "from", into, out)
    }


def allows(policies: list[Object], direction: str, peers: str, own: Object, other: Object) -> bool:
    """Return whether some policy of a pod's names the other pod in this direction."""
    return any(
        selects(peer["podSelector"], other)
        for policy in policies
        if selects(policy["podSelector"], own)
        for rule in policy.get(direction, [])
        for peer in rule.get(peers, [])
        if "podSelector" in peer and "namespaceSelector" not in peer
    )


def selects(selector: Object, labels: Object) -> bool:
    """Return whether a label selector selects labels."""
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))


@each_overlay
def test_connections_are_those_of_the_architecture(overlay: str) -> None:
    steps = {f"step-{each}" for each in STEP_TYPES}
    engine = {"gateway", "orchestrator", "history"}
    kafka_clients = {(name, "kafka") for name in engine | steps}
    redis_clients = {(name, "valkey") for name in {"gateway", "history"} | steps}
    sql_clients = {(name, "postgresql") for name in ("gateway", "history", "migrate")}
    among_themselves = {(store, store) for store in ("kafka", "postgresql")}
    assert arrows(overlay) == kafka_clients | redis_clients | sql_clients | among_themselves


@each_overlay
def test_what_no_policy_allows_is_denied(overlay: str) -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind(overlay, "NetworkPolicy")}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, policy in policies.items():
        rules = [*policy.get("ingress", []), *policy.get("egress", [])]
        assert {} not in rules, name
        assert not any({} in [*rule.get("from", []), *rule.get("to", [])] for rule in rules), name


@each_overlay
def test_the_internet_is_not_the_networks_of_the_cluster(overlay: str) -> None:
    blocks = [
        peer["ipBlock"]
        for policy in of_kind(overlay, "NetworkPolicy")
        for rule in policy["spec"].get("egress", [])
        for peer in rule.get("to", [])
        if "ipBlock" in peer
    ]
    assert blocks
    for block in blocks:
        assert block["except"], block
        assert "169.254.0.0/16" in block["except"] or ":" in block["cidr"]  # where clouds tell credentials


# By tools that no one here wrote


@needs("kubeconform")
@pytest.mark.parametrize("version", VERSIONS or ["none"])
def test_every_object_is_valid(version: str) -> None:
    """Strictly: a field that Kubernetes or an operator does not know is an error."""
    location = str(TOOLS / "schemas" / version / "{{.ResourceKind}}{{.KindSuffix}}.json")
    kinds = {f"{each['apiVersion']}/{each['kind']}" for overlay in OVERLAYS for each in objects(overlay)}
    skipped = sorted(kind for kind in kinds if kind.startswith(FROM_OPERATORS))
    arguments = ["-strict", "-summary", "-schema-location", location, "-skip", ",".join(skipped), "-"]
    code, said = tool("kubeconform", *arguments, stdin="---\n".join(text_of(overlay) for overlay in OVERLAYS))
    assert code == 0, said
    assert "Invalid: 0, Errors: 0" in said


@needs("kubeconform")
@pytest.mark.parametrize("version", VERSIONS or ["none"])
def test_a_wrong_field_is_found(version: str) -> None:
    """So that the test above can fail."""
    location = str(TOOLS / "schemas" / version / "{{.ResourceKind}}{{.KindSuffix}}.json")
    wrong = text_of("production").replace("cooldownPeriod:", "coolDownPeriod:").replace("maxSurge:", "maxSurges:")
    code, said = tool(
        "kubeconform", "-strict", "-ignore-missing-schemas", "-schema-location", location, "-", stdin=wrong
    )
    assert code == 1
    assert "coolDownPeriod" in said
    assert "maxSurges" in said


WAIVED = {
    "container-resources": "CPU is not limited: a limit makes a service wait while the node has time for it",
    "container-image-pull-policy": "images are named by versions, which do not change",
    "deployment-has-host-podantiaffinity": "topology spread constraints do that",
    "statefulset-has-servicename": "it has one; a headless Service is for pods that are asked by name",
    "deployment-replicas": "one worker of a step type is enough where it is tried",
    "networkpolicy-targets-pod": "the pods of Kafka and PostgreSQL are made by their operators",
}
"""Checks of kube-score that are not followed, and why."""


@needs("kube-score")
@each_overlay
def test_the_policy_linter_finds_nothing_that_is_not_waived_with_a_reason(overlay: str) -> None:
    ignored = [argument for name in WAIVED for argument in ("--ignore-test", name)]
    arguments = ["score", *ignored, "--output-format", "ci", "--kubernetes-version", "v1.35", "-"]
    code, said = tool("kube-score", *arguments, stdin=text_of(overlay))
    findings = [line for line in said.splitlines() if line.startswith(("[CRITICAL]", "[WARNING]"))]
    assert (findings, code) == ([], 0)


def test_tools_are_pinned() -> None:
    text = (K8S / "tools.sh").read_text()
    assert "@latest" not in text
    assert Path(os.fspath(K8S / "tools.sh")).stat().st_mode & 0o100
    assert kafka.API in (K8S / "components" / "kafka" / "kafka.yaml").read_text()
