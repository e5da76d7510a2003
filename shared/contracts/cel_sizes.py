"""How much an expression may allocate and read, told before it runs from its checked tree and its context's sizes.

The engine bounds iterations and nesting, not bytes, and frees nothing before an evaluation ends. So, like cel-go's cost
estimator, every expression becomes a function of the sizes of the paths it names. A `Size` bounds a value by two
numbers: the most it weighs in one iteration of the loops around it, and what it weighs in all of them together. The
second keeps what is linear in a list linear: the parts of 5,000 rows weigh what the rows weigh, not 5,000 times the
heaviest one.

An expression that stays within the limits with the largest context there can be is harmless and never measured. One
that stays within them when every path it names holds a number or a short text is not measured for such a context:
every measure grows with the sizes it is given, never the other way round.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import orjson

from anabranch.shared.contracts import cel_ast as ast
from anabranch.shared.contracts.limits import (
    MAX_EVALUATION_BYTES,
    MAX_EVALUATION_READS,
    MAX_INPUTS_BYTES,
    MAX_MACRO_ITERATIONS,
    MAX_STEP_OUTPUT_BYTES,
)

Path = tuple[str, ...]

# Measured with cel-expr-python 0.1.3.
_ELEMENT: Final = 32  # of a list or a map, next to what it holds
_SCALAR: Final = 8
_LIST: Final = 64
_MAP: Final = 256
_PIECE: Final = 48  # what `split` takes for each
_RANGE: Final = 128  # what `range` takes for each
_APPEND: Final = 384  # per iteration of a macro that builds a list, next to the copies of its block
_JSON_GROWS: Final = 17  # `[1,1,…]` has an element every two bytes
_NUMBER_CHARS: Final = 1_400  # `%.1000f` of the largest double
_UNKNOWN: Final = 1 << 62
_SHORT_CHARS: Final = 256  # of a text that is not measured
_SCALAR_TYPES: Final = frozenset((int, float, bool, type(None)))


class Size(NamedTuple):
    """Bounds of a value: bytes and elements, at most in one iteration and in all together, and its heaviest element.

    The elements of an integer are its value, where it is known: `range` makes so many.
    """

    most: int
    total: int
    length: int
    lengths: int
    item: int


_NOTHING: Final = Size(0, 0, 0, 0, 0)
_SMALL: Final = Size(4 * _SHORT_CHARS, 4 * _SHORT_CHARS, _UNKNOWN, _UNKNOWN, 4 * _SHORT_CHARS)
"""Bounds of a short text and of a number, whatever its value."""


class TooExpensive(Exception):
    """The evaluation could allocate or read more than it may; `verb` says which."""

    def __init__(self, verb: str, size: int, limit: int) -> None:
        super().__init__(f"may {verb} {size} bytes")
        self.verb = verb
        self.size = size
        self.limit = limit


class _Run:
    """One estimate: where the loops stand, what the variables weigh, what was allocated and read so far."""

    __slots__ = ("allocated", "context", "loops", "n", "names", "paths", "read")

    def __init__(self, context: Mapping[str, Any] | None, paths: dict[Path, Size] | None = None) -> None:
        self.context = context  # None: the largest there can be
        self.loops: list[tuple[int, int]] = []  # iterations of each loop: at most per iteration around it, and in all
        self.n = 1  # iterations of the innermost loop in all
        self.names: dict[str, tuple[Size, int]] = {}  # with the loops around where each was bound
        self.paths = paths or {}  # those that were measured, or are assumed
        self.allocated = 0
        self.read = 0

    def size_at(self, context: Mapping[str, Any], path: Path) -> Size:
        """Return the size of what the context holds there, measured once."""
        size = self.paths.get(path)
        if size is None:
            size = self.paths[path] = size_of(_value_at(context, path))
        return size


_Measure = Callable[[_Run], Size]


class Estimate:
    """What an expression allocates and reads, as a function of its context."""

    def __init__(self, tree: ast.Node, variables: frozenset[str], path_of: Callable[[ast.Node], Path | None]) -> None:
        builder = _Builder(ast.types(tree), variables, path_of)
        self._measure = builder.build(ast.expression(tree))
        self._paths = tuple(sorted(builder.paths))
        self.is_harmless = self._fits(_Run(None))
        self._is_harmless_when_small = self._fits(_Run({}, dict.fromkeys(self._paths, _SMALL)))

    def _fits(self, run: _Run) -> bool:
        try:
            self._check(run)
        except TooExpensive:
            return False
        return True

    def check(self, context: Mapping[str, Any]) -> None:
        """Raise `TooExpensive` when an evaluation with this context could break a limit."""
        if not (self._is_harmless_when_small and all(_is_small(_value_at(context, path)) for path in self._paths)):
            self._check(_Run(context))

    def _check(self, run: _Run) -> None:
        result = self._measure(run)
        allocated = run.allocated + result.most
        if allocated > MAX_EVALUATION_BYTES:
            raise TooExpensive("allocate", allocated, MAX_EVALUATION_BYTES)
        if run.read > MAX_EVALUATION_READS:
            raise TooExpensive("read", run.read, MAX_EVALUATION_READS)


# ---- Sizes of values -----------------------------------------------------------------------------------------------


def size_of(value: Any) -> Size:
    """Return the size of a JSON value; the count of an integer is its value."""
    if isinstance(value, str):
        chars = len(value) if value.isascii() else 4 * len(value)
        return Size(chars, chars, chars, chars, chars)
    if isinstance(value, list):
        weight = _weight(value)
        few = len(value) <= MAX_MACRO_ITERATIONS  # no macro runs over more
        return Size(weight, weight, len(value), len(value), max(map(_weight, value), default=0) if few else weight)
    if isinstance(value, Mapping):
        weight = _weight(value)
        return Size(weight, weight, len(value), len(value), weight)
    count = max(value, 0) if isinstance(value, int) else 0
    return Size(_SCALAR, _SCALAR, count, count, _SCALAR)


def _weight(value: Any) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else 4 * len(value)
    if not isinstance(value, list | Mapping):
        return _SCALAR
    raw = orjson.dumps(value, default=dict)
    return len(raw) + _ELEMENT * (1 + raw.count(b",") + raw.count(b"[") + raw.count(b"{") + raw.count(b":"))


def _is_small(value: Any) -> bool:
    """Return whether the value's size is within `_SMALL`."""
    if type(value) is str:
        return len(value) <= _SHORT_CHARS
    return type(value) in _SCALAR_TYPES and (value is None or value <= _UNKNOWN)


def _largest(path: Path, is_text: bool) -> Size:
    """Return the size of the largest value that a path may hold."""
    length = MAX_STEP_OUTPUT_BYTES if path[0] == "steps" else MAX_INPUTS_BYTES
    weight = length if is_text else length * _JSON_GROWS
    return Size(weight, weight, length, length, weight)


def _value_at(context: Mapping[str, Any], path: Path) -> Any:
    value: Any = context
    for part in path:
        if type(value) is not dict and not isinstance(value, Mapping):  # the abstract check costs ten times the other
            return None
        value = value.get(part)
    return value


def _times(a_most: int, a_total: int, b_most: int, b_total: int) -> tuple[int, int]:
    return a_most * b_most, min(a_total * b_most, a_most * b_total)


def _scalar(n: int, count: int = MAX_MACRO_ITERATIONS) -> Size:
    return Size(_SCALAR, _SCALAR * n, count, count * n, _SCALAR)


def _part_of(whole: Size, n: int) -> Size:
    """Return the size of something inside a value: `item` is the heaviest."""
    most = whole.item
    total = min(whole.total, most * n)
    return Size(most, total, most // _ELEMENT, total // _ELEMENT, most)


def _sum(sizes: list[Size], n: int, extra: int = 0) -> Size:
    most = sum(one.most for one in sizes) + extra
    total = sum(one.total for one in sizes) + extra * n
    count, counts = sum(one.length for one in sizes), sum(one.lengths for one in sizes)
    return Size(most, total, count, counts, max((one.item for one in sizes), default=0))


def _either(sizes: list[Size], n: int) -> Size:
    most, count = max(one.most for one in sizes), max(one.length for one in sizes)
    total = min(sum(one.total for one in sizes), most * n)
    counts = min(sum(one.lengths for one in sizes), count * n)
    return Size(most, total, count, counts, max(one.item for one in sizes))


# ---- From the tree to a function -----------------------------------------------------------------------------------

_INDEX: Final = frozenset(("_[_]", "_?._", "_[?_]"))
_SAME: Final = frozenset(("orValue", "or", "value", "optional.of", "optional.ofNonZeroValue", "dyn", "_?_:_"))
_NUMBERS: Final = frozenset(("_-_", "_*_", "_/_", "_%_", "-_"))  # of dyn they are numbers, too
_READS_NOTHING: Final = frozenset(("hasValue", "_&&_", "_||_", "!_", "@not_strictly_false", "type"))
# How much slower than the rest (about 2 ns per byte) these read their text.
_SLOW: Final[Mapping[str, int]] = {"replace": 32, "strings.quote": 8, "matches": 4, "trim": 8, "split": 8}
_TEXT_FUNCTIONS: Final = frozenset(
    (
        "replace",
        "split",
        "trim",
        "substring",
        "charAt",
        "indexOf",
        "lastIndexOf",
        "lowerAscii",
        "upperAscii",
        "reverse",
        "matches",
        "contains",
        "startsWith",
        "endsWith",
        "strings.quote",
    )
)
_LONG_NUMBER: Final = re.compile(r"%(\.\d+)?[fe]")


class _Builder:
    """Turns each expression of a checked tree into its `_Measure`. Recurses: the engine's parser allows 32 levels."""

    def __init__(
        self,
        types: Mapping[int, tuple[int, int]],
        variables: frozenset[str],
        path_of: Callable[[ast.Node], Path | None],
    ) -> None:
        self._types = types
        self._variables = variables
        self._path_of = path_of
        self._bound: dict[str, bool] = {}  # the names of loops and bindings: whether of a loop over `range`
        self.paths: set[Path] = set()  # those that are measured

    def build(self, expr: ast.Node, is_text: bool = False) -> _Measure:
        path = self._path(expr)
        if path is not None:
            self.paths.add(path)
            return _path_measure(path, is_text)
        name = ast.ident_name(expr)
        if name is not None:
            return self._variable(expr, name)
        for one in expr.fields:
            if isinstance(one.value, ast.Node):
                return self._build_node(expr, one.value)
        return _constant(expr)

    def _build_node(self, expr: ast.Node, node: ast.Node) -> _Measure:
        match node.kind:
            case ast.Kind.SELECT:
                return self._select(expr, node)
            case ast.Kind.CALL:
                return self._call(expr, node)
            case ast.Kind.LIST:
                return _list_measure([self.build(one) for one in node.children()])
            case ast.Kind.STRUCT:
                return _map_measure([self.build(one) for entry in node.children() for one in entry.children()])
            case _:
                return self._comprehension(expr, node)

    def _path(self, expr: ast.Node) -> Path | None:
        path = self._path_of(expr)
        if path is None or path[0] not in self._variables or path[0] in self._bound:
            return None
        return (path[0].lstrip("."), *path[1:])

    def _is_scalar(self, expr: ast.Node) -> bool:
        return self._types.get(expr.expr_id, (0, 0)) in ast.SCALAR_TYPES

    def _variable(self, expr: ast.Node, name: str) -> _Measure:
        if self._is_scalar(expr) and not self._bound.get(name):
            return lambda run: _scalar(run.n)

        def measure(run: _Run) -> Size:
            if name not in run.names:
                return _scalar(run.n)  # a type, or how a step ended
            size, depth = run.names[name]
            for count, n in run.loops[depth:]:
                total, counts = min(size.most * n, size.total * count), min(size.length * n, size.lengths * count)
                size = Size(size.most, total, size.length, counts, size.item)
            return size

        return measure

    def _select(self, expr: ast.Node, node: ast.Node) -> _Measure:
        operand = node.child(ast.SELECT_OPERAND)
        whole = self.build(operand) if operand else _constant(expr)
        if self._is_scalar(expr):  # has(x.y)
            return _scalar_measure([whole])

        def measure(run: _Run) -> Size:
            size = whole(run)
            return _part_of(size._replace(item=size.most), run.n)

        return measure

    # -- calls

    def _call(self, expr: ast.Node, call: ast.Node) -> _Measure:
        name, target = call.text(ast.CALL_FUNCTION), call.child(ast.CALL_TARGET)
        nodes = [*([target] if target else []), *call.args()]
        is_text = name in _TEXT_FUNCTIONS or self._types.get(expr.expr_id) in ast.TEXT_TYPES
        args = [self.build(one, is_text) for one in nodes]
        special = _SPECIAL.get(name)
        if special is not None:
            return special(self, nodes, args)
        if name in _NUMBERS or self._is_scalar(expr):
            return _scalar_measure(args, 0 if name in _READS_NOTHING else _SLOW.get(name, 1))
        if name in _INDEX:
            return _index_measure(args)
        if name in _SAME:
            return _same_measure(args[1:] if name == "_?_:_" else args, args)
        return _text_measure(args, _SLOW.get(name, 1), grows=2 if name == "strings.quote" else 1)

    def add(self, nodes: list[ast.Node], args: list[_Measure]) -> _Measure:
        """`+` of two texts or lists: of lists, only the elements are copied."""
        if all(map(self._is_scalar, nodes)):
            return _scalar_measure(args)
        are_lists = any(self._types.get(one.expr_id, (0, 0))[0] == ast.TYPE_LIST for one in nodes)
        are_lists = are_lists or any(map(ast.is_empty_list, nodes))

        def measure(run: _Run) -> Size:
            size = _sum([one(run) for one in args], run.n)
            run.allocated += _ELEMENT * size.lengths + _LIST * run.n if are_lists else size.total + _ELEMENT * run.n
            return size

        return measure

    def range(self, nodes: list[ast.Node], args: list[_Measure]) -> _Measure:
        """`range(n)`, of a number that is known before, or else as many as there can be."""
        is_known = self._is_known_number(nodes[0])

        def measure(run: _Run) -> Size:
            size = args[0](run)
            if not is_known:
                size = _scalar(run.n)
            count = min(size.length, MAX_MACRO_ITERATIONS)
            counts = min(size.lengths, count * run.n)
            run.allocated += _RANGE * counts + _LIST * run.n
            each = _ELEMENT + _SCALAR
            return Size(count * each, counts * each, count, counts, _SCALAR)

        return measure

    def _is_known_number(self, expr: ast.Node) -> bool:
        call = expr.child(ast.EXPR_CALL)
        if call is None:
            is_counter = self._bound.get(ast.ident_name(expr) or "", False)
            return is_counter or ast.const_int(expr) is not None or self._path(expr) is not None
        args = call.args()
        match call.text(ast.CALL_FUNCTION):
            case "size":
                return True
            case "_%_":
                return ast.const_int(args[1]) is not None
            case "_-_":
                return ast.const_int(args[1]) is not None and self._is_known_number(args[0])
            case _:
                return False

    def count(self, nodes: list[ast.Node], args: list[_Measure]) -> _Measure:
        """`size(x)`: its value is the number of elements; the characters of a text are counted every time."""

        def measure(run: _Run) -> Size:
            size = args[0](run)
            run.read += size.total
            return Size(_SCALAR, _SCALAR * run.n, size.length, size.lengths, _SCALAR)

        return measure

    def less(self, nodes: list[ast.Node], args: list[_Measure]) -> _Measure:
        """`a - b`: at most `a`, where `range` asks for it."""

        def measure(run: _Run) -> Size:
            first, _ = args[0](run), args[1](run)
            return Size(_SCALAR, _SCALAR * run.n, first.length, first.lengths, _SCALAR)

        return measure

    def rest(self, nodes: list[ast.Node], args: list[_Measure]) -> _Measure:
        """`a % b`: less than `b`, where `range` asks for it."""
        return self.less(nodes[::-1], args[::-1])

    def _found(self, nodes: list[ast.Node]) -> Callable[[_Run, Size], tuple[int, int]]:
        """How often the second text is found in the first: counted in a context path, else as often as it fits."""
        path, part = self._path(nodes[0]), ast.const_string(nodes[1])

        def found(run: _Run, text: Size) -> tuple[int, int]:
            value = _value_at(run.context, path) if run.context is not None and path is not None else None
            if isinstance(value, str) and part:
                return value.count(part) + 1, (value.count(part) + 1) * run.n
            length = len(part.encode()) if part else 1
            return text.most // length + 1, text.total // length + run.n

        return found

    def replace(self, nodes: list[ast.Node], args: list[_Measure]) -> _Measure:
        """`text.replace(old, new)`: the text, and the new one as often as the old one may be there."""
        found = self._found(nodes)

        def measure(run: _Run) -> Size:
            text, _, new = (one(run) for one in args[:3])
            more, more_total = _times(*found(run, text), new.most, new.total)
            size = Size(text.most + more, text.total + more_total, text.most + more, text.total + more_total, 0)
            run.allocated += size.total + _ELEMENT * run.n
            run.read += _SLOW["replace"] * text.total + size.total
            return size._replace(item=size.most)

        return measure

    def split(self, nodes: list[ast.Node], args: list[_Measure]) -> _Measure:
        """`text.split(separator)`."""
        found = self._found(nodes)

        def measure(run: _Run) -> Size:
            text = args[0](run)
            pieces, pieces_total = found(run, text)
            run.allocated += _PIECE * pieces_total + _LIST * run.n
            run.read += _SLOW["split"] * text.total
            most, total = text.most + _ELEMENT * pieces, text.total + _ELEMENT * pieces_total
            return Size(most, total, pieces, pieces_total, text.most)

        return measure

    def join(self, nodes: list[ast.Node], args: list[_Measure]) -> _Measure:
        """`list.join(separator)`."""

        def measure(run: _Run) -> Size:
            texts = args[0](run)
            between = args[1](run) if len(args) > 1 else _NOTHING
            more, more_total = _times(texts.length, texts.lengths, between.most, between.total)
            most, total = texts.most + more, texts.total + more_total
            run.allocated += total + _ELEMENT * run.n
            return Size(most, total, most, total, most)

        return measure

    def format(self, nodes: list[ast.Node], args: list[_Measure]) -> _Measure:
        """`text.format(list)`: what is put in may be escaped; a number may have 1,000 decimals."""
        text = ast.const_string(nodes[0])
        numbers = None if text is None else len(_LONG_NUMBER.findall(text))

        def measure(run: _Run) -> Size:
            pattern, given = args[0](run), args[1](run)
            count, counts = (given.length, given.lengths) if numbers is None else (numbers, numbers * run.n)
            most = pattern.most + 2 * given.most + _NUMBER_CHARS * count
            total = pattern.total + 2 * given.total + _NUMBER_CHARS * counts
            run.allocated += total + _ELEMENT * run.n
            run.read += total
            return Size(most, total, most, total, most)

        return measure

    # -- loops

    def _comprehension(self, expr: ast.Node, node: ast.Node) -> _Measure:
        over, init = self._child(node, ast.COMPREHENSION_RANGE), self._child(node, ast.COMPREHENSION_INIT)
        names = node.text(ast.COMPREHENSION_VAR), node.text(ast.COMPREHENSION_ACCU)
        range_node = node.child(ast.COMPREHENSION_RANGE)
        is_binding = range_node is not None and ast.is_empty_list(range_node)
        is_counting = range_node is not None and ast.function_of(range_node) == "range"
        appends = ast.appends_to(node) is not None
        outside = self._bound
        self._bound = {**outside, names[0]: is_counting, names[1]: False}
        step, result = self._child(node, ast.COMPREHENSION_STEP), self._child(node, ast.COMPREHENSION_RESULT)
        self._bound = outside
        if is_binding:
            return _binding_measure(names[1], init, result)
        loop = _Loop(names, over, init, step, appends=appends, is_counting=is_counting)
        if self._is_scalar(expr):
            return _scalar_measure([loop.measure], 0)
        return loop.measure if appends else _unknown

    def _child(self, node: ast.Node, number: int) -> _Measure:
        child = node.child(number)
        return self.build(child) if child else _unknown


_SPECIAL: Final[Mapping[str, Callable[[_Builder, list[ast.Node], list[_Measure]], _Measure]]] = {
    "_+_": _Builder.add,
    "range": _Builder.range,
    "size": _Builder.count,
    "_-_": _Builder.less,
    "_%_": _Builder.rest,
    "replace": _Builder.replace,
    "split": _Builder.split,
    "join": _Builder.join,
    "format": _Builder.format,
}


class _Loop:
    """A macro over a list: `map` and `filter` gather a list, the others a bool or a number."""

    def __init__(
        self,
        names: tuple[str, str],
        over: _Measure,
        init: _Measure,
        step: _Measure,
        *,
        appends: bool,
        is_counting: bool,
    ) -> None:
        self._names = names
        self._over = over
        self._init = init
        self._step = step
        self._appends = appends
        self._is_counting = is_counting

    def measure(self, run: _Run) -> Size:
        over = self._over(run)
        self._init(run)
        count, n = min(over.length, MAX_MACRO_ITERATIONS), min(over.lengths, MAX_MACRO_ITERATIONS)
        names, outer = run.names, run.n
        run.loops.append((count, n))
        run.n = n
        item = _scalar(n, count) if self._is_counting else _part_of(over, n)
        run.names = {**names, self._names[0]: (item, len(run.loops)), self._names[1]: (_NOTHING, len(run.loops))}
        added = self._step(run)
        run.loops.pop()
        run.names, run.n = names, outer
        if not self._appends:
            return _NOTHING
        run.allocated += n * (_APPEND + _ELEMENT // 2 * min(count, ast.APPEND_BLOCK) + count // 8)
        most, elements = min(count * added.most, added.total), min(count * added.length, added.lengths)
        return Size(most, added.total, elements, added.lengths, added.item)


def _binding_measure(name: str, init: _Measure, result: _Measure) -> _Measure:
    """`cel.bind(name, init, result)`."""

    def measure(run: _Run) -> Size:
        names = run.names
        run.names = {**names, name: (init(run), len(run.loops))}
        size = result(run)
        run.names = names
        return size

    return measure


# ---- Measures of the simple kinds ----------------------------------------------------------------------------------


def _unknown(_run: _Run) -> Size:
    return Size(_UNKNOWN, _UNKNOWN, _UNKNOWN, _UNKNOWN, _UNKNOWN)


def _constant(expr: ast.Node) -> _Measure:
    length = ast.const_length(expr)
    number = ast.const_int(expr)
    if number is not None:
        return lambda run: _scalar(run.n, max(number, 0))
    return lambda run: Size(length, length * run.n, length, length * run.n, length)


def _path_measure(path: Path, is_text: bool) -> _Measure:
    largest = _largest(path, is_text)

    def measure(run: _Run) -> Size:
        size = largest if run.context is None else run.size_at(run.context, path)
        return size if run.n == 1 else Size(size.most, size.most * run.n, size.length, size.length * run.n, size.item)

    return measure


def _list_measure(items: list[_Measure]) -> _Measure:
    def measure(run: _Run) -> Size:
        sizes = [one(run) for one in items]
        run.allocated += (_LIST + _ELEMENT * len(items)) * run.n
        whole = _sum(sizes, run.n, _ELEMENT * len(items))
        heaviest = max((one.most for one in sizes), default=0)
        return Size(whole.most, whole.total, len(items), len(items) * run.n, heaviest)

    return measure


def _map_measure(parts: list[_Measure]) -> _Measure:
    def measure(run: _Run) -> Size:
        sizes = [one(run) for one in parts]
        run.allocated += (_MAP + _ELEMENT * len(parts)) * run.n
        whole = _sum(sizes, run.n, _ELEMENT * len(parts))
        return Size(whole.most, whole.total, len(parts) // 2, len(parts) // 2 * run.n, whole.most)

    return measure


def _scalar_measure(args: list[_Measure], reads: int = 1) -> _Measure:
    def measure(run: _Run) -> Size:
        total = sum([one(run).total for one in args])
        run.read += reads * total
        return _scalar(run.n)

    return measure


def _index_measure(args: list[_Measure]) -> _Measure:
    def measure(run: _Run) -> Size:
        whole, _ = args[0](run), args[1](run)
        return _part_of(whole, run.n)

    return measure


def _same_measure(chosen: list[_Measure], args: list[_Measure]) -> _Measure:
    """One of the arguments, as it is."""
    first = args[0] if len(chosen) < len(args) else None

    def measure(run: _Run) -> Size:
        if first is not None:
            first(run)
        return _either([one(run) for one in chosen], run.n)

    return measure


def _text_measure(args: list[_Measure], reads: int, grows: int) -> _Measure:
    """A function whose result is not longer than all its arguments together, but for a number's digits."""

    def measure(run: _Run) -> Size:
        whole = _sum([one(run) for one in args], run.n)
        most, total = grows * whole.most + _ELEMENT, grows * whole.total + _ELEMENT * run.n
        run.allocated += total
        run.read += reads * whole.total
        return Size(most, total, most, total, max(whole.item, most))

    return measure
