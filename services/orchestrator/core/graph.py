"""A pipeline compiled for the core: steps by index, who depends on whom, templates and conditions ready to evaluate.

Compiled once per content: runs of one definition share the result, which nothing changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from anabranch.services.orchestrator.core.status import UNSUCCESSFUL, StepStatus
from anabranch.shared.contracts.expressions import (
    Condition,
    RetryCondition,
    Template,
    compile_condition,
    compile_retry_condition,
    compile_template,
)
from anabranch.shared.contracts.retry import RetryPolicy
from anabranch.shared.contracts.spec import PipelineSpec, StepSpec

TRANSFORM: Final = "transform"
"""The step type that the core answers itself."""

_DEFINITIONS_KEPT: Final = 256  # compiled definitions; one of five steps takes about 10 KiB


@dataclass(frozen=True, slots=True)
class Node:
    """One step as the definition has it."""

    id: str
    uses: str
    needs: tuple[int, ...]
    tolerated: tuple[str, ...]  # those of its needs whose failure counts as a success for `succeeded()`
    input: Template
    condition: Condition | None
    retry: RetryPolicy
    retry_when: RetryCondition | None
    timeout_s: float | None
    continue_on_error: bool

    @property
    def asks_for_failures(self) -> bool:
        """Whether the step may run although what it needs failed, under `fail_fast` too."""
        return self.condition is not None and self.condition.asks_for_failures

    def satisfies(self, status: StepStatus) -> bool:
        """Return whether `succeeded()` holds of this step for those that need it."""
        return status is StepStatus.SUCCEEDED or (self.continue_on_error and status in UNSUCCESSFUL)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A definition ready to run."""

    name: str
    timeout_s: float | None
    fail_fast: bool
    steps: tuple[Node, ...]
    index: Mapping[str, int]
    dependents: tuple[tuple[int, ...], ...]
    need_counts: tuple[int, ...]
    roots_last_first: tuple[int, ...]
    outputs: Template
    uses: Mapping[str, str]


NO_PIPELINE: Final = Pipeline("unreadable", None, True, (), {}, (), (), (), compile_template({}), {})
"""Stands for a definition that cannot be compiled."""


@lru_cache(maxsize=_DEFINITIONS_KEPT)
def compile_pipeline(definition: str) -> Pipeline:
    """Return the pipeline of a definition, canonical JSON text that the gateway has validated.

    Raises pydantic's `ValidationError`, `ExpressionError` or `KeyError` for text that never passed the gateway.
    """
    spec = PipelineSpec.model_validate_json(definition)
    index = {step_id: i for i, step_id in enumerate(spec.steps)}
    nodes = tuple(_compile_step(step_id, step, spec, index) for step_id, step in spec.steps.items())
    dependents: list[list[int]] = [[] for _ in nodes]
    for i, node in enumerate(nodes):
        for need in node.needs:
            dependents[need].append(i)
    need_counts = tuple(len(node.needs) for node in nodes)
    return Pipeline(
        name=spec.name,
        timeout_s=spec.timeout_s,
        fail_fast=spec.fail_fast,
        steps=nodes,
        index=index,
        dependents=tuple(tuple(d) for d in dependents),
        need_counts=need_counts,
        roots_last_first=tuple(i for i in reversed(range(len(nodes))) if not need_counts[i]),
        outputs=compile_template(spec.outputs),
        uses={node.id: node.uses for node in nodes},
    )


def _compile_step(step_id: str, step: StepSpec, spec: PipelineSpec, index: Mapping[str, int]) -> Node:
    retry = step.retry or spec.defaults.retry
    policy = retry.policy() if retry is not None else RetryPolicy()
    return Node(
        id=step_id,
        uses=step.uses,
        needs=tuple(index[need] for need in dict.fromkeys(step.needs)),
        tolerated=tuple(need for need in dict.fromkeys(step.needs) if spec.steps[need].continue_on_error),
        input=compile_template(step.with_),
        condition=None if step.if_ is None else compile_condition(step.if_),
        retry=policy,
        retry_when=None if policy.when is None else compile_retry_condition(policy.when),
        timeout_s=step.timeout_s if step.timeout_s is not None else spec.defaults.timeout_s,
        continue_on_error=step.continue_on_error,
    )
