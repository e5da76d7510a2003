"""The `anabranch` command and the async Python client it uses."""

from anabranch.client.api import AnabranchClient
from anabranch.client.batches import Submission
from anabranch.client.model import (
    ClientError,
    Fault,
    GatewayUnreachableError,
    GatewayUntrustedError,
    Problem,
    ProblemError,
    Run,
    Step,
    StepType,
)

__all__ = [
    "AnabranchClient",
    "ClientError",
    "Fault",
    "GatewayUnreachableError",
    "GatewayUntrustedError",
    "Problem",
    "ProblemError",
    "Run",
    "Step",
    "StepType",
    "Submission",
]
