"""What an expression costs: one number for its time and its memory, told before it runs, from its tree and its values.

A unit is a byte that is gone through once; a limit of the number is a limit of the work and of the memory:

- a value weighs its bytes, and `ELEMENT` for everything that a list or a map holds;
- a path that the expression names costs its weight times `GIVEN`, once: the engine takes it over;
- a function costs the weight of what it is given, as often as the macros around it iterate. What a macro's variable
  holds costs its list once, however often that macro iterates; all else costs its weight for each iteration;
- functions that multiply multiply: `join` and `replace` what they put in, `contains` and `split` what they look for,
  `matches` the steps of its pattern;
- the result costs its weight times `TAKEN`.

So every expression becomes, once, a function of the sizes of the paths it names. An evaluation in which all of these
are numbers or short texts costs the same constant, which is told when the expression is compiled.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from anabranch.shared.contracts import cel_ast as ast
from anabranch.shared.contracts.limits import MAX_EXPRESSION_COST, MAX_MACRO_ITERATIONS
from anabranch.shared.contracts.patterns import PATTERN_STEP, pattern_steps, reads_per_byte

Path = tuple[str, ...]

# Measured with cel-expr-python 0.1.3, a unit taken as a nanosecond: docs/adr/0007 has the figures.
EVALUATION: Final = 16_384  # the engine is started
LOOKUP: Final = 1_024  # a plain path, without the engine
ELEMENT: Final = 32  # of a list or a map, next to what it holds: compared or copied
GIVEN: Final = 8  # for the engine, a value is made from Python's
TAKEN: Final = 8  # from the engine, it becomes Python's and then JSON's
_NODE: Final = 64  # an operator, a field or a literal that is evaluated
_ITERATION: Final = 192
_FIELD: Final = 256  # of a macro's variable: telling its sizes goes through the list as well
_APPEND: Final = 2_048  # to the list that a macro builds, and a fifth of a unit for each element that is there
_MADE: Final = 192  # a text, list or map that is made
_RANGE: Final = 256  # of each number of `range`
_PIECE: Final = 128  # of each text that `split` makes
_COPIED: Final = 2  # a byte of a new text: written, and held until the evaluation ends
_NUMBER_CHARS: Final = 1_400  # `%.1000f` of the largest double
_SCALAR: Final = 8
_SEARCH: Final = 8  # a character that a text is searched at; and one more for each 64 that are searched for
_SLOW: Final[Mapping[str, int]] = {"strings.quote": 16, "trim": 12, "reverse": 12, "charAt": 8, "substring": 4}
_UNKNOWN: Final = 1 << 62
_SHORT_CHARS: Final = 256  # of a text that is not measured
_PIECE_COUNT: Final = 4_096  # values weighed before it is looked whether they are too much
_CONTAINER: Final = 200  # a list or an object that is parsed, gone through and written
_PART: Final = 40  # a value in one of them
SHORT_BYTES: Final = 512  # of JSON, whatever is in it
_SCALAR_TYPES: Final = frozenset((int, float, bool, type(None)))


class Size(NamedTuple):
    """Bounds of a value: weight and elements, at most in one iteration and in all together, and its heaviest element.

    The elements of a text are its bytes, those of an integer its value, where it is known: `range` makes so many.
    `values` are all that it may be, where they stand in the context, each at most `times` times: what is selected
    from them, or iterated over, is told exactly.
    """

    most: int
    total: int
    length: int
    lengths: int
    item: int
    values: list[Any] | None = None
    times: int = 1

    @property
    def elements(self) -> int:
        """The most elements that it has in one iteration if it is a list."""
        return min(self.length, self.most // ELEMENT)

    @property
    def all_elements(self) -> int:
        """The elements that it has in all iterations if it is a list."""
        return min(self.lengths, self.total // ELEMENT)

    def repeated(self, count: int, n: int) -> "Size":
        """Return the size inside a macro that does not range over it: `count` iterations at most, `n` in all."""
        total, lengths = min(self.most * n, self.total * count), min(self.length * n, self.lengths * count)
        return self._replace(total=total, lengths=lengths, times=self.times * count)


_NOTHING: Final = Size(0, 0, 0, 0, 0)
_ANYTHING: Final = Size(_UNKNOWN, _UNKNOWN, _UNKNOWN, _UNKNOWN, _UNKNOWN)
_SMALL: Final = Size(4 * _SHORT_CHARS, 4 * _SHORT_CHARS, _UNKNOWN, _UNKNOWN, 4 * _SHORT_CHARS)
"""Bounds of a short text and of a number, whatever its value."""


class TooExpensive(Exception):
    """The evaluation would cost more than `MAX_EXPRESSION_COST`."""


class _Run:
    """One estimate: where the macros stand, what the variables weigh, what it comes to so far."""

    __slots__ = ("context", "cost", "fields", "loops", "n", "names", "paths")

    def __init__(self, context: Mapping[str, Any], paths: dict[Path, Size] | None = None) -> None:
        self.context = context
        self.loops: list[tuple[int, int]] = []  # iterations of each macro: at most for one around it, and in all
        self.n = 1  # iterations of the innermost macro in all
        self.names: dict[str, tuple[Size, int]] = {}  # with the macros around where each was bound
        self.paths = paths or {}  # those that were measured, or are assumed
        self.fields: dict[tuple[int, Path], Size] = {}  # what was selected from the values of a variable
        self.cost = EVALUATION

    def charge(self, cost: int) -> None:
        """Add to the cost. Raises `TooExpensive` at once, so that no estimate goes on for longer than it may."""
        self.cost += cost
        if self.cost > MAX_EXPRESSION_COST:
            raise TooExpensive

    def size_at(self, path: Path) -> Size:
        """Return the size of what the context holds there, measured and charged once."""
        size = self.paths.get(path)
        if size is None:
            size = self.paths[path] = size_of(value_at(self.context, path))
            self.charge(GIVEN * size.most)
        return size


_Measure = Callable[[_Run], Size]


class Cost:
    """What an expression costs, as a function of its context."""

    def __init__(self, tree: ast.Node, variables: frozenset[str], path_of: Callable[[ast.Node], Path | None]) -> None:
        builder = _Builder(ast.types(tree), variables, path_of)
        self._measure = builder.build(ast.expression(tree))
        self._nodes = builder.nodes
        self.paths = tuple(sorted(builder.paths))
        self.when_small = self._cost_when_small() if builder.is_bound_by_sizes else None
        """The cost where every path holds a number or a short text; None where these alone may cost too much."""

    def of(self, context: Mapping[str, Any]) -> int | None:
        """Return the cost of an evaluation with this context; None when it is more than `MAX_EXPRESSION_COST`."""
        if self.when_small is not None and self._are_small(context):
            return self.when_small
        try:
            return self._run(_Run(context))
        except TooExpensive:
            return None

    def _are_small(self, context: Mapping[str, Any]) -> bool:
        for path in self.paths:  # noqa: SIM110  `all` costs each evaluation a generator
            if not _is_small(value_at(context, path)):
                return False
        return True

    def _cost_when_small(self) -> int | None:
        run = _Run({}, dict.fromkeys(self.paths, _SMALL))
        try:
            run.charge(GIVEN * _SMALL.most * len(self.paths))
            return self._run(run)
        except TooExpensive:
            return None

    def _run(self, run: _Run) -> int:
        run.charge(_NODE * self._nodes)
        for path in self.paths:
            run.size_at(path)
        run.charge(TAKEN * self._measure(run).most)
        return run.cost


# ---- Sizes of values -----------------------------------------------------------------------------------------------


def size_of(value: Any) -> Size:
    """Return the size of a JSON value; the count of an integer is its value."""
    kind = type(value)
    if kind is str:
        chars = _bytes(value)
        return Size(chars, chars, chars, chars, chars)
    if kind in _SCALAR_TYPES:
        count = max(value, 0) if kind is int else 0
        return Size(_SCALAR, _SCALAR, count, count, _SCALAR)
    weights = _weights(value.values() if isinstance(value, Mapping) else value)
    keys = sum(map(_bytes, value)) + ELEMENT * len(value) if isinstance(value, Mapping) else 0
    whole = sum(weights) + ELEMENT * (1 + len(weights)) + keys
    return Size(whole, whole, len(weights), len(weights), max(weights, default=0), [value])


def weight(value: Any) -> int:
    """Return the weight of a JSON value."""
    kind = type(value)
    if kind is str:
        return _bytes(value)
    if kind in _SCALAR_TYPES:
        return _SCALAR
    total, todo = 0, [value]
    for one in todo:  # which grows
        total += ELEMENT * (1 + len(one))
        held: Iterable[Any] = one
        if type(one) is not list:
            total += ELEMENT * len(one) + _bytes("".join(one))
            held = one.values()
        for part in held:
            kind = type(part)
            if kind is str:
                total += len(part) if part.isascii() else 4 * len(part)
            elif kind in _SCALAR_TYPES:
                total += _SCALAR
            else:
                todo.append(part)
    return total


def cost_of_parts(written: bytes) -> int:
    """Return what the parts of a JSON text cost beside its bytes: of many empty objects, most of all.

    Brackets and commas are counted, in texts as well: going through it to tell them apart would cost as much.
    """
    if len(written) < SHORT_BYTES:
        return 0
    return _CONTAINER * (written.count(b"{") + written.count(b"[")) + _PART * written.count(b",")


def _weights(values: Iterable[Any]) -> list[int]:
    values = list(values)
    kinds = set(map(type, values))
    if kinds <= {str}:
        return list(map(len if "".join(values).isascii() else _bytes, values))
    return [_SCALAR] * len(values) if kinds <= _SCALAR_TYPES else _weights_of_nested(values)


def _weights_of_nested(values: list[Any]) -> list[int]:
    """Weigh piece by piece, up to what is too much anyway. Raises `TooExpensive`."""
    weights: list[int] = []
    total = 0
    for start in range(0, len(values), _PIECE_COUNT):
        piece = list(map(weight, values[start : start + _PIECE_COUNT]))
        weights += piece
        total += sum(piece) + ELEMENT * len(piece)
        if GIVEN * total > MAX_EXPRESSION_COST:
            raise TooExpensive
    return weights


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else 4 * len(text)


def _is_small(value: Any) -> bool:
    """Return whether the value's size is within `_SMALL`."""
    if type(value) is str:
        return len(value) <= _SHORT_CHARS
    return type(value) in _SCALAR_TYPES and (value is None or value <= _UNKNOWN)


def value_at(context: Mapping[str, Any], path: Iterable[str]) -> Any:
    """Return what the context holds there; null where there is nothing."""
    value: Any = context
    for part in path:
        if type(value) is not dict and not isinstance(value, Mapping):  # the abstract check costs ten times the other
            return None
        value = value.get(part)
    return value


def _scalar(n: int, count: int = MAX_MACRO_ITERATIONS) -> Size:
    return Size(_SCALAR, _SCALAR * n, count, count * n, _SCALAR)


def _all_of(values: list[Any], times: int) -> Size:
    """Return the size of something that is each of these values, at most so many times."""
    weights = _weights(values)
    lengths = weights if set(map(type, values)) <= {str} else list(map(_length, values))
    most, length = max(weights, default=0), max(lengths, default=0)
    return Size(most, sum(weights) * times, length, sum(lengths) * times, most, values, times)


def _length(value: Any) -> int:
    if isinstance(value, str):
        return _bytes(value)
    if isinstance(value, list | dict):
        return len(value)
    return max(value, 0) if type(value) is int else 0


def _part_of(whole: Size, n: int) -> Size:
    """Return the size of something inside a value: `item` is the heaviest."""
    total = min(whole.total, whole.item * n)
    return Size(whole.item, total, whole.item, total, whole.item)


def _sum(sizes: list[Size], n: int, extra: int = 0) -> Size:
    most = sum(one.most for one in sizes) + extra
    total = sum(one.total for one in sizes) + extra * n
    length, lengths = sum(one.length for one in sizes), sum(one.lengths for one in sizes)
    return Size(most, total, length, lengths, max((one.item for one in sizes), default=0))


def _either(sizes: list[Size], n: int) -> Size:
    most, length = max(one.most for one in sizes), max(one.length for one in sizes)
    total = min(sum(one.total for one in sizes), most * n)
    lengths = min(sum(one.lengths for one in sizes), length * n)
    return Size(most, total, length, lengths, max(one.item for one in sizes))


def _product(length: int, lengths: int, by: Size) -> tuple[int, int]:
    """Return so many times the weight of `by`: at most in one iteration, and in all."""
    return length * by.most, min(lengths * by.most, length * by.total)


def _text(most: int, total: int) -> Size:
    return Size(most, total, most, total, most)


# ---- From the tree to a function -----------------------------------------------------------------------------------

_INDEX: Final = frozenset(("_[_]", "_?._", "_[?_]"))
_SAME: Final = frozenset(("orValue", "or", "value", "optional.of", "optional.ofNonZeroValue", "dyn"))
_NUMBERS: Final = frozenset(("_-_", "_*_", "_/_", "_%_", "-_"))  # of dyn they are numbers, too
_READS_NOTHING: Final = frozenset(("hasValue", "_&&_", "_||_", "!_", "@not_strictly_false", "type"))


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
        self._bound: dict[str, bool] = {}  # the names of macros and bindings: whether of a macro over `range`
        self.paths: set[Path] = set()
        self.nodes = 0  # those of the expression at hand that are evaluated equally often
        self.is_bound_by_sizes = True  # not by what a text says, as a pattern's cost is

    def build(self, expr: ast.Node) -> _Measure:
        self.nodes += 1
        path = self.path(expr)
        if path is not None:
            self.paths.add(path)
            return _path_measure(path)
        selected = self._selected(expr)
        if selected is not None:
            return self._variable(expr, *selected)
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
                return _made_measure([self.build(one) for one in node.children()], 1)
            case ast.Kind.STRUCT:
                return _made_measure([self.build(one) for entry in node.children() for one in entry.children()], 2)
            case _:
                return self._comprehension(expr, node)

    def path(self, expr: ast.Node) -> Path | None:
        """Return the path of the context that an expression is."""
        path = self._path_of(expr)
        if path is None or path[0] not in self._variables or path[0] in self._bound:
            return None
        return (path[0].lstrip("."), *path[1:])

    def _selected(self, expr: ast.Node) -> Path | None:
        """Return a variable of a macro and the fields that are selected from it, if the expression is no more."""
        path = self._path_of(expr)
        return path if path is not None and (len(path) == 1 or path[0] in self._bound) else None

    def is_scalar(self, expr: ast.Node) -> bool:
        """Whether the result is a number, a bool, a time or null."""
        return self._types.get(expr.expr_id, (0, 0)) in ast.SCALAR_TYPES

    def _variable(self, expr: ast.Node, name: str, *fields: str) -> _Measure:
        self.nodes += len(fields)
        if self.is_scalar(expr) and not self._bound.get(name):
            return lambda run: _scalar(run.n)

        def measure(run: _Run) -> Size:
            if name not in run.names:
                return _scalar(run.n)  # a type, or how a step ended
            size, depth = run.names[name]
            if fields:
                size = _field_of(run, size, fields)
            for count, n in run.loops[depth:]:
                size = size.repeated(count, n)
            return size

        return measure

    def _select(self, expr: ast.Node, node: ast.Node) -> _Measure:
        operand = node.child(ast.SELECT_OPERAND)
        whole = self.build(operand) if operand else _constant(expr)
        if self.is_scalar(expr):  # has(x.y)
            return _scalar_measure([whole], 0)

        def measure(run: _Run) -> Size:
            size = whole(run)
            return _part_of(size._replace(item=size.most), run.n)

        return measure

    # -- calls

    def _call(self, expr: ast.Node, call: ast.Node) -> _Measure:
        name, target = call.text(ast.CALL_FUNCTION), call.child(ast.CALL_TARGET)
        nodes = [*([target] if target else []), *call.args()]
        args = [self.build(one) for one in nodes]
        special = _SPECIAL.get(name)
        if special is not None:
            return special(self, nodes, args)
        if name in _NUMBERS or self.is_scalar(expr):
            return _scalar_measure(args, 0 if name in _READS_NOTHING else 1)
        if name in _INDEX:
            return _index_measure(args)
        if name in _SAME:
            return _same_measure(args)
        return _text_measure(args, _SLOW.get(name, 1), grows=2 if name == "strings.quote" else 1)

    def choose(self, nodes: list[ast.Node], args: list[_Measure]) -> _Measure:
        """`a ? b : c`."""
        same = _same_measure(args[1:])

        def measure(run: _Run) -> Size:
            args[0](run)
            return same(run)

        return measure

    def add(self, nodes: list[ast.Node], args: list[_Measure]) -> _Measure:
        """`+` of two texts or lists: of lists, only the elements are copied."""
        if all(map(self.is_scalar, nodes)):
            return _scalar_measure(args)
        are_lists = any(self._types.get(one.expr_id, (0, 0))[0] == ast.TYPE_LIST for one in nodes)
        are_lists = are_lists or any(map(ast.is_empty_list, nodes))
        is_same = ast.is_empty_list(nodes[1])  # the guard of a macro's list: `list + []`

        def measure(run: _Run) -> Size:
            size = args[0](run) if is_same else _sum([one(run) for one in args], run.n)
            run.charge(
                ELEMENT * size.all_elements + _MADE * run.n if are_lists else _COPIED * size.total + _MADE * run.n
            )
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
            run.charge(_RANGE * counts + _MADE * run.n)
            each = ELEMENT + _SCALAR
            return Size(count * each, counts * each, count, counts, _SCALAR)

        return measure

    def _is_known_number(self, expr: ast.Node) -> bool:
        call = expr.child(ast.EXPR_CALL)
        if call is None:
            return self._selected(expr) is not None or ast.const_int(expr) is not None or self.path(expr) is not None
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
        """`size(x)`: its value is the number of elements; only the characters of a text are counted every time."""
        path = self.path(nodes[0])
        is_list = self._types.get(nodes[0].expr_id, (0, 0))[0] == ast.TYPE_LIST

        def measure(run: _Run) -> Size:
            size = args[0](run)
            if not is_list and not (path and isinstance(value_at(run.context, path), list | Mapping)):
                run.charge(size.total)
            return Size(_SCALAR, _SCALAR * run.n, size.length, size.lengths, _SCALAR)

        return measure

    def among(self, nodes: list[ast.Node], args: list[_Measure]) -> _Measure:
        """`a in b`: a list is gone through, in a map the key is looked up."""
        path = self.path(nodes[1])

        def measure(run: _Run) -> Size:
            sought, among = args[0](run), args[1](run)
            is_map = path is not None and isinstance(value_at(run.context, path), Mapping)
            run.charge(sought.total if is_map else sought.total + among.total)
            return _scalar(run.n)

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

    # -- calls that multiply

    def _found(self, nodes: list[ast.Node]) -> Callable[[_Run, Size], tuple[int, int]]:
        """How often the second text is found in the first: counted in a context path, else as often as it fits."""
        path, part = self.path(nodes[0]), ast.const_string(nodes[1])

        def found(run: _Run, text: Size) -> tuple[int, int]:
            value = value_at(run.context, path) if path is not None else None
            if isinstance(value, str) and part:
                return value.count(part) + 1, (value.count(part) + 1) * run.n
            length = len(part.encode()) if part else 1
            return text.most // length + 1, text.total // length + run.n

        return found

    def search(self, nodes: list[ast.Node], args: list[_Measure]) -> _Measure:
        """`text.contains(other)`, `indexOf`, `lastIndexOf`."""

        def measure(run: _Run) -> Size:
            text, part = args[0](run), args[1](run)
            _search(run, text, part)
            if len(args) > 2:  # from a position, which is counted to
                run.charge(_SEARCH * text.total + args[2](run).total)
            return _scalar(run.n)

        return measure

    def replace(self, nodes: list[ast.Node], args: list[_Measure]) -> _Measure:
        """`text.replace(old, new)`: the text, and the new one as often as the old one may be there."""
        found = self._found(nodes)

        def measure(run: _Run) -> Size:
            text, old, new = (one(run) for one in args[:3])
            _search(run, text, old)
            times, all_times = found(run, text)
            more, more_total = _product(times, all_times, new)
            run.charge(_PIECE * all_times + _COPIED * (text.total + more_total) + _MADE * run.n)
            return _text(text.most + more, text.total + more_total)

        return measure

    def split(self, nodes: list[ast.Node], args: list[_Measure]) -> _Measure:
        """`text.split(separator)`."""
        found = self._found(nodes)

        def measure(run: _Run) -> Size:
            text, separator = (one(run) for one in args[:2])
            _search(run, text, separator)
            pieces, pieces_total = found(run, text)
            run.charge(_PIECE * pieces_total + _MADE * run.n)
            most, total = text.most + ELEMENT * (pieces + 1), text.total + ELEMENT * (pieces_total + run.n)
            return Size(most, total, pieces, pieces_total, text.most)

        return measure

    def join(self, nodes: list[ast.Node], args: list[_Measure]) -> _Measure:
        """`list.join(separator)`."""

        def measure(run: _Run) -> Size:
            texts = args[0](run)
            between = args[1](run) if len(args) > 1 else _NOTHING
            more, more_total = _product(texts.elements, texts.all_elements, between)
            run.charge(_COPIED * (texts.total + more_total) + _MADE * run.n)
            return _text(texts.most + more, texts.total + more_total)

        return measure

    def format(self, nodes: list[ast.Node], args: list[_Measure]) -> _Measure:
        """`text.format(list)`: what is put in may be escaped; a number may have 1,000 decimals."""
        text = ast.const_string(nodes[0])
        numbers = None if text is None else len(_LONG_NUMBER.findall(text))

        def measure(run: _Run) -> Size:
            pattern, given = args[0](run), args[1](run)
            count, counts = (given.elements, given.all_elements) if numbers is None else (numbers, numbers * run.n)
            most = pattern.most + 2 * given.most + _NUMBER_CHARS * count
            total = pattern.total + 2 * given.total + _NUMBER_CHARS * counts
            run.charge(_COPIED * total + _MADE * run.n)
            return _text(most, total)

        return measure

    def matches(self, nodes: list[ast.Node], args: list[_Measure]) -> _Measure:
        """`text.matches(pattern)`: the pattern is compiled every time, and every step of it may look at each byte."""
        path, literal = self.path(nodes[1]), ast.const_string(nodes[1])
        self.is_bound_by_sizes = self.is_bound_by_sizes and literal is not None

        def measure(run: _Run) -> Size:
            text, _ = (one(run) for one in args[:2])
            pattern = literal if literal is not None else value_at(run.context, path) if path else None
            if isinstance(pattern, str):
                run.charge(PATTERN_STEP * pattern_steps(pattern) * run.n + reads_per_byte(pattern) * text.total)
            elif path is None:
                raise TooExpensive  # a pattern that is put together
            return _scalar(run.n)

        return measure

    # -- macros

    def _comprehension(self, expr: ast.Node, node: ast.Node) -> _Measure:
        over, init = self._child(node, ast.COMPREHENSION_RANGE), self._child(node, ast.COMPREHENSION_INIT)
        names = node.text(ast.COMPREHENSION_VAR), node.text(ast.COMPREHENSION_ACCU)
        range_node = node.child(ast.COMPREHENSION_RANGE)
        is_binding = range_node is not None and ast.is_empty_list(range_node)
        is_counting = range_node is not None and ast.function_of(range_node) == "range"
        outside, nodes = self._bound, self.nodes
        self._bound = {**outside, names[0]: is_counting, names[1]: False}
        if is_binding:
            result = self._child(node, ast.COMPREHENSION_RESULT)
            self._bound = outside
            return _binding_measure(names[1], init, result)
        self.nodes = 0
        step, _ = self._child(node, ast.COMPREHENSION_STEP), self._child(node, ast.COMPREHENSION_CONDITION)
        appends = ast.appends_to(node) is not None
        loop = _Loop(
            names, over, step, self.nodes, appends=appends, is_counting=is_counting, is_filter=_is_filter(node)
        )
        self._bound, self.nodes = outside, nodes
        if self.is_scalar(expr):
            return _scalar_measure([loop.measure], 0)
        return loop.measure if loop.appends else _anything

    def _child(self, node: ast.Node, number: int) -> _Measure:
        child = node.child(number)
        return self.build(child) if child else _anything


_LONG_NUMBER: Final = re.compile(r"%(\.\d+)?[fe]")
_SPECIAL: Final[Mapping[str, Callable[[_Builder, list[ast.Node], list[_Measure]], _Measure]]] = {
    "_?_:_": _Builder.choose,
    "_+_": _Builder.add,
    "range": _Builder.range,
    "size": _Builder.count,
    "@in": _Builder.among,
    "_-_": _Builder.less,
    "_%_": _Builder.rest,
    "contains": _Builder.search,
    "indexOf": _Builder.search,
    "lastIndexOf": _Builder.search,
    "replace": _Builder.replace,
    "split": _Builder.split,
    "join": _Builder.join,
    "format": _Builder.format,
    "matches": _Builder.matches,
}


def _is_filter(comprehension: ast.Node) -> bool:
    """Whether a macro that builds a list puts nothing into it but elements of the one that it ranges over."""
    append = ast.appends_to(comprehension)
    call = append.child(ast.EXPR_CALL) if append else None
    added = call.args()[1].child(ast.EXPR_LIST) if call else None
    items = list(added.children()) if added else []
    return len(items) == 1 and ast.ident_name(items[0]) == comprehension.text(ast.COMPREHENSION_VAR)


class _Loop:
    """A macro over a list: `map` and `filter` gather a list, the others a bool or a number."""

    def __init__(
        self,
        names: tuple[str, str],
        over: _Measure,
        step: _Measure,
        nodes: int,
        *,
        appends: bool,
        is_counting: bool,
        is_filter: bool,
    ) -> None:
        self._names = names
        self._over = over
        self._step = step
        self._nodes = nodes
        self.appends = appends
        self._is_counting = is_counting
        self._is_filter = is_filter

    def measure(self, run: _Run) -> Size:
        over = self._over(run)
        count, n = _iterations(over)
        each = _ITERATION + _NODE * self._nodes + (_APPEND + count // 5 if self.appends else 0)
        run.charge(n * each + _MADE * run.n)
        names, outer = run.names, run.n
        run.loops.append((count, n))
        run.n = n
        depth = len(run.loops)
        run.names = {**names, self._names[0]: (self._item(over, count, n), depth), self._names[1]: (_NOTHING, depth)}
        added = self._step(run)
        run.loops.pop()
        run.names, run.n = names, outer
        if not self.appends:
            return _NOTHING
        total = added.total - ELEMENT * n  # a list of one each
        most, total = min(count * (added.most - ELEMENT), total) + ELEMENT, total + ELEMENT * outer
        values, times = (over.values, over.times) if self._is_filter else (None, 1)
        return Size(most, total, min(count * added.length, added.lengths), added.lengths, added.item, values, times)

    def _item(self, over: Size, count: int, n: int) -> Size:
        if self._is_counting:
            return _scalar(n, count)
        if over.values is None:
            return _part_of(over, n)
        items = [item for one in over.values if isinstance(one, list) for item in one]
        return _part_of(over, n)._replace(values=items, times=over.times)


def _iterations(over: Size) -> tuple[int, int]:
    """Return how often a macro over this iterates: at most for one iteration around it, and in all."""
    count, n = over.elements, over.all_elements
    if over.values is not None:
        lengths = [len(one) for one in over.values if isinstance(one, list)]
        count, n = min(count, max(lengths, default=0)), min(n, sum(lengths) * over.times)
    return min(count, MAX_MACRO_ITERATIONS), min(n, MAX_MACRO_ITERATIONS)


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


def _anything(_run: _Run) -> Size:
    return _ANYTHING


def _constant(expr: ast.Node) -> _Measure:
    length = ast.const_length(expr)
    number = ast.const_int(expr)
    if number is not None:
        return lambda run: _scalar(run.n, max(number, 0))
    return lambda run: Size(length, length * run.n, length, length * run.n, length)


def _path_measure(path: Path) -> _Measure:
    def measure(run: _Run) -> Size:
        size = run.size_at(path)
        return size if run.n == 1 else size.repeated(run.n, run.n)

    return measure


def _field_of(run: _Run, size: Size, fields: tuple[str, ...]) -> Size:
    """Return the size of what is selected from a macro's variable, told from the values where these are known."""
    if size.values is None:
        return size._replace(length=size.most, lengths=size.total)
    known = run.fields.get((id(size.values), fields))
    if known is None:
        run.charge(_FIELD * (1 + len(fields)) * len(size.values))
        values = size.values
        for field in fields:
            values = [one.get(field) if type(one) is dict else None for one in values]
        known = run.fields[id(size.values), fields] = _all_of(values, size.times)
    return known


def _search(run: _Run, text: Size, part: Size) -> None:
    _, product = _product(text.most, text.total, part)
    run.charge(_SEARCH * text.total + product // 64)


def _made_measure(parts: list[_Measure], each: int) -> _Measure:
    """A list, or a map with its keys and values among the parts."""

    def measure(run: _Run) -> Size:
        sizes = [one(run) for one in parts]
        run.charge((_MADE + 2 * ELEMENT * len(sizes)) * run.n)
        whole = _sum(sizes, run.n, ELEMENT * (len(sizes) + 1))
        length = len(sizes) // each
        heaviest = max((one.most for one in sizes), default=0)
        return Size(whole.most, whole.total, length, length * run.n, heaviest)

    return measure


def _scalar_measure(args: list[_Measure], reads: int = 1) -> _Measure:
    def measure(run: _Run) -> Size:
        run.charge(reads * sum([one(run).total for one in args]))
        return _scalar(run.n)

    return measure


def _index_measure(args: list[_Measure]) -> _Measure:
    def measure(run: _Run) -> Size:
        whole, _ = args[0](run), args[1](run)
        return _part_of(whole, run.n)

    return measure


def _same_measure(args: list[_Measure]) -> _Measure:
    """One of the arguments, as it is."""

    def measure(run: _Run) -> Size:
        return _either([one(run) for one in args], run.n)

    return measure


def _text_measure(args: list[_Measure], reads: int, grows: int) -> _Measure:
    """A function whose result is not longer than all its arguments together, but for a number's digits."""

    def measure(run: _Run) -> Size:
        whole = _sum([one(run) for one in args], run.n)
        run.charge((reads + _COPIED * grows) * whole.total + _MADE * run.n)
        return _text(grows * whole.most + ELEMENT, grows * whole.total + ELEMENT * run.n)

    return measure
