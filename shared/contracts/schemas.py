"""JSON Schema 2020-12 without I/O: no schema is fetched, patterns run in linear time, messages stay short.

What a check costs is estimated and spent before it is done: the library collects every error before it names the first,
each with a copy of the value and of the keyword, and holds the interpreter meanwhile.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import jsonschema_rs
import orjson

from anabranch.shared.contracts.bounded import BoundedMemory
from anabranch.shared.contracts.expressions import canonical_json
from anabranch.shared.contracts.limits import KIB, MAX_SCHEMA_COST, MAX_SCHEMA_WEIGHT, MIB
from anabranch.shared.contracts.weights import SchemaWeight, size_of, weigh_schema

_KEPT: Final = 4_096
_KEPT_BYTES: Final = 32 * MIB
_MESSAGE_CHARS: Final = 500
_PATTERN_BYTES: Final = 1 * MIB  # of one compiled pattern: \d{1,1000} has a tenth, \p{L}{200} too much

# Units of cost (see weights.py).
_READING: Final = 4  # of a value by the library
_ERROR: Final = 200
_COPYING: Final = 2  # of a byte into an error
_MAX_COLLECTED: Final = 10_000_000  # about 200 MB of errors; beyond, only the first one is named

Spend = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Violation:
    """What a value breaks: where in the value, which keyword, in words.

    `unexpected` lists names that are not known, `known` those that the schema has there.
    """

    path: tuple[str | int, ...]
    keyword: str
    message: str
    unexpected: tuple[str, ...] = ()
    known: tuple[str, ...] = ()


class SchemaError(ValueError):
    """A schema that is none; `path` is where in the schema."""

    def __init__(self, message: str, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.path = path


def _free(_units: int) -> None:
    """Spend nothing: for values and schemas that the caller has bounded."""


class Schema:
    """A compiled JSON Schema."""

    def __init__(self, validator: Any, schema: Any, weight: SchemaWeight) -> None:
        self._validator = validator
        self._schema = schema
        self._weight = weight

    def violations(self, value: Any, spend: Spend = _free) -> Iterator[Violation]:
        """Return everything that is wrong with the value; the first thing alone when all would be too much.

        `spend` is called with the cost of each piece of work before it is done, and may raise.
        """
        size = size_of(value)
        spend(size.values * (self._weight.per_value + _READING) + size.size * self._weight.per_byte)
        if self._validator.is_valid(value):
            return
        for error in self._errors(value, spend):
            unexpected = tuple(getattr(error.kind, "unexpected", ()))
            known = self._names_at(error.schema_path) if unexpected else ()
            yield Violation(tuple(error.instance_path), error.kind.name, _shortened(error.message), unexpected, known)

    def _errors(self, value: Any, spend: Spend) -> Iterable[Any]:
        size, weight = size_of(value), self._weight
        copied = size.repeated + (size.repeated_by_key if weight.checks_names else 0)
        each = _ERROR + _COPYING * weight.largest_keyword
        cost = weight.per_value * (_COPYING * copied + size.values * each)
        if cost <= _MAX_COLLECTED:
            spend(cost)
            return self._validator.iter_errors(value)  # type: ignore[no-any-return]
        spend(_MAX_COLLECTED // 10)
        try:
            self._validator.validate(value)
        except jsonschema_rs.ValidationError as error:
            return (error,)
        return ()

    def _names_at(self, keyword: Iterable[str | int]) -> tuple[str, ...]:
        """Return the properties that stand beside a keyword of the schema; its path has no `$ref` in it any more."""
        beside = self._schema
        for part in tuple(keyword)[:-1]:
            if isinstance(beside, dict):
                beside = beside.get(part)
            elif isinstance(beside, list) and isinstance(part, int) and part < len(beside):
                beside = beside[part]
        properties = beside.get("properties") if isinstance(beside, dict) else None
        return tuple(properties) if isinstance(properties, dict) else ()


def compile_schema(schema: dict[str, Any] | bool, spend: Spend = _free) -> Schema:
    """Return the schema, compiled once per content; `spend` is called with the cost before it is compiled.

    Raises `SchemaError`, also for a schema that costs too much to compile or to apply to a single value: this is the
    one place that says whether a schema is acceptable.
    """
    canonical = canonical_json(schema)
    known = _kept.get(canonical)
    if known is None:
        weight = _weighed(schema, len(canonical), spend)
        spend(weight.compiling)
        known = _compile(canonical, weight)
        _kept.put(canonical, known, weight=20 * len(canonical) + 10 * weight.compiling + 4 * KIB)
    return known


_kept: Final[BoundedMemory[str, Schema]] = BoundedMemory(max_entries=_KEPT, max_weight=_KEPT_BYTES)


def _weighed(schema: Any, size: int, spend: Spend) -> SchemaWeight:
    spend(20 * size)  # to weigh it
    weight = weigh_schema(schema)
    if weight.compiling > MAX_SCHEMA_COST:
        raise SchemaError(
            f"the schema is too large: compiling it costs {weight.compiling} units (its keywords, and the states of its"
            f" patterns), at most {MAX_SCHEMA_COST} are possible"
        )
    if weight.per_value > MAX_SCHEMA_WEIGHT:
        raise SchemaError(
            f"the schema asks too much of a single value: its keywords apply more than {MAX_SCHEMA_WEIGHT} times, as"
            " references are followed"
        )
    return weight


def _compile(canonical: str, weight: SchemaWeight) -> Schema:
    schema = orjson.loads(canonical)
    try:
        validator = jsonschema_rs.validator_for(
            schema,
            validate_formats=True,
            retriever=_refuse_to_fetch,
            pattern_options=jsonschema_rs.RegexOptions(size_limit=_PATTERN_BYTES, dfa_size_limit=_PATTERN_BYTES),
        )
    except jsonschema_rs.ValidationError as error:
        raise SchemaError(_shortened(error.message), tuple(error.instance_path)) from error
    except ValueError as error:
        raise SchemaError(_shortened(str(error))) from error
    return Schema(validator, schema, weight)


def _refuse_to_fetch(_uri: str) -> Any:
    raise ValueError("schemas are not fetched")


def _shortened(message: str) -> str:
    """Return the beginning and the end of a message: a long value stands at the beginning, what is wrong at the end."""
    if len(message) <= _MESSAGE_CHARS:
        return message
    return f"{message[: _MESSAGE_CHARS // 2]}…{message[-_MESSAGE_CHARS // 2 + 1 :]}"
