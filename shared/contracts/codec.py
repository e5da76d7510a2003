"""Messages to records and back: JSON values, CloudEvents 1.0 binary-mode headers, a W3C `traceparent`.

CloudEvents: Kafka Protocol Binding 1.0.2 §3.2 (binary content mode). What cannot be decoded becomes a value,
`Undecodable`, never an exception in a consume loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from anabranch.shared.contracts.ids import trace_id_of_run, traceparent
from anabranch.shared.contracts.limits import MAX_MESSAGE_NESTING
from anabranch.shared.contracts.messages import Message
from anabranch.shared.contracts.nesting import is_text_too_deep
from anabranch.shared.contracts.times import rfc3339

Headers = tuple[tuple[str, bytes], ...]
M = TypeVar("M")

_SPEC_VERSION: Final = ("ce_specversion", b"1.0")
_ERROR_CHARS: Final = 2000


class Encoded(NamedTuple):
    """A record's value and headers, ready to append."""

    value: bytes
    headers: Headers


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A record that is not a message of its topic: its raw bytes, and what is wrong with them."""

    value: bytes | None
    reason: str


def encode(
    message: Message, *, message_id: str, source: str, at_ms: int, trace_id: str, is_sampled: bool = True
) -> Encoded:
    """Return the message as a record. `at_ms` is the broker time of the record that caused it.

    `is_sampled`: spans of its trace are written, by whoever writes any.
    """
    return Encoded(
        message.__pydantic_serializer__.to_json(message, exclude_none=True),
        headers_of(
            message.type, message_id=message_id, source=source, at_ms=at_ms, trace_id=trace_id, is_sampled=is_sampled
        ),
    )


def headers_of(
    message_type: str, *, message_id: str, source: str, at_ms: int, trace_id: str, is_sampled: bool = True
) -> Headers:
    """Return the CloudEvents headers and the `traceparent` of a message."""
    return (
        ("ce_id", message_id.encode()),
        _named("ce_type", message_type),
        _named("ce_source", source),
        _timed(at_ms),
        _SPEC_VERSION,
        ("traceparent", traceparent(trace_id, message_id, is_sampled=is_sampled).encode()),
    )


def type_said_in(headers: Headers) -> str:
    """Return the type of a message from the headers that `headers_of` made."""
    return headers[1][1].decode()


@lru_cache(maxsize=256)  # types and sources: a handful
def _named(name: str, value: str) -> tuple[str, bytes]:
    return name, value.encode()


@lru_cache(maxsize=1024)
def _timed(at_ms: int) -> tuple[str, bytes]:
    return "ce_time", rfc3339(at_ms).encode()


def decode(adapter: TypeAdapter[M], value: bytes | None) -> M | Undecodable:
    """Return the message in a record's value, or an `Undecodable` that says what is wrong.

    One that is nested too deep is none, unless the depth is what a handler gave: then its step, not the record, is to
    blame.
    """
    if value is None:
        return Undecodable(None, "the record has no value")
    try:
        # Not `validate_json`: it reads NaN, Infinity and 1e999, which would come back as null after a restore.
        parsed = orjson.loads(value)
        message: M = adapter.validator.validate_python(parsed)
    except ValidationError as error:
        return Undecodable(value, _first_words(error))
    except orjson.JSONDecodeError as error:
        return Undecodable(value, f"not JSON (RFC 8259): {error}")
    if is_text_too_deep(value, MAX_MESSAGE_NESTING) and not getattr(message, "says_what_a_handler_gave", False):
        return Undecodable(value, f"nested deeper than {MAX_MESSAGE_NESTING} levels")
    return message


def header(headers: Sequence[tuple[str, bytes | None]], name: str) -> str | None:
    """Return a header's text, or None when it is absent or is not UTF-8."""
    for key, value in headers:
        if key == name and value is not None:
            try:
                return value.decode()
            except UnicodeDecodeError:
                return None
    return None


def trace_id_or(trace_id: str, run_id: str) -> str:
    """Return the trace id a client sent, or the one that the run's id makes."""
    return trace_id or trace_id_of_run(run_id)


def _first_words(error: ValidationError) -> str:
    faults: list[Any] = error.errors(include_url=False, include_context=False, include_input=False)
    words = "; ".join(f"{'/'.join(map(str, fault['loc'])) or 'value'}: {fault['msg']}" for fault in faults[:5])
    return words[:_ERROR_CHARS]
