"""Durations in the inputs of step types: what the model refuses, its announced schema refuses at submission."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from anabranch.shared.contracts.durations import DURATION_PATTERN, parse_duration
from anabranch.shared.contracts.limits import MAX_WAIT_S

_Written = Annotated[str, Field(pattern=DURATION_PATTERN)] | Annotated[float, Field(ge=0, le=MAX_WAIT_S)]

Duration = Annotated[float, BeforeValidator(parse_duration, json_schema_input_type=_Written)]
"""Seconds; written like `500ms`, `2s`, `1h30m`, or as a number of seconds."""
