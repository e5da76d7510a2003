"""The guard around a step type's own code: parse, call, check, dump. Whatever it does is a value here, no exception.

A user's code raises more than `Exception`, and so does what it returns or raises when it is looked at: validators,
serializers, `__str__`, `__class__`. So each of these is called under `except BaseException`, and what comes of it is
plain: JSON and text, of no class of the user's, which can be encoded and pickled. The last resort is a constant.

Two pass, since only who runs the task knows what they mean: the cancellation of a coroutine, and `GeneratorExit`, which
a coroutine is given that nobody runs any more.
"""

import asyncio
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Generic

import orjson
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.step_type import In, Out, StepType
from anabranch.services.steps.turns import Turns
from anabranch.shared.contracts.errors import ErrorType, RetryableError, TerminalError
from anabranch.shared.contracts.hiding import Hiding
from anabranch.shared.contracts.limits import (
    MAX_ERROR_DETAILS_BYTES,
    MAX_ERROR_MESSAGE_CHARS,
    MAX_ERROR_TYPE_CHARS,
    MAX_NESTING,
    MAX_STEP_OUTPUT_BYTES,
    MAX_WAIT_S,
)
from anabranch.shared.contracts.nesting import is_text_too_deep, is_too_deep
from anabranch.shared.contracts.text import writable
from anabranch.shared.contracts.urls import redacted, redacted_value
from anabranch.shared.runtime.tracebacks import is_modest

_TRACEBACK_CHARS: Final = 4_000  # the tail: where it was raised
_TRACEBACK_FRAMES: Final = 50  # of each exception: more than 4,000 characters show
_FAULTS: Final = 10  # of an input or output, named
_UNNAMED: Final = "Exception"


@dataclass(frozen=True, slots=True)
class Returned:
    """What a handler returned, as JSON values."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed: plain text and JSON, whatever the exception was."""

    error_type: str
    message: str
    details: Any = None
    terminal: bool = True
    retry_after_s: float | None = None


Outcome = Returned | Failure


class Guard(Generic[In, Out]):
    """Calls a step type's code; its methods return an `Outcome` whatever that code does."""

    def __init__(self, step_type: StepType[In, Out], turns: Turns | None = None) -> None:
        self._turns = turns or Turns()
        self._name = step_type.name
        self._parse = step_type.input_of()
        self._check = step_type.output_of()
        self._handler: Callable[[Any, StepContext], Any] = step_type.handler

    async def in_loop(self, given: object, context: StepContext) -> Outcome:
        """Run one attempt of an `async def` handler. A cancellation passes."""
        if self._turns.is_spent:
            await self._turns.next()
        parsed = self._parsed(given)
        if type(parsed) is Failure:
            return parsed
        try:
            output = await self._handler(parsed, context)
        except (asyncio.CancelledError, GeneratorExit):
            raise  # they may come from without
        except BaseException as error:  # noqa: BLE001  whatever a handler raises is its attempt's failure
            return failure_of(_without_wrapper(error))
        if self._turns.is_spent:
            await self._turns.next()
        return self._written(output)

    def here(self, given: object, context: StepContext) -> Outcome:
        """Run one attempt of a `def` handler, in this thread."""
        parsed = self._parsed(given)
        if type(parsed) is Failure:
            return parsed
        try:
            output = self._handler(parsed, context)
        except BaseException as error:  # noqa: BLE001  whatever a handler raises is its attempt's failure
            return failure_of(error)
        return self._written(output)

    def _parsed(self, given: object) -> In | Failure:
        try:
            return self._parse(given)
        except ValidationError as error:
            return Failure(ErrorType.INPUT_INVALID, f"{self._name} does not take this input: {_faults(error, 'input')}")
        except BaseException as error:  # noqa: BLE001  a validator raises what it likes
            return failure_of(error)

    def _written(self, output: object) -> Outcome:
        try:
            return Returned(self._check(output).model_dump(mode="json", by_alias=True))
        except ValidationError as error:
            return Failure(ErrorType.OUTPUT_INVALID, f"not what {self._name} returns: {_faults(error, 'output')}")
        except (PydanticSerializationError, UnicodeError) as error:
            return not_json(error)
        except BaseException as error:  # noqa: BLE001  a serializer raises what it likes
            return not_json(error) if _is_said_of_values(error) else failure_of(error)


def hidden(outcome: Outcome, hiding: Hiding) -> Outcome:
    """Return an outcome without the secrets that its attempt was given."""
    if not hiding.values:
        return outcome
    if type(outcome) is Failure:
        return hidden_failure(outcome, hiding)
    assert isinstance(outcome, Returned)
    try:
        plain = from_json(to_json(outcome.value, inf_nan_mode="null"))
    except BaseException as error:  # noqa: BLE001  `model_dump` may be the user's own: it returns what it likes
        return hidden_failure(not_json(error), hiding)
    return Returned(hiding.output(plain))


def hidden_failure(failure: Failure, hiding: Hiding) -> Failure:
    """Return a failure without the secrets that its attempt was given, nor pieces of them where it was cut."""
    return replace(
        failure,
        error_type=hiding.text(failure.error_type)[:MAX_ERROR_TYPE_CHARS],
        message=hiding.text(failure.message),
        details=hiding.told(failure.details),
    )


def not_json(error: BaseException) -> Failure:
    """Return the failure of an output that cannot be written as JSON."""
    return Failure(ErrorType.OUTPUT_INVALID, f"the output cannot be written as JSON: {_text_of(error)}")


def fault_of_output(value: object, encoded: bytes, *, around: int = 0) -> Failure | None:
    """Return what is wrong with an output that can be encoded, though not be read again as it is.

    `encoded` is its JSON, or that of the answer it stands in, `around` levels deep. Numbers are read back only where
    there is one that 64 bits do not hold.
    """
    if is_text_too_deep(encoded, MAX_NESTING + around):
        return Failure(ErrorType.OUTPUT_INVALID, f"the output is nested deeper than {MAX_NESTING} levels")
    try:
        orjson.dumps(value)
    except (TypeError, ValueError):
        try:
            orjson.loads(encoded)
        except ValueError as error:
            return not_json(error)
    return None


def to_bytes(outcome: Outcome) -> bytes | Failure:
    """Return an outcome as it goes over a pipe: the output's JSON, checked and bounded, or the failure."""
    if type(outcome) is Failure:
        return outcome
    assert isinstance(outcome, Returned)
    try:
        encoded = to_json(outcome.value, inf_nan_mode="null")
    except BaseException as error:  # noqa: BLE001  `model_dump` may be the user's own: it returns what it likes
        return not_json(error)
    if len(encoded) > MAX_STEP_OUTPUT_BYTES:
        return output_too_large(len(encoded))
    return fault_of_output(outcome.value, encoded) or encoded


def output_too_large(size: int) -> Failure:
    """Return the failure of an output of so many bytes."""
    message = f"the output is {size} bytes as JSON, a step may have {MAX_STEP_OUTPUT_BYTES}: store it and output where"
    return Failure(ErrorType.PAYLOAD_TOO_LARGE, message)


# --- exceptions -------------------------------------------------------------------------------------------------------


def failure_of(error: BaseException) -> Failure:
    """Return what a handler raised: its real type and text, as far as they can be had."""
    kind = type(error)
    if issubclass(kind, TerminalError):
        return Failure(_type_said(error), _text_of(error), details_of(_said(error, "details")))
    if issubclass(kind, RetryableError):
        return Failure(
            _type_said(error), _text_of(error), details_of(_said(error, "details")),
            terminal=False, retry_after_s=_after_said(error),
        )  # fmt: skip
    return Failure(_type_of(error), _text_of(error), {"traceback": _traceback_of(error)}, terminal=False)


def details_of(details: object) -> Any:
    """Return details as plain JSON, or why they are left out."""
    if details is None:
        return None
    try:
        encoded = to_json(details, inf_nan_mode="null")
        if len(encoded) > MAX_ERROR_DETAILS_BYTES:
            return {"omitted": f"the details are {len(encoded)} bytes as JSON"}
        plain = orjson.loads(encoded)
    except BaseException:  # noqa: BLE001  an object of the user's, which raises what it likes
        return {"omitted": "the details are not JSON"}
    if is_too_deep(plain):
        return {"omitted": f"the details are nested deeper than {MAX_NESTING} levels"}
    return redacted_value(plain)


def _without_wrapper(error: BaseException) -> BaseException:
    """Return what the handler raised: Python puts a `RuntimeError` round a `StopIteration` out of a coroutine."""
    if type(error) is RuntimeError and type(error.__cause__) is StopIteration:
        return error.__cause__
    return error


def _is_said_of_values(error: BaseException) -> bool:
    """Whether pydantic says it of a value: a cycle, or too deep."""
    return type(error) is ValueError and _text_of(error).startswith(("Circular reference", "Maximum serialization"))


def _type_of(error: BaseException) -> str:
    try:
        return _plain(type(error).__name__, MAX_ERROR_TYPE_CHARS) or _UNNAMED
    except BaseException:  # noqa: BLE001  a metaclass may raise
        return _UNNAMED


def _type_said(error: BaseException) -> str:
    said = _said(error, "error_type")
    try:
        return _plain(said, MAX_ERROR_TYPE_CHARS) or _type_of(error)
    except BaseException:  # noqa: BLE001  it was replaced by something that is no text
        return _type_of(error)


def _after_said(error: BaseException) -> float | None:
    said = _said(error, "after_s")
    is_duration = type(said) in (int, float) and 0 <= said <= MAX_WAIT_S
    return said if is_duration else None


def _said(error: BaseException, name: str) -> Any:
    """Return an attribute, or None where there is none: a subclass may not call our constructor."""
    try:
        return getattr(error, name)
    except BaseException:  # noqa: BLE001  a property may raise
        return None


def _text_of(error: BaseException) -> str:
    try:
        return _plain(str(error), MAX_ERROR_MESSAGE_CHARS)
    except BaseException as other:  # noqa: BLE001  a user's `__str__`
        return f"(it has no text: its __str__ raised {_type_of(other)})"


def _plain(text: str, chars: int) -> str:
    """Return a text of Python's own class, redacted, cut, that can be encoded. Raises `TypeError` for no text.

    Of a URL that is cut nobody could tell which part its password is: so it is redacted first.
    """
    return writable(redacted(str.__getitem__(text, slice(2 * chars))))[:chars]


def _traceback_of(error: BaseException) -> str:
    try:
        if is_modest(error):
            lines = traceback.format_exception(error, limit=-_TRACEBACK_FRAMES)
        else:
            frames = traceback.extract_tb(error.__traceback__, limit=-_TRACEBACK_FRAMES)
            lines = [*traceback.format_list(frames), f"{_type_of(error)}: {_text_of(error)}\n"]
        shown = "".join(redacted(line[: 2 * _TRACEBACK_CHARS])[:_TRACEBACK_CHARS] for line in lines)
        return writable(shown[-_TRACEBACK_CHARS:])[-_TRACEBACK_CHARS:]
    except BaseException as other:  # noqa: BLE001  rendering looks at causes, notes and texts of the user's
        return f"(it cannot be shown: {_type_of(other)} was raised meanwhile)"


def _faults(error: ValidationError, whole: str) -> str:
    try:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        words = "; ".join(f"{'/'.join(map(str, fault['loc'])) or whole}: {fault['msg']}" for fault in faults[:_FAULTS])
        return _plain(words, MAX_ERROR_MESSAGE_CHARS)
    except BaseException as other:  # noqa: BLE001  a message is made of what a user's validator raised
        return f"(a validator's error has no text: its __str__ raised {_type_of(other)})"
