"""Outputs as a run holds them: the bytes of their JSON, read when an expression names them.

As Python objects they would take up to thirty times the space: `[{}, {}, ...]` of 1 MiB takes 30.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson
from pydantic_core import to_json

from anabranch.services.orchestrator.core.state import Step
from anabranch.shared.contracts.cel_cost import GIVEN, SHORT_BYTES, cost_of_parts
from anabranch.shared.contracts.expressions import ExpressionError, Meter
from anabranch.shared.contracts.limits import KIB, MAX_TEMPLATE_COST, MIB

_LARGE: Final = 4 * KIB  # a smaller output is read in a few microseconds, each time
_KEPT_BYTES: Final = 2 * MIB  # of large ones read lately: a value that many steps share is read once
_NAMES: Final = ("status", "output", "error", "attempt")


def encoded(value: Any) -> bytes:
    """Return the JSON of a value, as a run event has it."""
    return to_json(value, inf_nan_mode="null")


class Reading:
    """What the expressions of one template or condition read of outputs, which costs as much as giving it to them."""

    __slots__ = ("_cost", "_meter")

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._cost = 0

    def value_of(self, output: bytes) -> Any:
        """Return the value of an output. Raises `ExpressionError` for more than an evaluation may cost in all."""
        size = len(output)
        cost = GIVEN * size if size < SHORT_BYTES else GIVEN * size + cost_of_parts(output)
        self._cost += cost
        self._meter.charge(cost)
        if self._cost > MAX_TEMPLATE_COST:
            raise ExpressionError(
                f"the outputs it names take more than {MAX_TEMPLATE_COST // GIVEN} bytes or too many parts"
            )
        return orjson.loads(output) if size < _LARGE else _READ.value_of(output)


class StepValues(Mapping[str, Any]):
    """What an expression sees of a step; its output is read once."""

    __slots__ = ("_output", "_reading", "_step")

    def __init__(self, step: Step, reading: Reading) -> None:
        self._step = step
        self._reading = reading
        self._output: Any = None

    def __getitem__(self, name: str) -> Any:
        """Return one of the four."""
        if name == "output":  # nearly always
            if self._output is None and self._step.output is not None:
                self._output = self._reading.value_of(self._step.output)
            return self._output
        match name:
            case "status":
                return self._step.status.value
            case "error":
                return None if self._step.error is None else self._step.error.model_dump()
            case "attempt":
                return self._step.attempt
            case _:
                raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return one of them, or the default: the inherited one is asked as often, and takes twice as long."""
        return self[name] if name in _NAMES else default

    def __contains__(self, name: object) -> bool:
        """Return whether it is one of them, without reading it."""
        return name in _NAMES

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(_NAMES)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(_NAMES)


class _ReadLately:
    """The values of large outputs, as many as `_KEPT_BYTES` of JSON have. Nobody changes them."""

    def __init__(self) -> None:
        self._values: OrderedDict[bytes, Any] = OrderedDict()
        self._bytes = 0

    def value_of(self, output: bytes) -> Any:
        if output in self._values:
            self._values.move_to_end(output)
            return self._values[output]
        value = self._values[output] = orjson.loads(output)
        self._bytes += len(output)
        while self._bytes > _KEPT_BYTES:
            self._bytes -= len(self._values.popitem(last=False)[0])
        return value


_READ: Final = _ReadLately()
