"""The pipeline language as frozen models: the whole of it, so that the shape of what does not run yet is checked too.

`validation.py` decides what is accepted; these models alone say what a definition looks like, and what runs yet.
"""

from collections.abc import Generator
from enum import StrEnum
from typing import Annotated, Any, Final

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, PydanticCustomError

from anabranch.shared.contracts.durations import DURATION_PATTERN, DurationError, parse_duration
from anabranch.shared.contracts.expressions import RetryCondition, compile_retry_condition
from anabranch.shared.contracts.limits import (
    MAX_DESCRIPTION_BYTES,
    MAX_NAME_CHARS,
    MAX_NEEDS,
    MAX_NESTING,
    MAX_STEPS,
    MAX_WAIT_S,
)
from anabranch.shared.contracts.nesting import is_text_too_deep
from anabranch.shared.contracts.retry import Jitter, RetryPolicy

PIPELINE_NAME: Final = rf"^[a-z][a-z0-9-]{{0,{MAX_NAME_CHARS - 1}}}$"
STEP_NAME: Final = rf"^[a-z][a-z0-9_-]{{0,{MAX_NAME_CHARS - 1}}}$"
FIELD_NAME: Final = rf"^[A-Za-z_][A-Za-z0-9_-]{{0,{MAX_NAME_CHARS - 1}}}$"

MAX_RETRY_ON: Final = 100
MAX_INPUTS: Final = 1_000  # and as many outputs: a form nobody fills in, far below what a body could hold


def _seconds(value: object) -> float:
    try:
        return parse_duration(value)
    except DurationError as error:
        raise PydanticCustomError("duration", "{reason}", {"reason": str(error)}) from error


def _seconds_not_zero(value: object) -> float:
    seconds = _seconds(value)
    if seconds == 0:
        raise PydanticCustomError("duration", "a timeout is longer than nothing")
    return seconds


def _condition(value: object) -> object:
    if isinstance(value, str | bool):
        return value
    raise PydanticCustomError("condition", "a condition is CEL in a text, or true or false")


def _items(value: object) -> object:
    if isinstance(value, list) or (isinstance(value, str) and "${{" in value):
        return value
    raise PydanticCustomError("for_each", "for_each is a list, or one expression in ${{{{ }}}}")


def _description(value: str) -> str:
    if len(value.encode()) > MAX_DESCRIPTION_BYTES:
        raise PydanticCustomError("description", "longer than {limit} bytes", {"limit": MAX_DESCRIPTION_BYTES})
    return value


def _duration_schema(**least: float) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": DURATION_PATTERN},
                {"type": "number", **least, "maximum": MAX_WAIT_S},
            ],
            "description": "Like 500ms, 15m, 1h30m or 2d, or a number of seconds.",
        }
    )


Duration = Annotated[float, BeforeValidator(_seconds), _duration_schema(minimum=0)]
Timeout = Annotated[float, BeforeValidator(_seconds_not_zero), _duration_schema(exclusiveMinimum=0)]
ConditionText = Annotated[
    Any, BeforeValidator(_condition), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "boolean"}]})
]
_ITEMS_SCHEMA: Final = {"anyOf": [{"type": "string", "pattern": r"\$\{\{"}, {"type": "array"}]}
Items = Annotated[Any, BeforeValidator(_items), WithJsonSchema(_ITEMS_SCHEMA)]
PipelineName = Annotated[str, StringConstraints(pattern=PIPELINE_NAME)]
StepName = Annotated[str, StringConstraints(pattern=STEP_NAME)]
FieldName = Annotated[str, StringConstraints(pattern=FIELD_NAME)]
TypeName = Annotated[str, StringConstraints(pattern=STEP_NAME)]
NOT_YET_TYPES: Final = frozenset(("approval", "wait", "pipeline"))
"""Step types that a definition may not use yet, nor anybody announce."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the schema without what does not run yet: nobody is offered what is refused."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for key in not_yet(cls):
            del properties[key]
        return schema


class _NotYet:
    """Marks a field that has a shape and does not run yet."""


_NOT_YET: Final = _NotYet()


def not_yet(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the keys of a model that do not run yet: a definition that has one is refused."""
    fields = model.model_fields.items()
    return tuple(field.alias or name for name, field in fields if _NOT_YET in field.metadata)


class RetrySpec(_Model):
    """How often and when a step is tried again."""

    max_attempts: int = Field(default=1, ge=1, le=1000, description="Tries in all, the first one included.")
    initial_s: Duration = Field(default=1.0, alias="initial", description="Delay before the second try.")
    factor: float = Field(default=2.0, ge=1, le=100, description="Each further delay is so many times the last.")
    max_s: Duration = Field(default=60.0, alias="max", description="No delay is longer.")
    jitter: Jitter = Field(default=Jitter.FULL, description="How delays are spread.")
    retry_on: tuple[str, ...] = Field(default=(), max_length=MAX_RETRY_ON, description="Error types; empty means all.")
    if_: str | None = Field(default=None, alias="if", description="CEL over `error` and `attempt`.")

    def policy(self) -> RetryPolicy:
        """Return the policy that the core decides by."""
        return RetryPolicy(
            max_attempts=self.max_attempts,
            initial_s=self.initial_s,
            factor=self.factor,
            max_s=self.max_s,
            jitter=self.jitter,
            retry_on=self.retry_on,
            when=self.if_,
        )

    def condition(self) -> RetryCondition | None:
        """Return the compiled `if`, or None when there is none."""
        return compile_retry_condition(self.if_) if self.if_ is not None else None


class CacheSpec(_Model):
    """Reuse the output of an equal step."""

    ttl_s: Timeout = Field(alias="ttl", description="How long an output is reused.")
    key: str | None = Field(default=None, description="CEL; without it, the step type and its resolved input.")


class OnConflict(StrEnum):
    """What happens to a run or step that finds no slot."""

    QUEUE = "queue"
    CANCEL_RUNNING = "cancel_running"
    REJECT = "reject"


class ConcurrencySpec(_Model):
    """How many runs or steps with the same key may be active at once."""

    key: str = Field(description="CEL; what has the same key shares the slots.")
    limit: int = Field(default=1, ge=1, description="Slots.")
    on_conflict: OnConflict = Field(default=OnConflict.QUEUE, description="What happens to one that finds no slot.")


class CompensateSpec(_Model):
    """What undoes a step that succeeded, when its run fails or is cancelled."""

    uses: TypeName = Field(description="The step type.")
    with_: JsonValue = Field(default_factory=dict, alias="with", description="The input; strings may hold ${{ CEL }}.")
    retry: RetrySpec | None = Field(default=None, description="How often and when it is tried again.")
    timeout_s: Timeout | None = Field(default=None, alias="timeout", description="Of one attempt.")


class StepSpec(_Model):
    """One node of the graph."""

    uses: TypeName = Field(description="The step type.", json_schema_extra={"not": {"enum": [*sorted(NOT_YET_TYPES)]}})
    with_: JsonValue = Field(default_factory=dict, alias="with", description="The input; strings may hold ${{ CEL }}.")
    needs: tuple[StepName, ...] = Field(
        default=(), max_length=MAX_NEEDS, description="Steps that end before it starts."
    )
    if_: ConditionText = Field(default=None, alias="if", description="CEL; without it, succeeded().")
    retry: RetrySpec | None = Field(default=None, description="How often and when it is tried again.")
    timeout_s: Timeout | None = Field(default=None, alias="timeout", description="Of one attempt.")
    continue_on_error: bool = Field(default=False, description="Its failure is not the run's, and its dependents run.")
    total_timeout_s: Annotated[Timeout | None, _NOT_YET] = Field(
        default=None, alias="total_timeout", description="Over all attempts."
    )
    queue_timeout_s: Annotated[Timeout | None, _NOT_YET] = Field(
        default=None, alias="queue_timeout", description="Waiting for a worker."
    )
    for_each: Annotated[Items, _NOT_YET] = Field(
        default=None, description="One child per item, with `item` and `index`."
    )
    max_parallel: Annotated[int | None, _NOT_YET] = Field(default=None, ge=1, description="Children in flight at once.")
    cache: Annotated[CacheSpec | None, _NOT_YET] = Field(default=None, description="Reuse the output of an equal step.")
    compensate: Annotated[CompensateSpec | None, _NOT_YET] = Field(
        default=None, description="What undoes it when the run fails."
    )
    concurrency: Annotated[ConcurrencySpec | None, _NOT_YET] = Field(
        default=None, description="How many of its kind run at once."
    )


class DefaultsSpec(_Model):
    """For every step that does not say otherwise."""

    retry: RetrySpec | None = Field(default=None, description="How often and when a step is tried again.")
    timeout_s: Timeout | None = Field(default=None, alias="timeout", description="Of one attempt.")


class PipelineSpec(_Model):
    """A pipeline: a named graph of steps."""

    name: PipelineName = Field(description="Lower-case letters, digits and dashes.")
    description: Annotated[
        str, AfterValidator(_description), WithJsonSchema({"type": "string", "maxLength": MAX_DESCRIPTION_BYTES})
    ] = Field(default="", description="For people.")
    inputs: dict[FieldName, dict[str, JsonValue]] = Field(
        default_factory=dict, max_length=MAX_INPUTS, description="A JSON Schema per input; `default` makes it optional."
    )
    timeout_s: Timeout | None = Field(
        default=None, alias="timeout", description="Of the whole run; 15m unless the server says otherwise."
    )
    defaults: DefaultsSpec = Field(default=DefaultsSpec(), description="For every step that does not say otherwise.")
    fail_fast: bool = Field(default=True, description="A failed step stops what has not started and cancels what runs.")
    max_parallel: Annotated[int | None, _NOT_YET] = Field(
        default=None, ge=1, description="Steps of the run in flight at once."
    )
    steps: dict[StepName, StepSpec] = Field(min_length=1, max_length=MAX_STEPS, description="The steps by name.")
    finally_: Annotated[dict[StepName, StepSpec], _NOT_YET] = Field(
        default_factory=dict, alias="finally", max_length=MAX_STEPS, description="Steps that run whatever happened."
    )
    outputs: dict[FieldName, JsonValue] = Field(
        default_factory=dict, max_length=MAX_INPUTS, description="What the run gives; strings may hold ${{ CEL }}."
    )
    concurrency: Annotated[ConcurrencySpec | None, _NOT_YET] = Field(
        default=None, description="How many runs are active at once."
    )

    def retry_of(self, step: str) -> RetrySpec:
        """Return how a step is retried: by its own word, else the pipeline's default, else one attempt."""
        return self.steps[step].retry or self.defaults.retry or _ONE_ATTEMPT

    def timeout_of(self, step: str) -> float | None:
        """Return a step's seconds per attempt: by its own word, else the pipeline's default, else None."""
        own = self.steps[step].timeout_s
        return own if own is not None else self.defaults.timeout_s


_ONE_ATTEMPT: Final = RetrySpec()


_STEPS: Final[TypeAdapter[dict[str, StepSpec]]] = TypeAdapter(dict[StepName, StepSpec])
_STEPS_PER_SLICE: Final = 256  # some 5 ms
_LARGE: Final = 32 * 1024  # bytes: some 3 ms


def parse_spec_in_slices(canonical: str) -> Generator[None, None, PipelineSpec]:
    """Return the model of a definition's JSON text that the gateway has validated, and yield on the way.

    Raises `ValueError`, of which pydantic's `ValidationError` is one.
    """
    encoded = canonical.encode()
    value = orjson.loads(encoded)
    if is_text_too_deep(encoded, MAX_NESTING):
        raise ValueError(f"nested deeper than {MAX_NESTING} levels")
    if len(encoded) <= _LARGE:
        return PipelineSpec.model_validate(value, strict=False)
    yield
    return (yield from _large_spec(value))


def _large_spec(value: Any) -> Generator[None, None, PipelineSpec]:
    items = list(value["steps"].items()) if isinstance(value, dict) and isinstance(value.get("steps"), dict) else []
    if len(items) > _STEPS_PER_SLICE:
        value["steps"] = dict(items[:_STEPS_PER_SLICE])
    # What is any JSON need not be looked at, which takes longest: it is taken out, and put back.
    inputs = {name: step.pop("with") for name, step in items if isinstance(step, dict) and "with" in step}
    schemas = value.get("inputs") if isinstance(value, dict) else None
    if isinstance(schemas, dict):
        value["inputs"] = {name: {} if isinstance(schema, dict) else schema for name, schema in schemas.items()}
    outputs = value.get("outputs") if isinstance(value, dict) else None
    if isinstance(outputs, dict):
        value["outputs"] = dict.fromkeys(outputs)
    spec = PipelineSpec.model_validate(value, strict=False)
    steps = dict(spec.steps)
    for start in range(_STEPS_PER_SLICE, min(len(items), MAX_STEPS), _STEPS_PER_SLICE):
        yield
        steps |= _STEPS.validate_python(dict(items[start : start + _STEPS_PER_SLICE]), strict=False)
    for number, name in enumerate(steps):
        if name in inputs:
            steps[name] = steps[name].model_copy(update={"with_": inputs[name]})
        if number % _STEPS_PER_SLICE == 0:
            yield
    taken_out = {"inputs": schemas, "outputs": outputs}
    return spec.model_copy(
        update={"steps": steps} | {name: any_ for name, any_ in taken_out.items() if any_ is not None}
    )


def parse_spec(canonical: str | bytes) -> PipelineSpec:
    """Return the model of a definition's JSON text. Raises pydantic's `ValidationError`."""
    return PipelineSpec.model_validate_json(canonical)


def parse_steps(text: str | bytes) -> dict[str, StepSpec]:
    """Return the models of some steps' JSON text. Raises pydantic's `ValidationError`."""
    return _STEPS.validate_json(text)


def pipeline_json_schema() -> dict[str, Any]:
    """Return the language's JSON Schema (2020-12), as it is published.

    It refuses nothing that may run, and has no key that is refused because it does not run yet.
    """
    schema = PipelineSpec.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **closed(schema)}


def closed(schema: Any) -> Any:
    """Return a schema of pydantic's whose maps take no name but those of their pattern, as the models do."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(value) for name, value in schema.items()}
    return found | {"additionalProperties": False} if isinstance(found.get("patternProperties"), dict) else found
