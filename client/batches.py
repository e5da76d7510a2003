"""Many submissions in as few requests as they fit into."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from anabranch.client.model import Answer, Fault, GatewayUnreachableError, Problem, ProblemError, Run
from anabranch.shared.contracts.limits import MAX_BATCH_RUNS, MAX_BODY_BYTES
from anabranch.shared.contracts.source import parse_source

_BEGIN: Final = b'{"runs":['
_END: Final = b"]}"

Definition = Mapping[str, Any] | str
"""A pipeline: as a JSON value, or as YAML or JSON text."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A run that is wanted."""

    definition: Definition
    inputs: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    idempotency_key: str | None = None

    def document(self) -> dict[str, Any]:
        """Return what is sent of it alone; its key goes beside. Raises `SourceError` for text that cannot be read."""
        return {"definition": _as_value(self.definition), "inputs": dict(self.inputs), "labels": dict(self.labels)}

    def in_batch(self) -> bytes:
        """Return what is sent of it among others."""
        key = {"idempotency_key": self.idempotency_key} if self.idempotency_key else {}
        return orjson.dumps(self.document() | key)


Result = Run | ProblemError | GatewayUnreachableError
"""What became of a submission: the accepted run, why there is none, or that nobody has answered."""


def _as_value(definition: Definition) -> Any:
    """Return a definition as a JSON value. Raises `SourceError` for text that cannot be read."""
    return parse_source(definition.encode(), "application/yaml").value if isinstance(definition, str) else definition


def requests_of(runs: Mapping[int, bytes]) -> Iterator[tuple[list[int], bytes]]:
    """Yield bodies within the gateway's limits, and which runs are in each. One too large alone is alone."""
    numbers: list[int] = []
    size = 0
    for number, run in runs.items():
        size += len(run) + 1
        if numbers and (len(numbers) == MAX_BATCH_RUNS or len(_BEGIN) + size + len(_END) > MAX_BODY_BYTES):
            yield numbers, _body(runs[each] for each in numbers)
            numbers, size = [], len(run) + 1
        numbers.append(number)
    if numbers:
        yield numbers, _body(runs[each] for each in numbers)


def _body(runs: Iterable[bytes]) -> bytes:
    return _BEGIN + b",".join(runs) + _END


class _Result(Answer):
    status: int
    run: Run | None = None
    problem: Problem | None = None
    retry_after: float | None = None


class _Results(Answer):
    results: tuple[_Result, ...]


def results_of(body: bytes) -> list[Result]:
    """Return what became of each run of a request, with places as in a submission of its own."""
    return [
        result.run
        or ProblemError(_alone(result.problem or Problem(status=result.status)), retry_after_s=result.retry_after)
        for result in _Results.model_validate_json(body).results
    ]


def _alone(problem: Problem) -> Problem:
    errors = tuple(Fault(pointer=_pointer(fault.pointer), message=fault.message) for fault in problem.errors)
    return problem.model_copy(update={"errors": errors})


def _pointer(pointer: str) -> str:
    return re.sub(r"^/runs/\d+", "", pointer)
