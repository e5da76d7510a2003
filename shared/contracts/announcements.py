"""What may be announced on the step-types topic: anybody may write there, and every gateway keeps what it reads."""

from typing import Final

from pydantic import TypeAdapter, ValidationError

from anabranch.shared.contracts.codec import Undecodable, decode
from anabranch.shared.contracts.limits import MAX_ANNOUNCEMENT_BYTES, MAX_DESCRIPTION_BYTES, MAX_NAME_CHARS
from anabranch.shared.contracts.messages import STEP_TYPES, StepTypeAnnounced
from anabranch.shared.contracts.nesting import is_too_deep
from anabranch.shared.contracts.schemas import SchemaError, compile_schema
from anabranch.shared.contracts.spec import NOT_YET_TYPES, TypeName
from anabranch.shared.contracts.validation import BUILT_IN

_NAME: Final[TypeAdapter[str]] = TypeAdapter(TypeName)
_OURS: Final = frozenset({*BUILT_IN, *NOT_YET_TYPES})


class BadAnnouncement(ValueError):
    """What is wrong with a record of the step-types topic."""


def read_announcement(key: bytes | None, value: bytes) -> StepTypeAnnounced:
    """Return the announcement in a record. Raises `BadAnnouncement`.

    A record belongs to the type that its key names: the topic is compacted by key, so under another it would replace
    somebody else's, and nothing would ever replace it.
    """
    if len(value) > MAX_ANNOUNCEMENT_BYTES:
        raise BadAnnouncement(f"it takes {len(value)} bytes; at most {MAX_ANNOUNCEMENT_BYTES} are allowed")
    announced = decode(STEP_TYPES, value)
    if isinstance(announced, Undecodable):
        raise BadAnnouncement(announced.reason)
    if key != announced.name.encode(errors="replace"):
        raise BadAnnouncement(f"its key is {(key or b'')[:80]!r}, its name {announced.name[:80]!r}")
    check_announcement(announced)
    return announced


def check_announcement(announced: StepTypeAnnounced) -> None:
    """Check what a step service is about to announce, or has. Raises `BadAnnouncement`."""
    _check_names(announced)
    for side, schema in (("input", announced.input_schema), ("output", announced.output_schema)):
        if is_too_deep(schema):
            raise BadAnnouncement(f"its {side} schema is nested too deeply")
        try:
            compile_schema(schema)  # or else every definition that uses it would find out
        except SchemaError as error:
            raise BadAnnouncement(f"its {side} schema is broken: {error}") from error


def _check_names(announced: StepTypeAnnounced) -> None:
    try:
        _NAME.validate_python(announced.name)
    except ValidationError as error:
        raise BadAnnouncement(f"no step type can be named {announced.name[:80]!r}") from error
    if announced.name in _OURS:
        raise BadAnnouncement(f"{announced.name!r} is a step type of the engine itself")
    if len(announced.version) > MAX_NAME_CHARS:
        raise BadAnnouncement(f"its version has more than {MAX_NAME_CHARS} characters")
    if len(announced.description.encode(errors="replace")) > MAX_DESCRIPTION_BYTES:
        raise BadAnnouncement(f"its description takes more than {MAX_DESCRIPTION_BYTES} bytes")
