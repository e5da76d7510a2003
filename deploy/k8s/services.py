"""What the manifests know of each service: what it may talk to, and how large it is."""

from dataclasses import dataclass
from typing import Final

from anabranch.deploy.local.services import ENGINE, STEP_TYPES

KAFKA: Final = "kafka"
REDIS: Final = "valkey"
SQL: Final = "postgresql"
INTERNET: Final = "internet"
MAIL: Final = "mail"

PORTS: Final = {KAFKA: 9093, REDIS: 6379, SQL: 5432}
"""Of the stores, within the cluster."""

HTTP_PORT: Final = 8080
METRICS_PORT_NAME: Final = "http"

STOP_S: Final = 20
"""`ANABRANCH_STOP_TIMEOUT_S`: so long a service may take to hand back what it holds."""

GRACE_S: Final = 45
"""Of a pod: the pause before SIGTERM, the time to stop, five seconds in which the service ends itself, and a margin."""

LEAVE_S: Final = 5
"""Seconds between a pod's leaving its Service and SIGTERM: every proxy has heard of it by then."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One Deployment. Memory is measured (docs/benchmarks.md), its limit what the settings allow it to take."""

    service: str
    talks_to: tuple[str, ...]
    cpu: str
    memory: str
    memory_limit: str
    scratch: str = "64Mi"
    lag_for_one: int = 0
    """Commands that one more worker is worth; 0 for what is no step service."""

    @property
    def is_step(self) -> bool:
        """Whether it serves a step type."""
        return self.service in STEP_TYPES

    @property
    def name(self) -> str:
        """Return the name of its objects, and of its Kafka user."""
        return f"step-{self.service}" if self.is_step else self.service


WORKLOADS: Final = (
    Workload("gateway", (KAFKA, REDIS, SQL, INTERNET), "500m", "192Mi", "768Mi"),  # its issuer's keys, if it has one
    Workload("orchestrator", (KAFKA,), "500m", "192Mi", "1Gi"),
    Workload("history", (KAFKA, REDIS, SQL), "250m", "160Mi", "512Mi"),
    Workload("http", (KAFKA, REDIS, INTERNET), "100m", "128Mi", "512Mi", lag_for_one=64),
    # Four queries at once, each a process of 512 MB, with 4 GiB on disk at most.
    Workload("sql", (KAFKA, REDIS, INTERNET), "250m", "512Mi", "3Gi", scratch="17Gi", lag_for_one=8),
    # Documents are read in processes of 512 MiB at most, one per core.
    Workload("html", (KAFKA, REDIS, INTERNET), "250m", "256Mi", "2Gi", scratch="1Gi", lag_for_one=32),
    Workload("notify", (KAFKA, REDIS, INTERNET, MAIL), "100m", "128Mi", "256Mi", lag_for_one=64),
    Workload("simulate", (KAFKA, REDIS), "100m", "128Mi", "256Mi", lag_for_one=256),
)

assert {workload.service for workload in WORKLOADS} == {*ENGINE, *STEP_TYPES}

MIGRATION: Final = "migrate"
"""The Job that brings the tables of the record up to date: it talks to SQL alone."""
