"""A pipeline compiled for the core: steps by index, who depends on whom, templates and conditions ready to evaluate.

Compiled once per content: runs of one definition share the result, which nothing changes. How many are kept for runs to
come is bounded by what they weigh.
"""

from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from anabranch.services.orchestrator.core.status import UNSUCCESSFUL, StepStatus
from anabranch.shared.contracts.bounded import BoundedMemory
from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.contracts.expressions import (
    Condition,
    ExpressionError,
    RetryCondition,
    Template,
    compile_condition,
    compile_retry_condition,
    compile_template,
    template_in_slices,
)
from anabranch.shared.contracts.limits import MAX_ERROR_MESSAGE_CHARS
from anabranch.shared.contracts.retry import RetryPolicy
from anabranch.shared.contracts.spec import PipelineSpec, StepSpec, parse_spec_in_slices

TRANSFORM: Final = "transform"
"""The step type that the core answers itself."""


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

    @property
    def weight(self) -> int:
        """How many bytes of memory its conditions take, roughly."""
        programs = (self.condition and self.condition.program, self.retry_when and self.retry_when.program)
        return sum(program.weight for program in programs if program)

    def satisfies(self, status: StepStatus) -> bool:
        """Return whether `succeeded()` holds of this step for those that need it."""
        return status is StepStatus.SUCCEEDED or (self.continue_on_error and status in UNSUCCESSFUL)


@dataclass(frozen=True, slots=True, weakref_slot=True)
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
    weight: int = 0  # bytes of memory, roughly


NO_PIPELINE: Final = Pipeline("unreadable", None, True, (), {}, (), (), (), compile_template({}), {})
"""Stands for a definition that cannot be compiled."""


class DefinitionRefused(AnabranchError):
    """This version does not understand the definition; says why. The gateway of this version would have refused it."""


_KEPT_BYTES: Final = 64 * 1024 * 1024  # compiled definitions: one of five steps takes about 10 KiB, the largest 60 MiB
_BYTES_PER_STEP: Final = 1536  # measured: 1,300 to 2,500, of a step with little in it
_BYTES_PER_CHARACTER: Final = 8  # measured, of what a step is given literally

_kept: Final[BoundedMemory[str, Pipeline | DefinitionRefused]] = BoundedMemory(
    max_entries=_KEPT_BYTES // _BYTES_PER_STEP, max_weight=_KEPT_BYTES
)
_in_use: Final[WeakValueDictionary[str, Pipeline]] = WeakValueDictionary()  # so that no two runs hold one twice


def compiled(definition: str) -> Pipeline | DefinitionRefused | None:
    """Return what is known of a definition: its pipeline, that it is refused, or nothing."""
    return _in_use.get(definition) or _kept.get(definition)


def compile_pipeline(definition: str) -> Pipeline:
    """Return the pipeline of a definition, canonical JSON text that the gateway has validated.

    Raises `DefinitionRefused` for text that never passed the gateway of this version.
    """
    kept = _kept.get(definition)
    if isinstance(kept, Pipeline):  # young again, and in use already
        return kept
    slices = compiling(definition)
    while True:
        try:
            next(slices)
        except StopIteration as done:
            pipeline: Pipeline = done.value
            return pipeline


def compiling(definition: str) -> Generator[None, None, Pipeline]:
    """Do what `compile_pipeline` does, and yield at least every few milliseconds: nobody has to wait for all of it."""
    known = compiled(definition)
    if known is None:
        known = yield from _compiling(definition)
    if isinstance(known, DefinitionRefused):
        raise DefinitionRefused(*known.args)
    _kept.put(definition, known, weight=known.weight)
    _in_use[definition] = known
    return known


def _compiling(definition: str) -> Generator[None, None, Pipeline | DefinitionRefused]:
    try:
        spec = yield from parse_spec_in_slices(definition)
        return (yield from _compiling_spec(spec, len(definition)))
    except MemoryError:  # may not be so the next time
        raise
    except Exception as error:  # noqa: BLE001  # whatever it is that this version cannot make of the text, it is the same next time
        refused = DefinitionRefused(f"{type(error).__name__}: {error}"[:MAX_ERROR_MESSAGE_CHARS])
        _kept.put(definition, refused, weight=2 * len(definition))
        return refused


def _compiling_spec(spec: PipelineSpec, length: int) -> Generator[None, None, Pipeline]:
    index = {step_id: i for i, step_id in enumerate(spec.steps)}
    nodes: list[Node] = []
    dependents: list[list[int]] = [[] for _ in index]
    weight = _BYTES_PER_STEP * len(index) + _BYTES_PER_CHARACTER * length
    for i, (step_id, step) in enumerate(spec.steps.items()):
        node = _compile_step(step_id, step, spec, index, (yield from _compiling_input(step)))
        nodes.append(node)
        for need in node.needs:
            dependents[need].append(i)
        weight += node.weight + (yield from _compiling_template(node.input))
        yield
    outputs = yield from template_in_slices(spec.outputs)
    weight += yield from _compiling_template(outputs)
    need_counts = tuple(len(node.needs) for node in nodes)
    return Pipeline(
        name=spec.name,
        timeout_s=spec.timeout_s,
        fail_fast=spec.fail_fast,
        steps=tuple(nodes),
        index=index,
        dependents=tuple(tuple(d) for d in dependents),
        need_counts=need_counts,
        roots_last_first=tuple(i for i in reversed(range(len(nodes))) if not need_counts[i]),
        outputs=outputs,
        uses={node.id: node.uses for node in nodes},
        weight=weight,
    )


def _compiling_input(step: StepSpec) -> Generator[None, None, Template]:
    """Compile a `with`. Secrets are the step services': what the engine answers itself cannot have any."""
    return (yield from template_in_slices(step.with_, may_name_secrets=step.uses != TRANSFORM))


def _compiling_template(template: Template) -> Generator[None, None, int]:
    """Compile the expressions of a template and return what they weigh; one that does not compile fails its step."""
    weight = 0
    for one in template.expressions:
        with suppress(ExpressionError):
            weight += one.program.weight
        yield
    return weight


def _compile_step(
    step_id: str, step: StepSpec, spec: PipelineSpec, index: Mapping[str, int], template: Template
) -> Node:
    retry = step.retry or spec.defaults.retry
    policy = retry.policy() if retry is not None else RetryPolicy()
    return Node(
        id=step_id,
        uses=step.uses,
        needs=tuple(index[need] for need in dict.fromkeys(step.needs)),
        tolerated=tuple(need for need in dict.fromkeys(step.needs) if spec.steps[need].continue_on_error),
        input=template,
        condition=None if step.if_ is None else compile_condition(step.if_),
        retry=policy,
        retry_when=None if policy.when is None else compile_retry_condition(policy.when),
        timeout_s=step.timeout_s if step.timeout_s is not None else spec.defaults.timeout_s,
        continue_on_error=step.continue_on_error,
    )
