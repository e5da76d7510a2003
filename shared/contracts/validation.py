"""A definition is accepted as a whole or refused with everything that is wrong with it, each with its place.

The checks read the raw value, not the model, so that a slip in one step does not hide those in the others.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Final, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from anabranch.shared.contracts import needs as graph
from anabranch.shared.contracts import spec as models
from anabranch.shared.contracts.expressions import canonical_json, split_text
from anabranch.shared.contracts.limits import (
    KIB,
    MAX_EXPRESSION_CHARS,
    MAX_INPUTS_BYTES,
    MAX_NAME_CHARS,
    MAX_NEEDS,
    MAX_POINTER_CHARS,
    MAX_STEPS,
)
from anabranch.shared.contracts.programs import (
    CONDITION,
    PIPELINE,
    RETRY,
    Environment,
    InvalidExpressionError,
    Program,
    compile_expression,
    dashed_step,
)
from anabranch.shared.contracts.report import Budget, Full, InvalidInputs, InvalidPipeline, Report
from anabranch.shared.contracts.schemas import Schema, SchemaError, Violation, compile_schema
from anabranch.shared.contracts.secrets import secret_named
from anabranch.shared.contracts.source import Source, pointer_to
from anabranch.shared.contracts.spec import (
    MAX_INPUTS,
    MAX_RETRY_ON,
    NOT_YET_TYPES,
    PipelineSpec,
    parse_spec,
    parse_steps,
)
from anabranch.shared.contracts.weights import expression_cost

_T = TypeVar("_T")
InputSchema = dict[str, Any]  # the JSON Schema of a step type's `with`

BUILT_IN: Final[Mapping[str, InputSchema]] = {
    "transform": {
        "type": "object",
        "required": ["value"],
        "properties": {"value": True},
        "additionalProperties": False,
    }
}
_OF_THE_ENGINE: Final = NOT_YET_TYPES | BUILT_IN.keys()  # no step service: nobody resolves a secret for them
_NOT_YET_PIPELINE: Final = models.not_yet(models.PipelineSpec)
_NOT_YET_STEP: Final = models.not_yet(models.StepSpec)


@dataclass(frozen=True, slots=True)
class ValidPipeline:
    """A definition that may run: its model, its JSON text in the author's order, and that text's SHA-256 in hex."""

    spec: PipelineSpec
    canonical: str
    content_hash: str


def validate_pipeline(
    source: Source, *, step_types: Mapping[str, InputSchema] | None = None, budget: Budget | None = None
) -> ValidPipeline:
    """Return the definition that a source holds. `step_types` is the `with` schema by type; None checks no types.

    Raises `InvalidPipeline`, and of that `TooCostly` when the budget does not suffice.
    """
    report = Report(source, budget)
    canonical = orjson.dumps(source.value).decode()  # in the author's order: steps are shown and dispatched in it
    spec = None
    with suppress(Full):
        spec = _check_shape(source.value, canonical, report)
        if isinstance(source.value, dict):
            _Checker(_Draft(source.value), report, step_types).run()
    if report.problems or spec is None:
        raise InvalidPipeline(report.sorted(), report.more)
    return ValidPipeline(spec, canonical, hashlib.sha256(canonical.encode()).hexdigest())


def validate_inputs(
    declared: Mapping[str, dict[str, Any]], inputs: Any, *, source: Source | None = None, budget: Budget | None = None
) -> dict[str, Any]:
    """Return the inputs with defaults filled in, in the order in which the definition declares them.

    Raises `InvalidInputs`, with pointers below `/inputs`, and of that `TooCostly` when the budget does not suffice;
    `source` is the body that has them, for line and column.
    """
    report = Report(Source(None) if source is None else source, budget)
    given = {} if inputs is None else inputs
    if not isinstance(given, dict):
        report.add("/inputs", "inputs are a map of name to value")
        raise InvalidInputs(report.sorted(), report.more)
    resolved: dict[str, Any] = {}
    with suppress(Full):
        for name in sorted(given.keys() - declared.keys()):
            near = report.suggest(name, declared)
            report.add("/inputs" + pointer_to(name), f"the pipeline has no input {name[:80]!r}{near}")
        for name, schema in declared.items():
            if name in given:
                _check_input(name, schema, given[name], report)
                resolved[name] = given[name]
            elif "default" in schema:
                resolved[name] = schema["default"]
            else:
                report.add("/inputs", f"the input {name!r} is missing and has no default")
        if len(canonical_json(resolved)) > MAX_INPUTS_BYTES:
            report.add("/inputs", f"the inputs weigh more than {MAX_INPUTS_BYTES} bytes")
    if report.problems:
        raise InvalidInputs(report.sorted(), report.more)
    return resolved


def _check_input(name: str, schema: dict[str, Any], value: Any, report: "Report") -> None:
    def spend(units: int) -> None:
        if not report.affords(units):
            report.spend(units, pointer_to("inputs", name), f"the input {name!r}")

    for violation in compile_schema(schema, spend).violations(value, spend):
        report.add(pointer_to("inputs", name, *violation.path), violation.message)


# ---- The shape -----------------------------------------------------------------------------------------------------

_MODELS: Final[Mapping[str, type[BaseModel]]] = {
    "retry": models.RetrySpec,
    "cache": models.CacheSpec,
    "compensate": models.CompensateSpec,
    "concurrency": models.ConcurrencySpec,
    "defaults": models.DefaultsSpec,
}
_SHAPE: Final = 2  # units of cost for each character of a definition, and for each thing that is wrong with it:
_SHAPE_ERROR: Final = 60
_LARGE: Final = 32 * KIB  # of a definition: beyond, it is looked at in slices
_MANY_KEYS: Final = 100  # several times what any part of a definition has
_NAMED_KEYS: Final = 10  # unknown ones, where there are too many
_MAX_SHOWN_NAME: Final = 4 * MAX_NAME_CHARS  # of a name that is too long: it is shown with all that is wrong below it
_WORDS: Final = {
    "string_pattern_mismatch": "does not match {pattern}",
    "string_type": "must be a text",
    "bool_type": "must be true or false",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "tuple_type": "must be a list",
    "dict_type": "must be a map",
    "model_type": "must be a map",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "too_long": "has {actual_length} entries, at most {max_length} may be",
    "too_short": "needs at least {min_length} entry",
    "enum": "must be {expected}",
}


def _check_shape(value: Any, canonical: str, report: Report) -> PipelineSpec | None:
    """Return the model, or None when there is none.

    A list of everything that is wrong with it is never made: what has too many entries is refused by their number, and
    a large definition is looked at in slices, as long as somebody wants to know more.
    """
    if _has_too_many_entries(value, report) or _has_endless_names(value, report):
        return None
    if len(canonical) <= _LARGE or not isinstance(value, dict):
        return _shaped(parse_spec, canonical, (), report)
    slices = _slices(_dict(value.get("steps")))
    first = {**value, "steps": next(slices)} if _dict(value.get("steps")) else {**value}
    first.pop("finally", None)  # not supported yet: no need to say what else is wrong with it
    spec = _shaped(parse_spec, orjson.dumps(first), (), report)
    parsed: dict[str, models.StepSpec] = {}
    for each in slices:
        parsed |= _shaped(parse_steps, orjson.dumps(each), ("steps",), report) or {}
    return None if spec is None else spec.model_copy(update={"steps": {**spec.steps, **parsed}})


def _slices(steps: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the steps, some at a time: little enough for everything that can be wrong with them."""
    found: dict[str, Any] = {}
    size = 0
    for name, step in steps.items():
        found[name] = step
        size += len(name) + len(orjson.dumps(step))
        if size >= _LARGE:
            yield found
            found, size = {}, 0
    if found:
        yield found


def _shaped(parse: Callable[[str | bytes], _T], text: str | bytes, base: tuple[str, ...], report: Report) -> _T | None:
    report.spend(_SHAPE * len(text), "", "the definition")
    try:
        return parse(text)
    except ValidationError as error:
        report.spend(_SHAPE_ERROR * error.error_count(), "", "saying what is wrong with the definition")
        for one in error.errors(include_url=False, include_input=False):
            _add_shape_problem((*base, *one["loc"]), one["type"], one["msg"], one.get("ctx", {}), report)
        return None


def _has_too_many_entries(value: Any, report: Report) -> bool:
    """Report by their number what would each be a problem of its own; the first unknown keys are named."""
    before = len(report.problems)
    _check_keys(value, PipelineSpec, "", report)
    whole = _dict(value)
    for section, most in (
        ("steps", MAX_STEPS),
        ("finally", MAX_STEPS),
        ("inputs", MAX_INPUTS),
        ("outputs", MAX_INPUTS),
    ):
        _check_count(whole.get(section), most, pointer_to(section), report)
    _check_parts(whole, "", report)
    if len(report.problems) == before:
        for name, step in _dict(whole.get("steps")).items():
            if isinstance(step, dict):
                pointer = pointer_to("steps", name[:_MAX_SHOWN_NAME])
                _check_keys(step, models.StepSpec, pointer, report)
                _check_count(step.get("needs"), MAX_NEEDS, pointer + "/needs", report)
                _check_parts(step, pointer, report)
    return len(report.problems) > before


def _check_parts(value: dict[str, Any], pointer: str, report: Report) -> None:
    """Look at the parts of a step or a pipeline that have keys of their own."""
    for key, model in _MODELS.items():
        part = value.get(key)
        if isinstance(part, dict):
            _check_keys(part, model, f"{pointer}/{key}", report)
            _check_count(part.get("retry_on"), MAX_RETRY_ON, f"{pointer}/{key}/retry_on", report)
            _check_parts(part, f"{pointer}/{key}", report)


def _check_count(value: Any, most: int, pointer: str, report: Report) -> None:
    if isinstance(value, list | dict) and len(value) > most:
        name = pointer.rpartition("/")[2]
        report.add(pointer, f"{name!r} has {len(value)} entries, at most {most} may be")


def _check_keys(value: Any, model: type[BaseModel], pointer: str, report: Report) -> None:
    if isinstance(value, dict) and len(value) > _MANY_KEYS:
        known = _names_of(model)
        report.add(pointer, f"has {len(value)} keys, of which at most {len(known)} are known")
        for key in islice((key for key in value if key not in known), _NAMED_KEYS):
            report.add(pointer + pointer_to(key), f"unknown key {key[:80]!r}{report.suggest(key, known)}")


def _has_endless_names(value: Any, report: Report) -> bool:
    """Report names that are far too long: every problem below one repeats it."""
    found = False
    for section in ("steps", "finally", "inputs", "outputs"):
        for name in _dict(_dict(value).get(section)):
            if len(name) > _MAX_SHOWN_NAME:
                report.add(pointer_to(section), f"the name {name[:80]!r}… has {len(name)} characters")
                found = True
    return found


def _add_shape_problem(loc: tuple[str | int, ...], kind: str, said: str, ctx: dict[str, Any], report: Report) -> None:
    if report.full:
        report.more += 1
        return
    if loc and loc[-1] == "[key]":
        loc = loc[:-1]
    elif kind == "missing":
        report.add(pointer_to(*loc[:-1]), f"{str(loc[-1])!r} is missing")
        return
    elif kind == "extra_forbidden":
        near = report.suggest(str(loc[-1]), _keys_at(loc[:-1]))
        report.add(pointer_to(*loc), f"unknown key {str(loc[-1])[:80]!r}{near}")
        return
    words = _WORDS.get(kind)
    message = words.format(**ctx) if words else said
    report.add(pointer_to(*loc), f"{str(loc[-1])[:80]!r} {message}" if loc and words else message)


def _keys_at(loc: tuple[str | int, ...]) -> list[str]:
    if not loc:
        model: type[BaseModel] = PipelineSpec
    elif len(loc) == 2 and loc[0] in ("steps", "finally"):
        model = models.StepSpec
    else:
        model = _MODELS.get(str(loc[-1]), models.StepSpec)
    return _names_of(model)


def _names_of(model: type[BaseModel]) -> list[str]:
    return [one.alias or name for name, one in model.model_fields.items()]


# ---- What the shape does not say -----------------------------------------------------------------------------------


class _Draft:
    """A raw definition, read leniently: whatever has a wrong shape is left out here, as it is reported already."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value
        self.steps: dict[str, dict[str, Any]] = {
            step: body for step, body in _dict(value.get("steps")).items() if isinstance(body, dict)
        }
        self.inputs = _dict(value.get("inputs"))
        self.outputs = _dict(value.get("outputs"))
        self.declared = _dict(value.get("steps")).keys()

    @cached_property
    def needs(self) -> dict[str, list[str]]:
        """The known steps that each step needs."""
        return {step: [need for need in _needs(body) if need in self.steps] for step, body in self.steps.items()}

    @cached_property
    def named_needs(self) -> dict[str, frozenset[str]]:
        """What each step says it needs, known or not."""
        return {step: frozenset(_needs(body)) for step, body in self.steps.items()}

    @cached_property
    def ancestors(self) -> graph.Ancestors:
        """Made only when a step reads another that it does not need directly."""
        return graph.Ancestors(self.needs)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _needs(body: dict[str, Any]) -> list[str]:
    needs = body.get("needs")
    return [need for need in needs if isinstance(need, str)] if isinstance(needs, list) else []


class _Checker:
    """Runs every check; each adds to the report."""

    def __init__(self, draft: _Draft, report: Report, step_types: Mapping[str, InputSchema] | None) -> None:
        self._draft = draft
        self._report = report
        self._types = None if step_types is None else {**step_types, **BUILT_IN}
        self._schemas: dict[str, Schema | None] = {}

    def run(self) -> None:
        self._not_yet(self._draft.value, _NOT_YET_PIPELINE, "")
        self._inputs()
        for step, body in self._draft.steps.items():
            pointer = pointer_to("steps", step)
            self._not_yet(body, _NOT_YET_STEP, pointer)
            self._needs(body, pointer)
            self._uses(body, pointer)
            self._step_expressions(step, body, pointer)
            self._literal_with(body, pointer)
        self._retry_if(_dict(_dict(self._draft.value.get("defaults")).get("retry")), "/defaults/retry")
        for program, place in self._programs(self._draft.outputs, "/outputs"):
            self._references(program, None, place)
        self._cycles()

    def _not_yet(self, body: dict[str, Any], keys: Iterable[str], pointer: str) -> None:
        for key in keys:
            if key in body:
                self._report.add(pointer + pointer_to(key), f"{key!r} is not supported yet")

    # -- inputs

    def _inputs(self) -> None:
        for name, schema in self._draft.inputs.items():
            if isinstance(schema, dict):
                self._input(schema, pointer_to("inputs", name))

    def _input(self, schema: dict[str, Any], pointer: str) -> None:
        reference = _find_reference(schema)
        if reference:
            self._report.add(pointer, f"{reference!r} in the schema of an input is not supported yet")
            return

        def spend(units: int) -> None:
            self._report.spend(units, pointer, "this schema")

        try:
            compiled = compile_schema(schema, spend)
        except SchemaError as error:
            self._report.add(pointer + pointer_to(*error.path), f"not a JSON Schema: {error.message}")
            return
        for text, place in self._texts(schema.get("default"), pointer + "/default", has_keys=True):
            if _names_secret(text):
                self._report.add(place, "a secret cannot be an input: name it in the `with` of the step that needs it")
        if "default" in schema:
            for violation in compiled.violations(schema["default"], spend):
                place = pointer + pointer_to("default", *violation.path)
                self._report.add(place, f"the default does not fit its own schema: {violation.message}")

    # -- the graph

    def _needs(self, body: dict[str, Any], pointer: str) -> None:
        seen: set[str] = set()
        needs = body.get("needs")
        for at, need in enumerate(needs if isinstance(needs, list) else []):
            place = pointer + pointer_to("needs", at)
            if not isinstance(need, str):
                continue
            if need in seen:
                self._report.add(place, f"{need[:80]!r} stands twice in needs")
            elif need not in self._draft.declared:
                self._report.add(place, f"no step {need[:80]!r}{self._near_step(need)}")
            seen.add(need)

    def _near_step(self, name: str) -> str:
        return self._report.suggest(name, self._draft.declared)

    def _cycles(self) -> None:
        for cycle in graph.cycles(self._draft.needs):
            shown = cycle if len(cycle) <= 12 else [*cycle[:6], "…", *cycle[-6:]]
            self._report.add(
                pointer_to("steps", cycle[0], "needs"), f"the steps need one another in a circle: {' → '.join(shown)}"
            )

    # -- types

    def _uses(self, body: dict[str, Any], pointer: str) -> None:
        uses = body.get("uses")
        if not isinstance(uses, str):
            return
        place = pointer + "/uses"
        if uses in NOT_YET_TYPES:
            self._report.add(place, f"the step type {uses!r} is not supported yet")
        elif self._types is not None and uses not in self._types:
            near = self._report.suggest(uses, self._types)
            self._report.add(place, f"no step type {uses[:80]!r} is known here{near}")

    def _literal_with(self, body: dict[str, Any], pointer: str) -> None:
        schema = self._schema_of(body.get("uses"))
        value = body.get("with", {})
        if schema is None or _is_expression(value):
            return

        def spend(units: int) -> None:
            self._report.spend(units, pointer + "/with", "what is given to the step")

        waiting: dict[int, bool] = {}
        for violation in schema.violations(value, spend):
            if _is_decided(violation, value, waiting):
                self._add_violation(violation, pointer + "/with")

    def _schema_of(self, uses: Any) -> Schema | None:
        types = BUILT_IN if self._types is None else self._types
        if not isinstance(uses, str) or uses not in types or uses in NOT_YET_TYPES:
            return None
        if uses not in self._schemas:
            try:
                self._schemas[uses] = compile_schema(types[uses], self._spend_on_types)
            except SchemaError as error:
                self._report.add("", f"the step type {uses!r} was announced with a schema that cannot be used: {error}")
                self._schemas[uses] = None
        return self._schemas[uses]

    def _spend_on_types(self, units: int) -> None:
        self._report.spend(units, "", "the schemas of the step types")

    def _add_violation(self, violation: Violation, pointer: str) -> None:
        place = pointer + pointer_to(*violation.path)
        if not violation.unexpected:
            self._report.add(place, violation.message)
        for name in violation.unexpected:
            near = self._report.suggest(name, violation.known)
            self._report.add(place + pointer_to(name), f"unknown key {name[:80]!r}{near}")

    # -- expressions

    def _step_expressions(self, step: str, body: dict[str, Any], pointer: str) -> None:
        has_secrets = isinstance(body.get("uses"), str) and body["uses"] not in _OF_THE_ENGINE
        for program, place in self._programs(body.get("with"), pointer + "/with", has_secrets=has_secrets):
            self._references(program, step, place)
        condition = body.get("if")
        if isinstance(condition, str):
            compiled = self._condition(condition, CONDITION, pointer + "/if")
            if compiled is not None:
                self._references(compiled, step, pointer + "/if")
                self._status_calls(compiled, step, pointer + "/if")
        self._retry_if(_dict(body.get("retry")), pointer + "/retry")

    def _retry_if(self, retry: dict[str, Any], pointer: str) -> None:
        if isinstance(retry.get("if"), str):
            self._condition(retry["if"], RETRY, pointer + "/if")

    def _condition(self, text: str, environment: Environment, pointer: str) -> Program | None:
        parts = self._split(text, pointer) if "${{" in text else [(text, 0)]
        if len(parts) != 1 or parts[0][1] is None:
            if parts:
                self._report.add(pointer, "a condition is one expression, alone in its ${{ }}")
            return None
        program = self._compile(parts[0][0], environment, pointer, text, parts[0][1])
        if program is not None and not program.may_be_bool:
            self._report.add(pointer, f"a condition is true or false, this gives {program.returns.lower()}")
        return program

    def _programs(self, value: Any, pointer: str, *, has_secrets: bool = False) -> Iterator[tuple[Program, str]]:
        for text, place in self._texts(value, pointer):
            for part, offset in self._split(text, place):
                if offset is None or (has_secrets and secret_named(part) is not None):
                    continue
                program = self._compile(part, PIPELINE, place, text, offset)
                if program is not None:
                    yield program, place

    def _texts(self, value: Any, pointer: str, *, has_keys: bool = False) -> Iterator[tuple[str, str]]:
        """Yield the texts with expressions, and their places. `has_keys`: of such a key there is nothing to say."""
        todo: list[tuple[Any, _Place | None]] = [(value, None)]
        while todo:
            one, place = todo.pop()
            if isinstance(one, str):
                if "${{" in one:
                    yield one, pointer + _pointer_of(place)
            elif isinstance(one, list):
                todo.extend((one[at], (place, at)) for at in reversed(range(len(one))))
            elif isinstance(one, dict):
                for key, item in reversed(one.items()):
                    if "${{" in key and not has_keys:
                        self._report.add(pointer + _pointer_of((place, key)), "an expression in a key is not evaluated")
                    todo.append((item, (place, key)))

    def _split(self, text: str, pointer: str) -> list[tuple[str, int | None]]:
        try:
            return split_text(text)
        except InvalidExpressionError as error:
            self._report.add(pointer, error.message)
            return []

    def _compile(
        self, expression: str, environment: Environment, pointer: str, text: str, offset: int
    ) -> Program | None:
        self._report.spend(expression_cost(expression), pointer, "this expression")
        try:
            return compile_expression(expression, environment)
        except InvalidExpressionError as error:
            on_first_line = error.line == 1 and len(expression) <= MAX_EXPRESSION_CHARS
            place = offset + error.column - 1 if on_first_line else offset
            shown = f"{error.message} (in the expression at {error.line}:{error.column})"
            self._report.add(pointer, shown, text, place)
            return None

    def _references(self, program: Program, step: str | None, pointer: str) -> None:
        for path in sorted(program.paths):
            if path[0] == "inputs" and len(path) > 1 and path[1] not in self._draft.inputs:
                near = self._report.suggest(path[1], self._draft.inputs)
                self._report.add(pointer, f"the pipeline has no input {path[1][:80]!r}{near}")
            elif path[0] == "steps":
                self._step_reference(path[1], program.source, step, pointer)

    def _step_reference(self, read: str, expression: str, step: str | None, pointer: str) -> None:
        if read not in self._draft.declared:
            dashed = dashed_step(expression)
            is_dashed = dashed in self._draft.declared and str(dashed).startswith(read)
            near = f"; a step with a dash is steps['{dashed}']" if is_dashed else self._near_step(read)
            self._report.add(pointer, f"no step {read[:80]!r}{near}")
        elif step is not None and not self._is_before(read, step):
            said = "itself" if read == step else f"{read!r}, which it does not need: add it to needs"
            self._report.add(pointer, f"the step {step!r} reads {said}")

    def _is_before(self, read: str, step: str) -> bool:
        if read not in self._draft.steps or read in self._draft.named_needs[step]:
            return True
        return read != step and self._draft.ancestors.has(step, read)

    def _status_calls(self, program: Program, step: str, pointer: str) -> None:
        needs = self._draft.named_needs[step]
        for name, of_step in sorted(program.status_calls, key=str):
            if of_step is not None and of_step not in needs:
                near = self._report.suggest(of_step, needs)
                self._report.add(pointer, f"{name}({of_step[:80]!r}) asks about a step that is not in needs{near}")


_Place = tuple[Any, str | int]  # the place around it, None outside, and the last part: written out only when needed


def _pointer_of(place: _Place | None) -> str:
    """Return the pointer of a place, or of the nearest one around it whose keys are not endless."""
    parts: list[str | int] = []
    while place is not None:
        place, part = place
        if isinstance(part, str) and len(part) > MAX_POINTER_CHARS:
            parts.clear()
        else:
            parts.append(part)
    return pointer_to(*reversed(parts))


def _find_reference(schema: Any) -> str | None:
    """Return a keyword by which a schema refers to another: a few of them can make validation exponential."""
    todo = [schema]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            for key in ("$ref", "$dynamicRef", "$recursiveRef", "$schema"):
                if key in one:
                    return key
            todo.extend(one.values())
        elif isinstance(one, list):
            todo.extend(one)
    return None


_DECIDED_BY_NAMES: Final = frozenset(("required", "additionalProperties", "propertyNames", "dependentRequired", "type"))


def _is_expression(value: Any) -> bool:
    return isinstance(value, str) and "${{" in value


def _names_secret(text: str) -> bool:
    try:
        return any(offset is not None and secret_named(part) is not None for part, offset in split_text(text))
    except InvalidExpressionError:  # which is said where expressions are compiled
        return False


def _is_decided(violation: Violation, value: Any, waiting: dict[int, bool]) -> bool:
    """Return whether no expression can still make it right: names and types of containers are known before.

    `waiting` remembers which values have an expression in them.
    """
    for part in violation.path:
        value = value[part]
    if _is_expression(value):
        return violation.keyword == "type" and _names_secret(value)  # whatever it is, it is a text
    if violation.keyword in _DECIDED_BY_NAMES:
        return True
    if id(value) not in waiting:
        waiting[id(value)] = _has_expression(value)
    return not waiting[id(value)]


def _has_expression(value: Any) -> bool:
    todo = [value]
    while todo:
        one = todo.pop()
        if _is_expression(one):
            return True
        if isinstance(one, dict):
            todo.extend(one.values())
        elif isinstance(one, list):
            todo.extend(one)
    return False
