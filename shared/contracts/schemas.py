"""JSON Schema 2020-12 without I/O: no schema is fetched, patterns run in linear time, messages stay short."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import jsonschema_rs
import orjson

from anabranch.shared.contracts.expressions import canonical_json

_COMPILED_KEPT: Final = 4096
_MESSAGE_CHARS: Final = 500


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


class Schema:
    """A compiled JSON Schema."""

    def __init__(self, validator: Any, schema: Any) -> None:
        self._validator = validator
        self._schema = schema

    def violations(self, value: Any) -> Iterator[Violation]:
        """Return everything that is wrong with the value."""
        for error in self._validator.iter_errors(value):
            unexpected = tuple(getattr(error.kind, "unexpected", ()))
            known = self._names_at(error.schema_path) if unexpected else ()
            yield Violation(tuple(error.instance_path), error.kind.name, _shortened(error.message), unexpected, known)

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


def compile_schema(schema: dict[str, Any] | bool) -> Schema:
    """Return the schema, compiled once per content. Raises `SchemaError`."""
    return _compile(canonical_json(schema))


@lru_cache(maxsize=_COMPILED_KEPT)
def _compile(canonical: str) -> Schema:
    schema = orjson.loads(canonical)
    try:
        validator = jsonschema_rs.validator_for(
            schema,
            validate_formats=True,
            retriever=_refuse_to_fetch,
            pattern_options=jsonschema_rs.RegexOptions(),
        )
    except jsonschema_rs.ValidationError as error:
        raise SchemaError(_shortened(error.message), tuple(error.instance_path)) from error
    except ValueError as error:
        raise SchemaError(_shortened(str(error))) from error
    return Schema(validator, schema)


def _refuse_to_fetch(_uri: str) -> Any:
    raise ValueError("schemas are not fetched")


def _shortened(message: str) -> str:
    return message if len(message) <= _MESSAGE_CHARS else message[: _MESSAGE_CHARS - 1] + "…"
