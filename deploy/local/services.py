"""Which processes a stack runs: data, so that a test can put its own in."""

import sys
from dataclasses import dataclass

GATEWAY = "gateway"
ENGINE = (GATEWAY, "orchestrator", "history")  # all others serve step types
OF_THE_RECORD = frozenset({GATEWAY, "history"})  # these alone are told where the record is
STEP_TYPES = ("http", "sql", "html", "notify", "simulate")


@dataclass(frozen=True, slots=True)
class Service:
    """One kind of process: what starts it and how many of it run."""

    role: str
    command: tuple[str, ...]
    count: int = 1

    def names(self) -> tuple[str, ...]:
        """One name per process: the role alone, or numbered when there are several."""
        if self.count == 1:
            return (self.role,)
        return tuple(f"{self.role}-{number}" for number in range(1, self.count + 1))


def anabranch_services(*, orchestrators: int = 1, workers: int = 1) -> tuple[Service, ...]:
    """The gateway, the orchestrators, history, and the workers of every step type that ships."""
    return (
        Service(GATEWAY, _module("gateway")),
        Service("orchestrator", _module("orchestrator"), orchestrators),
        Service("history", _module("history")),
        *(Service(step_type, _module(f"steps.{step_type}"), workers) for step_type in STEP_TYPES),
    )


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"anabranch.services.{name}")
