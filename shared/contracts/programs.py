"""CEL in `${{ }}`: compiled once per text, checked before a run starts, evaluated as a pure function.

What keeps it deterministic: CEL's maps have no order, so macros over maps are refused (by their static type where it is
known, else when they are evaluated) and results come back with sorted keys; limits are counts (the engine allows 9,999
iterations per evaluation and 32 levels of nesting, `cel_cost` bounds its work), never wall time; time zones by name are
refused, as they are data of the host; a program sees only the paths it names.

An expression that is nothing but a path (`steps.page.output.body`), the most frequent one, is looked up without the
engine; a property test compares both ways.
"""

import base64
import ctypes
import datetime
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, lru_cache
from typing import Any, Final, NamedTuple, NoReturn, Protocol

from cel_expr_python import cel
from cel_expr_python.ext import ext_bindings, ext_math, ext_optional, ext_strings

from anabranch.shared.contracts import cel_ast as ast
from anabranch.shared.contracts.bounded import BoundedMemory
from anabranch.shared.contracts.cel_cost import LOOKUP, Cost
from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.contracts.limits import (
    MAX_EXPRESSION_CHARS,
    MAX_EXPRESSION_COST,
    MAX_EXPRESSION_TREE_BYTES,
    MAX_INTEGER,
    MAX_MACRO_ITERATIONS,
    MAX_NESTING,
)
from anabranch.shared.contracts.secrets import SECRETS, why_no_secret
from anabranch.shared.contracts.text import holds_nul, writable

Path = tuple[str, ...]

STEP_FIELDS: Final = ("status", "output", "error", "attempt")


class RunValues(NamedTuple):
    """What expressions see of the run itself. `revision` is null unless the pipeline is a kept one."""

    id: str
    pipeline: str
    revision: int | None
    tenant: str
    labels: Mapping[str, str]
    status: str
    created_at: str
    started_at: str


RUN_FIELDS: Final = RunValues._fields
FAILED_STATUSES: Final = frozenset(("failed", "timed_out"))
STATUS_FUNCTIONS: Final = frozenset(("succeeded", "failed", "always"))

_PROGRAMS_KEPT_BYTES: Final = 64 * 1024 * 1024  # some 15,000 plain ones; a template keeps its own ones anyway
_LEAST_WEIGHT: Final = 1024  # bytes of memory: a path, which needs no engine
_WEIGHT_PER_TREE_BYTE: Final = 24  # measured: 20 to 24 bytes of memory for one of the checked tree


class ExpressionError(AnabranchError):
    """An expression that compiled and could not be evaluated; `pointer` is its place in the template."""

    def __init__(self, message: str, pointer: str = "") -> None:
        super().__init__(f"{message} (at {pointer})" if pointer else message)
        self.message = message
        self.pointer = pointer


class InvalidExpressionError(ExpressionError):
    """An expression that does not compile. Line and column are within the expression, from 1."""

    def __init__(self, message: str, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


class Meter(Protocol):
    """Counts what evaluations cost, in the unit of `cel_cost`."""

    def charge(self, cost: int) -> None:
        """Add this to the cost."""


@dataclass(frozen=True, slots=True)
class Environment:
    """The names an expression may use: its variables, and whether it may ask how its needs ended."""

    variables: tuple[str, ...]
    has_status_functions: bool = False


PIPELINE: Final = Environment(("inputs", "steps", "run"))
CONDITION: Final = Environment(("inputs", "steps", "run"), has_status_functions=True)
RETRY: Final = Environment(("error", "attempt"))


# ---- The engine ----------------------------------------------------------------------------------------------------

_MANY: Final = 1 << 60
_NONE_IS_IMMORTAL: Final = (3, 12)  # since this version of Python


def _make_none_immortal() -> None:
    """Let nothing take None's last reference, as no Python from 3.12 on does.

    `plain_value` of cel-expr-python 0.1.3 gives each null of a result away without a reference of its own, so each
    takes one from None, and the process aborts when there is none left: after some thousand nulls.
    """
    if sys.version_info < _NONE_IS_IMMORTAL and sys.getrefcount(None) < _MANY:
        ctypes.c_ssize_t.from_address(id(None)).value += _MANY  # CPython's objects begin with their count


_make_none_immortal()


def _range(n: int) -> list[int]:
    if not 0 <= n <= MAX_MACRO_ITERATIONS:
        raise ValueError(f"range({n}) is not within 0 to {MAX_MACRO_ITERATIONS}")
    return list(range(n))


@lru_cache(maxsize=8)
def _engine(environment: Environment) -> Any:
    types = cel.Type
    functions = [
        cel.FunctionDecl(
            "range",
            [cel.Overload("range_int", return_type=types.List(types.INT), parameters=[types.INT], impl=_range)],
        )
    ]
    if environment.has_status_functions:  # declared for the checker; the calls become variables before they run
        for name in sorted(STATUS_FUNCTIONS):
            none = cel.Overload(f"{name}_needs", return_type=types.BOOL, parameters=[])
            one = cel.Overload(f"{name}_step", return_type=types.BOOL, parameters=[types.STRING])
            functions.append(cel.FunctionDecl(name, [none] if name == "always" else [none, one]))
    mapping = types.Map(types.STRING, types.DYN)
    return cel.NewEnv(
        variables={name: types.INT if name == "attempt" else mapping for name in environment.variables},
        extensions=[
            ext_strings.ExtStrings(),
            ext_math.ExtMath(),
            ext_optional.ExtOptional(),
            ext_bindings.ExtBindings(),
        ],
        functions=functions,
    )


_PATH: Final = re.compile(
    r"\s*([a-z]+)((?:\.[A-Za-z_][A-Za-z0-9_]*|\[\s*'[^'\\\n]*'\s*\]|\[\s*\"[^\"\\\n]*\"\s*\])+)\s*"
)
_PATH_PART: Final = re.compile(r"\.([A-Za-z_][A-Za-z0-9_]*)|\[\s*(?:'([^']*)'|\"([^\"]*)\")\s*\]")
_MAX_PATH_PARTS: Final = 24  # a longer one goes to the engine, which has its own limit
_CEL_KEYWORDS: Final = frozenset(("in", "true", "false", "null"))


@dataclass(frozen=True)
class Program:
    """A compiled expression. `status_calls` are its `failed('x')` and the like, as (function, step or None)."""

    source: str
    paths: frozenset[Path]
    status_calls: frozenset[tuple[str, str | None]]
    returns: str
    _lookup: Path | None
    _compiled: Any = None
    _macros_checked: bool = False
    _makes_optionals: bool = False
    _cost: Cost | None = None  # None: of a look-up
    weight: int = _LEAST_WEIGHT  # bytes of memory, roughly

    def evaluate(
        self, context: Mapping[str, Any], statuses: Mapping[str, bool] | None = None, meter: Meter | None = None
    ) -> Any:
        """Return the result as JSON; `meter` is charged with the cost. Raises `ExpressionError`."""
        if self._lookup is not None:
            if meter is not None:
                meter.charge(LOOKUP)
            return _look_up(context, self._lookup)
        data = self._readable(context, meter)
        if statuses:
            data.update(statuses)
        try:
            value = self._compiled.eval(data=data)
            if self._makes_optionals:
                _refuse_optionals(value)
            plain = value.plain_value()
            if isinstance(plain, str) and value.type() == cel.Type.ERROR:  # an error's plain value is its text
                raise ExpressionError(self._explain(plain, context))
        except TypeError as error:
            raise ExpressionError(f"the result, {self.returns}, has no JSON form; end it with .orValue(…)") from error
        except RuntimeError as error:
            raise ExpressionError(self._explain(str(error), context)) from error
        return _to_json(plain)

    def _readable(self, context: Mapping[str, Any], meter: Meter | None) -> dict[str, Any]:
        """Return what the engine is given of the context, paid for."""
        data = only(context, self._outermost_paths)
        self._pay(data, meter)
        if holds_nul(data):
            raise ExpressionError(_nul_in(context, self._outermost_paths))
        return data

    def _pay(self, data: Mapping[str, Any], meter: Meter | None) -> None:
        cost = None if self._cost is None else self._cost.of(data)
        if meter is not None:  # telling that it is too much is work as well
            meter.charge(MAX_EXPRESSION_COST if cost is None else cost)
        if cost is None:
            raise ExpressionError(_TOO_EXPENSIVE)

    @property
    def may_be_bool(self) -> bool:
        """Whether the static type is bool, or not known before it runs."""
        return self.returns in ("BOOL", "DYN", "dyn")

    @cached_property
    def _sorted_paths(self) -> tuple[Path, ...]:
        return tuple(sorted(self.paths))

    @cached_property
    def _outermost_paths(self) -> tuple[Path, ...]:
        return outermost(self._sorted_paths)

    def _explain(self, message: str, context: Mapping[str, Any]) -> str:
        if "Key not found" in message:  # say where, when it is one of our paths
            message = next(filter(None, (_why_missing(context, path) for path in self._sorted_paths)), message)
        match = _NOT_A_LIST.search(message) if self._macros_checked else None
        if match:
            return f"a macro (map, filter, all, exists) runs over a list, and this is a {match[1].replace('_type', '')}"
        if "Iteration budget" in message:
            return f"the macros iterate more than {MAX_MACRO_ITERATIONS} times in all"
        return _STATUS_CODE.sub("", message).strip()


def _nul_in(context: Mapping[str, Any], paths: tuple[Path, ...]) -> str:
    r"""Say where the NUL is: cel-expr-python 0.1.3 would take a text up to it, so that `a\0b` were `a`."""
    where = next(path for path in paths if holds_nul(only(context, (path,))))
    return rf"{'.'.join(where)} holds a NUL (\u0000), which expressions cannot read: pass it on by its path alone"


def _refuse_optionals(value: Any) -> None:
    """Raise `TypeError` for a result that is an optional or has one in it.

    `plain_value` of cel-expr-python 0.1.3 ends the process with a segmentation fault for an optional in a map.
    """
    kind = str(value.type())
    if kind.startswith("MAP"):
        for item in value.value().values():
            _refuse_optionals(item)
    elif kind.startswith("LIST"):
        for item in value.value():
            _refuse_optionals(item)
    elif kind == "ERROR":
        value.value()  # a text of an error, but raises for an optional


_TOO_EXPENSIVE: Final = (
    f"with these values it costs more than {MAX_EXPRESSION_COST} units, of which a byte that is gone through is one and"
    " an element of a list some hundred; give it less: a shorter text or list, a filter before what combines it, no"
    " search, + or replace over all of one list for each element of another"
)

_NOT_A_LIST: Final = re.compile(r"No matching overloads found : _\+_\((\w+), list\)")
_STATUS_CODE: Final = re.compile(r"^[A-Z_]+: | \[[A-Z_]+\]$")


_programs: Final[BoundedMemory[tuple[str, Environment], Program]] = BoundedMemory(
    max_entries=_PROGRAMS_KEPT_BYTES // _LEAST_WEIGHT, max_weight=_PROGRAMS_KEPT_BYTES
)


def compile_expression(source: str, environment: Environment = PIPELINE) -> Program:
    """Return the program of an expression, without its `${{ }}`. Raises `InvalidExpressionError`."""
    program = _programs.get((source, environment))
    if program is None:
        program = _compiled(source, environment)
        _programs.put((source, environment), program, weight=program.weight + 2 * len(source))
    return program


def _check_text(source: str) -> None:
    if len(source) > MAX_EXPRESSION_CHARS:
        raise InvalidExpressionError(
            f"the expression has {len(source)} characters, at most {MAX_EXPRESSION_CHARS} may be"
        )
    if writable(source) != source:  # the engine takes UTF-8
        raise InvalidExpressionError(f"the expression has half of a surrogate pair: {writable(source)}")


def _compiled(source: str, environment: Environment) -> Program:
    _check_text(source)
    path = _plain_path(source, environment)
    if path is not None:
        _check_path(path)
        return Program(source, frozenset((path,)), frozenset(), "dyn", path)
    engine = _engine(environment)
    try:
        compiled = engine.compile(source)
    except RuntimeError as error:
        raise _invalid(str(error), source, environment) from None
    serialized = compiled.serialize()
    if len(serialized) > MAX_EXPRESSION_TREE_BYTES:
        raise InvalidExpressionError("the macros expand to too much: chain fewer optMap, or split it into two steps")
    tree = ast.decode(serialized)
    found = _Walk(environment.variables, tree).run(ast.expression(tree))
    for one in sorted(found.paths):
        _check_path(one)
    cost = Cost(tree, found.variables, _plain_path_of)
    for comprehension, append in found.appends:
        ast.append_in_blocks(comprehension, append)
    if found.is_changed or found.appends:
        compiled = _deserialized(engine, tree)
    returns = _checked_return_type(compiled)
    return Program(
        source,
        frozenset(found.paths),
        frozenset(found.status_calls),
        returns,
        None,
        compiled,
        found.checks_macros and not found.adds,
        found.makes_optionals,
        cost,
        _LEAST_WEIGHT + _WEIGHT_PER_TREE_BYTE * len(serialized),
    )


def _deserialized(engine: Any, tree: ast.Node) -> Any:
    try:
        return engine.deserialize(ast.encode(tree))
    except RuntimeError as error:  # its parser stops at 100 levels of the tree
        raise InvalidExpressionError(
            "the macros are nested too deep: eleven levels are possible, less with more in them"
        ) from error


def _plain_path(source: str, environment: Environment) -> Path | None:
    match = _PATH.fullmatch(source)
    if match is None or match[1] not in environment.variables or match[1] == "attempt":
        return None
    parts = tuple(name or single or double for name, single, double in _PATH_PART.findall(match[2]))
    is_plain = len(parts) < _MAX_PATH_PARTS and not any(
        name in _CEL_KEYWORDS for name, *_ in _PATH_PART.findall(match[2])
    )
    return (match[1], *parts) if is_plain else None


def _checked_return_type(compiled: Any) -> str:
    try:
        name = str(compiled.return_type())
    except RuntimeError as error:  # of a map whose keys its type checker lets pass
        raise InvalidExpressionError(_STATUS_CODE.sub("", str(error)).strip()) from error
    if name.startswith("optional_type"):
        raise InvalidExpressionError("the result is an optional, which has no JSON form; end it with .orValue(…)")
    if name.startswith("TYPE"):
        raise InvalidExpressionError("the result is a type, which has no JSON form")
    return name


def _check_path(path: Path) -> None:
    """Refuse what no step and no run has, so that a slip of the pen does not wait for the run to find it."""
    if path == ("steps",):
        raise InvalidExpressionError(
            "name the step: steps.<id> or steps['<id>']; which one must be known before the run"
        )
    if path[0] == "steps" and len(path) > 2 and path[2] not in STEP_FIELDS:
        raise InvalidExpressionError(
            f"a step has no {path[2]!r}, only {', '.join(STEP_FIELDS)}{suggestion(path[2], STEP_FIELDS)}"
        )
    if path[0] == "run" and len(path) > 1 and path[1] not in RUN_FIELDS:
        raise InvalidExpressionError(
            f"a run has no {path[1]!r}, only {', '.join(RUN_FIELDS)}{suggestion(path[1], RUN_FIELDS)}"
        )


def suggestion(name: str, known: "Mapping[str, Any] | tuple[str, ...] | list[str] | frozenset[str]") -> str:
    """Return `; did you mean 'x'?`, or nothing when no known name is near."""
    near = get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


_ENGINE_ERROR: Final = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*)")
_UNDECLARED: Final = re.compile(r"undeclared reference to '([^']*)'")
_DASHED_STEP: Final = re.compile(r"\bsteps\.([a-z][a-z0-9_]*(?:-[a-z0-9_]+)+)")
_FUNCTIONS: Final = (
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "int",
    "uint",
    "double",
    "string",
    "bool",
    "bytes",
    "duration",
    "timestamp",
    "type",
    "dyn",
    "has",
    "all",
    "exists",
    "exists_one",
    "filter",
    "map",
    "charAt",
    "indexOf",
    "lastIndexOf",
    "lowerAscii",
    "upperAscii",
    "replace",
    "split",
    "substring",
    "trim",
    "join",
    "format",
    "strings.quote",
    "reverse",
    "optMap",
    "optFlatMap",
    "hasValue",
    "value",
    "orValue",
    "or",
    "range",
    "math.greatest",
    "math.least",
    "math.ceil",
    "math.floor",
    "math.round",
    "math.abs",
    "cel.bind",
    "getHours",
    "getMinutes",
    "getSeconds",
    "getFullYear",
    "getMonth",
    "getDate",
    "getDayOfWeek",
)


def _invalid(message: str, source: str, environment: Environment) -> InvalidExpressionError:
    found = _ENGINE_ERROR.search(message)
    if found is None:
        return InvalidExpressionError(_STATUS_CODE.sub("", message).strip())
    line, column = max(int(found[1]), 1), max(int(found[2]), 1)
    text = found[3].replace(" (in container '')", "")
    text = _STATUS_CODE.sub("", re.sub(r" expecting \{.*\}", "", text))
    text = text.replace("mismatched input '<EOF>'", "the expression ends too early")
    undeclared = _UNDECLARED.search(text)
    if undeclared:
        text += _nearest(undeclared[1], source, environment)
    return InvalidExpressionError(text, line, column)


def _nearest(name: str, source: str, environment: Environment) -> str:
    dashed = dashed_step(source)
    if dashed and name.partition(".")[0] in dashed.split("-"):
        return f"; a step with a dash is steps['{dashed}']"
    if name.partition(".")[0] == SECRETS:
        return why_no_secret(source)
    names = [*environment.variables, *_FUNCTIONS]
    if environment.has_status_functions:
        names += STATUS_FUNCTIONS
    elif name in STATUS_FUNCTIONS:
        return "; it is known in `if` only"
    if name.partition(".")[0] in ("item", "index"):
        return "; it is known under `for_each` only"
    meant = next((each for each in names if each.endswith("." + name)), None)
    if meant is not None:
        return f"; did you mean {meant}(…)?"
    return suggestion(name.partition(".")[0], [each for each in names if each != name])


def dashed_step(source: str) -> str | None:
    """Return `a-b` when the expression says `steps.a-b`, which CEL reads as a subtraction."""
    match = _DASHED_STEP.search(source)
    return match[1] if match else None


# ---- What an expression names --------------------------------------------------------------------------------------

_INDEX_CALLS: Final = frozenset(("_[_]", "_?._", "_[?_]"))
_OF_TIMESTAMP: Final = re.compile(r"get(FullYear|Month|Date|DayOf\w+|Hours|Minutes|Seconds|Milliseconds)")
_FIXED_ZONE: Final = re.compile(r"UTC|[+-]?\d\d:\d\d")


class _Walk:
    """One pass over the tree: collects paths and status calls, makes macros refuse maps."""

    def __init__(self, variables: tuple[str, ...], tree: ast.Node) -> None:
        self.variables = frozenset((*variables, *("." + name for name in variables)))
        self._tree = tree
        self.paths: set[Path] = set()
        self.status_calls: set[tuple[str, str | None]] = set()
        self.is_changed = False
        self.appends: list[tuple[ast.Node, ast.Node]] = []
        self.checks_macros = False
        self.adds = False
        self.makes_optionals = False

    @cached_property
    def _types(self) -> dict[int, tuple[int, int]]:
        return ast.types(self._tree)

    def run(self, top: ast.Node) -> "_Walk":
        todo: list[tuple[ast.Node, frozenset[str]]] = [(top, frozenset())]
        while todo:
            node, bound = todo.pop()
            if node.kind is ast.Kind.EXPR and self._take_expression(node, bound):
                continue
            if node.kind is ast.Kind.COMPREHENSION:
                todo.extend(self._comprehension(node, bound))
            else:
                self._check_node(node)
                todo.extend((child, bound) for child in node.children())
        return self

    def _take_expression(self, expr: ast.Node, bound: frozenset[str]) -> bool:
        """Return whether the expression is done with: a path of ours, or a status call."""
        path, dynamic = _path_of(expr)
        if path is not None and path[0] in self.variables and path[0] not in bound:
            self.paths.add((path[0].lstrip("."), *path[1:]))
            return not dynamic
        call = expr.child(ast.EXPR_CALL)
        if call is not None and call.text(ast.CALL_FUNCTION) in STATUS_FUNCTIONS and not call.child(ast.CALL_TARGET):
            self._status_call(expr, call)
            return True
        return False

    def _status_call(self, expr: ast.Node, call: ast.Node) -> None:
        name, args = call.text(ast.CALL_FUNCTION), call.args()
        step = ast.const_string(args[0]) if args else None
        if args and step is None:
            raise InvalidExpressionError(f"{name}(…) takes the step's name in quotes: {name}('page')")
        self.status_calls.add((name, step))
        ast.become_ident(expr, status_variable(name, step))
        self.is_changed = True

    def _comprehension(self, node: ast.Node, bound: frozenset[str]) -> Iterator[tuple[ast.Node, frozenset[str]]]:
        inner = bound | {
            node.text(ast.COMPREHENSION_VAR),
            node.text(ast.COMPREHENSION_VAR2),
            node.text(ast.COMPREHENSION_ACCU),
        }
        for one in node.fields:
            if isinstance(one.value, ast.Node):
                outer = one.number in (ast.COMPREHENSION_RANGE, ast.COMPREHENSION_INIT)
                yield one.value, bound if outer else inner
        self._guard_range(node)
        append = ast.appends_to(node)
        if append is not None:
            self.appends.append((node, append))

    def _guard_range(self, node: ast.Node) -> None:
        over = node.child(ast.COMPREHENSION_RANGE)
        kind = self._types.get(over.expr_id, (0, 0))[0] if over else 0
        if kind == ast.TYPE_MAP:
            raise InvalidExpressionError("a macro (map, filter, all, exists) runs over a list: a map has no order")
        if kind != ast.TYPE_LIST:
            ast.must_be_list(node)
            self.is_changed = self.checks_macros = True

    def _check_node(self, node: ast.Node) -> None:
        if node.kind is ast.Kind.STRUCT and node.text(ast.STRUCT_MESSAGE):
            raise InvalidExpressionError(
                f"{node.text(ast.STRUCT_MESSAGE)[:80]} is a protobuf message, which is not known here"
            )
        if node.kind is ast.Kind.CALL:
            self._check_call(node)
        self.makes_optionals = self.makes_optionals or ast.makes_optional(node)

    def _check_pattern(self, pattern: ast.Node) -> None:
        """What a pattern costs depends on its text, which must be known before it is matched."""
        path = _plain_path_of(pattern)
        if ast.const_string(pattern) is None and (path is None or path[0] not in self.variables):
            raise InvalidExpressionError(
                "the pattern of matches(…) is a text in quotes, or a path like inputs.pattern: not what a macro or a"
                " function gives"
            )

    def _check_call(self, call: ast.Node) -> None:
        name, args = call.text(ast.CALL_FUNCTION), call.args()
        if name == "matches":
            self._check_pattern(args[-1])
        if name == "_+_" and ast.ident_name(args[0]) != "@result":  # the macros' own ones do not count
            self.adds = True
        if args and call.child(ast.CALL_TARGET) and _OF_TIMESTAMP.fullmatch(name):
            zone = ast.const_string(args[0])
            if zone is None or not _FIXED_ZONE.fullmatch(zone):
                raise InvalidExpressionError(
                    f"{name}: only 'UTC' or an offset like '+02:00'; named zones differ between hosts"
                )


def status_variable(name: str, step: str | None) -> str:
    """Return the variable that a call like `failed('x')` becomes."""
    return f"@{name}:{step or ''}"


def _path_of(expr: ast.Node) -> tuple[Path | None, bool]:
    """Return the path that an expression selects, and whether more of it (an index) must still be walked."""
    parts: list[str] = []
    dynamic = False
    while True:
        name = ast.ident_name(expr)
        if name is not None:
            return (name, *reversed(parts)), dynamic
        part, operand, is_index = _selected(expr)
        if operand is None:
            return None, True
        if part is None:
            if not is_index:
                return None, True
            parts.clear()
            dynamic = True
        else:
            parts.append(part)
        expr = operand


def _plain_path_of(expr: ast.Node) -> Path | None:
    path, dynamic = _path_of(expr)
    return None if dynamic else path


def _selected(expr: ast.Node) -> tuple[str | None, ast.Node | None, bool]:
    """Return the part an expression selects (None: known at run time only), and what it selects from."""
    select = expr.child(ast.EXPR_SELECT)
    if select is not None:
        return select.text(ast.SELECT_FIELD), select.child(ast.SELECT_OPERAND), False
    call = expr.child(ast.EXPR_CALL)
    if call is None or call.text(ast.CALL_FUNCTION) not in _INDEX_CALLS:
        return None, None, False
    operand, index = call.args()
    return ast.const_string(index), operand, True


# ---- Contexts ------------------------------------------------------------------------------------------------------


def outermost(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """Return the sorted paths without those below another one: a shorter path brings all below it."""
    found: list[Path] = []
    for path in paths:
        if not found or path[: len(found[-1])] != found[-1]:
            found.append(path)
    return tuple(found)


def only(context: Mapping[str, Any], paths: tuple[Path, ...]) -> dict[str, Any]:
    """Return the part of the context that the paths name, of which none is below another one."""
    found: dict[str, Any] = {}
    for path in paths:
        _copy_path(context, found, path)
    return found


_JSON_TYPES: Final = frozenset((dict, list, str, int, float, bool, type(None)))  # no other Mapping is among them


def _copy_path(source: Mapping[str, Any], target: dict[str, Any], path: Path) -> None:
    for part in path[:-1]:
        value = source.get(part)
        if value is None:
            return  # null is absent, so that steps.x.?output.?y works on the null output of a failed step
        if type(value) is not dict and not isinstance(value, Mapping):  # the abstract check costs ten times the other
            target[part] = value
            return
        source, target = value, target.setdefault(part, {})
    last = path[-1]
    if last in source:
        value = source[last]
        is_other_map = type(value) not in _JSON_TYPES and isinstance(value, Mapping)
        target[last] = dict(value) if is_other_map else value


def _look_up(context: Mapping[str, Any], path: Path) -> Any:
    value: Any = context
    try:
        for part in path:
            value = value[part]
    except (KeyError, TypeError):  # only maps are asked for texts
        return _look_up_step_by_step(context, path)
    return value


def _look_up_step_by_step(context: Mapping[str, Any], path: Path) -> Any:
    """Do the same, and say where the path ends."""
    value: Any = context
    for at, part in enumerate(path):
        if type(value) is not dict and not isinstance(value, Mapping):
            raise ExpressionError(f"{'.'.join(path[:at])} is {kind_of(value)}, which has no {part!r}")
        if part not in value:
            raise ExpressionError(f"{'.'.join(path[:at]) or 'the context'} has no {part!r}")
        value = value[part]
    return value


def _why_missing(context: Mapping[str, Any], path: Path) -> str | None:
    try:
        _look_up(context, path)
    except ExpressionError as error:
        return error.message
    return None


def kind_of(value: Any) -> str:
    """Return what a value is, in words."""
    kinds = {type(None): "null", bool: "a bool", int: "an int", float: "a double", str: "a string", list: "a list"}
    return kinds.get(type(value), type(value).__name__)


# ---- Results -------------------------------------------------------------------------------------------------------


def _to_json(value: Any, depth: int = 0) -> Any:
    """Return the JSON form of a result, maps with sorted keys."""
    kind = type(value)
    if kind is str or kind is bool or value is None:  # the most frequent first: a result may have 100,000 of them
        return value
    if kind is int:
        return value if value <= MAX_INTEGER else _too_long(value)
    if kind is not list and kind is not dict:
        return _scalar_to_json(value)
    if depth >= MAX_NESTING:
        raise ExpressionError(f"the result is nested deeper than {MAX_NESTING} levels")
    if kind is list:
        return [one if type(one) is str else _to_json(one, depth + 1) for one in value]
    return {key: one if type(one := value[key]) is str else _to_json(one, depth + 1) for key in _sorted_keys(value)}


def _too_long(value: int) -> NoReturn:
    raise ExpressionError(f"{value} does not fit in a signed 64-bit integer")


def _checked_float(value: float) -> float:
    if not math.isfinite(value):
        raise ExpressionError(f"the result is {value}, which JSON does not have")
    return value


def _sorted_keys(value: dict[Any, Any]) -> list[str]:
    if not set(map(type, value)) <= {str}:
        key = next(key for key in value if not isinstance(key, str))
        raise ExpressionError(f"a key of a map in the result is {kind_of(key)}; JSON has string keys: string(…)")
    return sorted(value)


def _scalar_to_json(value: Any) -> str | float:
    """Return a number, or the text of a timestamp (RFC 3339), duration (`1.5s`) or bytes (base64), as protobuf does."""
    match value:
        case float():
            return _checked_float(value)
        case datetime.datetime():
            return value.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")
        case datetime.timedelta():
            return _seconds_text(value)
        case bytes() | bytearray():
            return base64.b64encode(value).decode()
        case _:
            raise ExpressionError("the result is a type, which has no JSON form")


def _seconds_text(value: datetime.timedelta) -> str:
    microseconds = value // datetime.timedelta(microseconds=1)
    whole, rest = divmod(abs(microseconds), 1_000_000)
    fraction = f".{rest:06}".rstrip("0") if rest else ""
    return f"{'-' if microseconds < 0 else ''}{whole}{fraction}s"
