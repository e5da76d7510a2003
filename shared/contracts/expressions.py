"""Expressions where the language has them: templates (`${{ }}` in JSON), conditions (`if`), and their contexts."""

import re
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

import orjson

from anabranch.shared.contracts.cel_cost import cost_of_parts
from anabranch.shared.contracts.limits import MAX_EXPRESSION_CHARS, MAX_RENDERED_BYTES, MAX_TEMPLATE_COST
from anabranch.shared.contracts.programs import (
    CONDITION,
    FAILED_STATUSES,
    PIPELINE,
    RETRY,
    Environment,
    ExpressionError,
    InvalidExpressionError,
    Meter,
    Path,
    Program,
    RunValues,
    compile_expression,
    kind_of,
    status_variable,
)
from anabranch.shared.contracts.secrets import SecretText, secret_named
from anabranch.shared.contracts.source import pointer_to

__all__ = [
    "Condition",
    "Embedded",
    "ExpressionError",
    "InvalidExpressionError",
    "Meter",
    "RetryCondition",
    "RunValues",
    "SecretText",
    "Template",
    "as_text",
    "canonical_json",
    "compile_condition",
    "compile_retry_condition",
    "compile_template",
    "context_for",
    "names_run",
    "split_text",
    "template_in_slices",
]


_PATHS_KEPT: Final = 1024  # sets of paths: finding it anew takes a microsecond


def context_for(
    paths: frozenset[Path],
    inputs: Mapping[str, Any],
    steps: Callable[[str], Mapping[str, Any]],
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the context of these paths. `steps` is asked once per step that is named.

    A program takes out of it only what it names itself.
    """
    return {"inputs": inputs, "steps": {step: steps(step) for step in _steps_named(paths)}, "run": run}


@lru_cache(maxsize=_PATHS_KEPT)
def _steps_named(paths: frozenset[Path]) -> tuple[str, ...]:
    return tuple(sorted({path[1] for path in paths if path[0] == "steps" and len(path) > 1}))


@lru_cache(maxsize=_PATHS_KEPT)
def names_run(paths: frozenset[Path]) -> bool:
    """Return whether one of the paths is of the run itself."""
    return any(path[0] == "run" for path in paths)


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def as_text(value: Any) -> str:
    """Return how a result reads inside a string: text as is, null as nothing, all else as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else canonical_json(value)


# ---- Templates -----------------------------------------------------------------------------------------------------

_IN_EXPRESSION: Final = re.compile(
    r"""r?'''.*?'''|r?\"\"\".*?\"\"\"|[rR]'[^'\n]*'|[rR]"[^"\n]*"|"""
    r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|//[^\n]*|\}\}|[{}]|.""",
    re.DOTALL,
)


@dataclass(frozen=True)
class Embedded:
    """One expression of a template: its source, and where it stands (pointer, and offset within that string)."""

    source: str
    pointer: str
    offset: int
    environment: Environment

    @cached_property
    def program(self) -> Program:
        """The compiled expression. Raises `InvalidExpressionError`."""
        return compile_expression(self.source, self.environment)


def split_text(text: str) -> list[tuple[str, int | None]]:
    """Return the text's parts in order: (literal, None) or (expression, its offset). `$${{` is a literal `${{`.

    Raises `InvalidExpressionError` for a `${{` without its `}}`.
    """
    parts: list[tuple[str, int | None]] = []
    literal, at = "", 0
    while (start := text.find("${{", at)) >= 0:
        if start > at and text[start - 1] == "$":
            literal, at = literal + text[at : start - 1] + "${{", start + 3
            continue
        end = _end_of_expression(text, start + 3)
        literal += text[at:start]
        if literal:
            parts.append((literal, None))
        parts.append((text[start + 3 : end], start + 3))
        literal, at = "", end + 2
    literal += text[at:]
    if literal:
        parts.append((literal, None))
    return parts


def _end_of_expression(text: str, start: int) -> int:
    depth = 0
    at = start
    while match := _IN_EXPRESSION.match(text, at):
        lexeme, at = match.group(), match.end()
        if lexeme == "}}" and depth == 0:
            return match.start()
        if lexeme == "}}":
            depth, at = depth - 1, match.start() + 1
        elif lexeme == "{":
            depth += 1
        elif lexeme == "}":
            depth = max(depth - 1, 0)
        if at - start > MAX_EXPRESSION_CHARS + 2:
            raise InvalidExpressionError(
                f"the expression is longer than {MAX_EXPRESSION_CHARS} characters, or lacks its }}}}"
            )
    raise InvalidExpressionError("`${{` without its `}}`; a literal one is written `$${{`")


@dataclass(frozen=True)
class _Whole:
    """A string that is one expression: keeps the result's type."""

    one: Embedded

    def render(self, run: "_Rendering") -> Any:
        return run.evaluate(self.one)


@dataclass(frozen=True)
class _Text:
    """A string with expressions in it: their results as text."""

    parts: tuple[str | Embedded, ...]

    def render(self, run: "_Rendering") -> str:
        return "".join(part if isinstance(part, str) else as_text(run.evaluate(part)) for part in self.parts)


@dataclass(frozen=True)
class _WithSecrets:
    """A string with names of secrets in it: what is known of it is put beside the value, in which nothing is there."""

    at: str
    names: tuple[str, ...]
    texts: tuple[_Text, ...]  # before, between and behind them

    def render(self, run: "_Rendering") -> None:
        parts = [self.texts[0].render(run)]
        for name, text in zip(self.names, self.texts[1:], strict=True):
            parts += (name, text.render(run))
        run.secrets.append(SecretText(self.at, tuple(parts)))


@dataclass(frozen=True)
class _Object:
    """A map in which at least one value is not literal."""

    fields: dict[str, Any]

    def render(self, run: "_Rendering") -> dict[str, Any]:
        return {key: _rendered(value, run) for key, value in self.fields.items()}


@dataclass(frozen=True)
class _List:
    """A list in which at least one value is not literal."""

    items: tuple[Any, ...]

    def render(self, run: "_Rendering") -> list[Any]:
        return [_rendered(value, run) for value in self.items]


_PLANS: Final = (_Whole, _Text, _WithSecrets, _Object, _List)


def _rendered(value: Any, run: "_Rendering") -> Any:
    return value.render(run) if isinstance(value, _PLANS) else value


class _Rendering:
    """One rendering: the context, how much the results weigh so far, and what they cost."""

    __slots__ = ("_bytes", "_context", "cost", "secrets")

    def __init__(self, context: Mapping[str, Any], secrets: list[SecretText]) -> None:
        self._context = context
        self._bytes = 0
        self.cost = 0
        self.secrets = secrets

    def charge(self, cost: int) -> None:
        """Add to what the expressions of the template cost."""
        self.cost += cost

    def evaluate(self, one: Embedded) -> Any:
        try:
            value = one.program.evaluate(self._context, meter=self)
        except ExpressionError as error:
            raise ExpressionError(error.message, one.pointer) from error
        weight, cost = _weight(value)
        self.cost += cost
        self._bytes += weight
        if self._bytes > MAX_RENDERED_BYTES:
            raise ExpressionError(f"the results weigh more than {MAX_RENDERED_BYTES} bytes", one.pointer)
        if self.cost > MAX_TEMPLATE_COST:
            raise ExpressionError(
                f"the expressions up to here cost more than {MAX_TEMPLATE_COST} units; do a part in a step of its own",
                one.pointer,
            )
        return value


_CONTAINERS: Final = (list, dict)
_WEIGHED: Final = 4  # units: a byte of a result is made JSON to be weighed, and again to be sent


def _weight(value: Any) -> tuple[int, int]:
    """Return the bytes of a result, and what it costs to make it JSON."""
    if type(value) in _CONTAINERS:
        written = orjson.dumps(value)
        return len(written), _WEIGHED * len(written) + cost_of_parts(written)
    weight = len(value) if isinstance(value, str) else 8
    return weight, _WEIGHED * weight


@dataclass(frozen=True)
class Template:
    """A JSON value in which strings may hold expressions."""

    value: Any
    expressions: tuple[Embedded, ...]
    _plan: Any

    @property
    def is_literal(self) -> bool:
        """Whether no expression is in it: rendering gives the same object."""
        return self._plan is self.value

    @cached_property
    def paths(self) -> frozenset[Path]:
        """The paths that the expressions name. Compiles them, so it raises `InvalidExpressionError`."""
        return frozenset().union(*(one.program.paths for one in self.expressions))

    def render(
        self, context: Mapping[str, Any], meter: Meter | None = None, secrets: list[SecretText] | None = None
    ) -> Any:
        """Return the value with every expression replaced by its result; `meter` is charged with what they cost.

        A text with secrets in it is null in the value, and added to `secrets`. Raises `ExpressionError`.
        """
        if self._plan is self.value:
            return self._plan
        rendering = _Rendering(context, [] if secrets is None else secrets)
        try:
            return _rendered(self._plan, rendering)
        finally:  # once for all of them, and for what was too much as well
            if meter is not None:
                meter.charge(rendering.cost)


def compile_template(
    value: Any, environment: Environment = PIPELINE, pointer: str = "", *, may_name_secrets: bool = False
) -> Template:
    """Return the template of a JSON value that stands at `pointer`.

    Expressions are compiled when first needed. Raises `ExpressionError`, with its pointer, for a `${{` without `}}`.
    """
    slices = template_in_slices(value, environment, pointer, may_name_secrets=may_name_secrets)
    while True:
        try:
            next(slices)
        except StopIteration as done:
            template: Template = done.value
            return template


def template_in_slices(
    value: Any, environment: Environment = PIPELINE, pointer: str = "", *, may_name_secrets: bool = False
) -> Generator[None, None, Template]:
    """Do what `compile_template` does, and yield on the way."""
    if not _may_hold_expressions(value):
        return Template(value, (), value)
    language = _Language(environment, may_name_secrets, [])
    plan = yield from _plan(value, language, pointer)
    return Template(value, tuple(language.found), plan)


@dataclass(frozen=True, slots=True)
class _Language:
    """What the expressions of a template may name; those that were found."""

    environment: Environment
    has_secrets: bool
    found: list[Embedded]


_VALUES_PER_SLICE: Final = 256


def _may_hold_expressions(value: Any) -> bool:
    """Return whether a walk through the value may find any: most values are literal, and large ones nearly always."""
    try:
        return b"${{" in orjson.dumps(value)
    except TypeError:  # a lone surrogate, which is somebody else's to refuse
        return True


def _plan(value: Any, language: _Language, pointer: str) -> Generator[None, None, Any]:
    if isinstance(value, str):
        return _plan_text(value, language, pointer) if "${{" in value else value
    if isinstance(value, dict):
        planned = yield from _plan_those(value.items(), language, pointer)
        return _Object({**value, **planned}) if planned else value
    if isinstance(value, list):
        planned = yield from _plan_those(enumerate(value), language, pointer)
        return _List(tuple(planned.get(i, v) for i, v in enumerate(value))) if planned else value
    return value


def _plan_those(
    values: Iterable[tuple[Any, Any]], language: _Language, pointer: str
) -> Generator[None, None, dict[Any, Any]]:
    """Return the plans of those of the values that are not literal."""
    planned: dict[Any, Any] = {}
    for number, (key, value) in enumerate(values):
        if number % _VALUES_PER_SLICE == 0:
            yield
        if ("${{" in value) if isinstance(value, str) else (value and isinstance(value, dict | list)):
            plan = yield from _plan(value, language, pointer + pointer_to(key))
            if plan is not value:
                planned[key] = plan
    return planned


def _plan_text(text: str, language: _Language, pointer: str) -> Any:
    try:
        split = split_text(text)
    except InvalidExpressionError as error:
        raise ExpressionError(error.message, pointer) from error
    names: list[str] = []
    texts: list[list[str | Embedded]] = [[]]
    for part, offset in split:
        name = None if offset is None or not language.has_secrets else secret_named(part)
        if name is not None:
            names.append(name)
            texts.append([])
        else:
            texts[-1].append(part if offset is None else Embedded(part, pointer, offset, language.environment))
    language.found.extend(part for parts in texts for part in parts if isinstance(part, Embedded))
    if names:
        return _WithSecrets(pointer, tuple(names), tuple(_Text(tuple(parts)) for parts in texts))
    return _planned(texts[0])


def _planned(parts: list[str | Embedded]) -> Any:
    if len(parts) == 1 and isinstance(parts[0], Embedded):
        return _Whole(parts[0])
    return _Text(tuple(parts)) if any(isinstance(part, Embedded) for part in parts) else "".join(map(str, parts))


# ---- Conditions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """Whether a step runs once all it needs are terminal. Without an expression: `succeeded()`.

    An expression that mentions none of `succeeded`, `failed` and `always` means `succeeded() && (expression)`.
    """

    program: Program | None = None

    @property
    def paths(self) -> frozenset[Path]:
        """The paths that the expression names."""
        return self.program.paths if self.program else frozenset()

    @property
    def asks_for_failures(self) -> bool:
        """Whether it uses `failed` or `always`: the step is then considered under fail_fast too."""
        return any(name != "succeeded" for name, _ in self.status_calls)

    @property
    def status_calls(self) -> frozenset[tuple[str, str | None]]:
        """The calls like `failed('x')`, as (function, step or None for all needs)."""
        return self.program.status_calls if self.program else frozenset()

    def evaluate(
        self,
        context: Mapping[str, Any],
        needs: Mapping[str, str],
        *,
        tolerated: Collection[str] = (),
        meter: Meter | None = None,
    ) -> bool:
        """Return whether the step runs. `needs` is the status of each step it needs, by id.

        A need in `tolerated` (it has `continue_on_error`) may have failed and `succeeded()` still holds; `failed()`,
        `failed('x')` and `succeeded('x')` speak of the plain status. Raises `ExpressionError`.
        """
        if self.program is None:
            return _all_succeeded(needs, tolerated)
        if not self.program.status_calls and not _all_succeeded(needs, tolerated):
            return False
        calls = self.program.status_calls
        statuses = {status_variable(name, step): _answer(name, step, needs, tolerated) for name, step in calls}
        return _must_be_bool(self.program.evaluate(context, statuses, meter), "if")


def _answer(name: str, step: str | None, needs: Mapping[str, str], tolerated: Collection[str]) -> bool:
    match name, step:
        case "always", _:
            return True
        case "failed", None:
            return not FAILED_STATUSES.isdisjoint(needs.values())
        case "failed", str():
            return needs.get(step) in FAILED_STATUSES
        case _, str():
            return needs.get(step) == "succeeded"
        case _:
            return _all_succeeded(needs, tolerated)


def _all_succeeded(needs: Mapping[str, str], tolerated: Collection[str]) -> bool:
    return all(
        status == "succeeded" or (need in tolerated and status in FAILED_STATUSES) for need, status in needs.items()
    )


def _must_be_bool(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise ExpressionError(f"`{what}` must be true or false, this is {kind_of(value)}")
    return value


def compile_condition(source: str | bool | None) -> Condition:
    """Return the condition of an `if`, written with or without `${{ }}`; None is the default one.

    Raises `InvalidExpressionError`.
    """
    if source is None:
        return Condition()
    return Condition(_bool_program("true" if source is True else "false" if source is False else source, CONDITION))


@dataclass(frozen=True)
class RetryCondition:
    """The `if` of a retry policy: CEL over `error` and `attempt`."""

    program: Program

    def evaluate(self, error: Mapping[str, Any], attempt: int, meter: Meter | None = None) -> bool:
        """Return whether the error may be retried. Raises `ExpressionError`."""
        return _must_be_bool(self.program.evaluate({"error": error, "attempt": attempt}, meter=meter), "retry.if")


def compile_retry_condition(source: str) -> RetryCondition:
    """Return the `if` of a retry policy, written with or without `${{ }}`. Raises `InvalidExpressionError`."""
    return RetryCondition(_bool_program(source, RETRY))


def _bool_program(source: str, environment: Environment) -> Program:
    parts = split_text(source)
    if len(parts) > 1:
        raise InvalidExpressionError("a condition is one expression, alone in its `${{ }}`")
    text = parts[0][0] if parts and parts[0][1] is not None else source
    program = compile_expression(text, environment)
    if not program.may_be_bool:
        raise InvalidExpressionError(f"a condition is true or false, this gives {program.returns.lower()}")
    return program
