"""What a JSON Schema and an expression cost, estimated from their text: counts, so that every machine says the same.

One unit is about 0.1 µs of one core. The estimates are upper bounds of what was measured for the worst that was found;
they decide where a check runs and whether it runs at all, never what it says.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from anabranch.shared.contracts.limits import MAX_NESTING

UNBOUNDED: Final = 10**9  # of a schema that refers to itself for the same value, or to twice as much at each level

# ---- Expressions ---------------------------------------------------------------------------------------------------

_EXPRESSION: Final = 1_000
_PATH: Final = 300  # a plain path is not compiled
_TOKEN: Final = 200
_CHARACTER: Final = 2  # the engine looks for names that are near
_ODD_CHARACTER: Final = 80  # each is an error of its own
_MACRO: Final = 20_000
_DOUBLING: Final = 10_000  # an optMap in a chain is written out twice by the engine
_MAX_DOUBLINGS: Final = 20
_TEXTS: Final = re.compile(r"'[^'\\]*'|\"[^\"\\]*\"")
_PLAIN_PATH: Final = re.compile(r"\s*\w+(?:\.\w+|\[0\])*\s*", re.ASCII)
_TOKENS: Final = re.compile(r"\w+|[^\w\s]")
_ODD: Final = re.compile(r"[^\x00-\x7f]")
_MACROS: Final = re.compile(r"\b(?:all|exists|exists_one|existsOne|map|filter|bind)\s*\(")
_DOUBLED: Final = re.compile(
    r"(?P<double>\.\s*(?:optMap|optFlatMap)\s*\()|(?P<optional>\.\s*\?|\[\s*\?)|(?P<open>[(\[{])|(?P<close>[)\]}])"
    r"|(?P<next>[-,+*/%<>=!&|?:])"
)


def expression_cost(text: str) -> int:
    """Return what compiling an expression costs at most."""
    bare = _TEXTS.sub("0", text)
    if _PLAIN_PATH.fullmatch(bare):
        return _PATH + _CHARACTER * len(bare)
    cost = _EXPRESSION + _TOKEN * len(_TOKENS.findall(bare)) + _MACRO * len(_MACROS.findall(bare))
    cost += _CHARACTER * len(bare)
    if not bare.isascii():
        cost += _ODD_CHARACTER * len(_ODD.findall(bare))
    return cost + _DOUBLING * _doublings(bare) if "opt" in bare else cost


def _doublings(bare: str) -> int:
    """Return how many times something is written out for the chains of `optMap`: what stands before each, twice."""
    found = 0
    levels = [[0, 0]]  # by open bracket: doublings in the operand that is being read, the most of an operand before
    for match in _DOUBLED.finditer(bare):
        kind, level = match.lastgroup, levels[-1]
        if kind == "double":
            level[0] = min(level[0] + 1, _MAX_DOUBLINGS)
            found += 1 << level[0]
        if kind == "next":
            levels[-1] = [0, max(level)]
        elif kind == "close" and len(levels) > 1:
            levels.pop()
            levels[-1][0] = max(levels[-1][0], *level)
        elif kind in ("double", "open") or match[0].startswith("["):
            levels.append([0, 0])
    return found


# ---- Patterns ------------------------------------------------------------------------------------------------------

_COUNTS: Final = re.compile(r"\{(\d{1,6})(?:,(\d{0,6}))?\}")
_ATOM: Final = re.compile(r"\[\^?\]?(?:[^\]\\]|\\.)*\]|\\[pP]\{[^}]*\}|\\.|[^()]", re.DOTALL)
_ANY: Final = 10  # `.` and [^…] stand for a dozen ranges of UTF-8
_CATEGORY: Final = 400  # \p{L} for hundreds


def pattern_states(pattern: str) -> int:
    """Return about how many states a regular expression has, its counted repetitions written out."""
    open_groups: list[int] = []
    total, last, at = 0, 0, 0
    while at < len(pattern) and total < UNBOUNDED:
        if counts := _COUNTS.match(pattern, at):
            times = max(int(counts[1]), int(counts[2] or 0), 1)
            total, last, at = total + last * (times - 1), last * times, counts.end()
        elif pattern[at] == "(":
            open_groups.append(total)
            total, last, at = 0, 0, at + 1
        elif pattern[at] == ")":
            last = total
            total, at = total + (open_groups.pop() if open_groups else 0), at + 1
        else:
            atom = _ATOM.match(pattern, at)
            last = _size_of(atom[0]) if atom else 1
            total, at = total + last, atom.end() if atom else at + 1
    return min(total + sum(open_groups) + 1, UNBOUNDED)


def _size_of(atom: str) -> int:
    if "\\p" in atom or "\\P" in atom:
        return _CATEGORY
    return _ANY if atom == "." or atom.startswith("[^") or not atom.isascii() else 1


# ---- Schemas -------------------------------------------------------------------------------------------------------

_ELEMENT: Final = 40
_STATE: Final = 6
_FORMAT_REGEX: Final = 20_000  # a pattern of ten characters may take 20 ms to compile
_LISTS_OF_SCHEMAS: Final = ("allOf", "anyOf", "oneOf")
_SCHEMAS: Final = ("not", "if", "then", "else")
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")
_SIZED: Final = ("properties", "required", "dependentRequired", "dependentSchemas", "dependencies", "enum")
_OF_KEYS: Final = ("additionalProperties", "unevaluatedProperties", "propertyNames")
_OF_ITEMS: Final = ("items", "additionalItems", "contains", "unevaluatedItems")
_MAX_DEPTH: Final = 150  # of references for one value


@dataclass(frozen=True, slots=True)
class SchemaWeight:
    """What a schema costs: to compile, for each value below it, for each byte of text in them.

    `largest_keyword` is in bytes: so much is repeated in every error. `checks_names`: an error repeats an object for
    each of its keys.
    """

    compiling: int
    per_value: int
    per_byte: int
    largest_keyword: int
    checks_names: bool


def weigh_schema(schema: Any) -> SchemaWeight:
    """Return what a schema costs."""
    elements, text, states, largest, names = 0, 0, 0, 0, False
    for key, value in _elements(schema):
        size = len(value) if isinstance(value, str | list | dict) else 8
        elements += 1
        text += len(key) + (size if isinstance(value, str) else 8)
        states += _states_of(key, value)
        largest = max(largest, len(key) + size * (1 if isinstance(value, str) else 16))
        names = names or key == "propertyNames"
    return SchemaWeight(
        compiling=_ELEMENT * elements + text + _STATE * states,
        per_value=_Levels(schema, _keywords_of).most(),
        per_byte=_Levels(schema, _matching_of).most(),
        largest_keyword=min(largest, text),
        checks_names=names,
    )


def _elements(value: Any) -> Iterator[tuple[str, Any]]:
    todo: list[tuple[str, Any]] = [("", value)]
    while todo:
        key, one = todo.pop()
        yield key, one
        if isinstance(one, dict):
            todo.extend(one.items())
        elif isinstance(one, list):
            todo.extend(("", each) for each in one)


def _states_of(key: str, value: Any) -> int:
    if key == "pattern" and isinstance(value, str):
        return pattern_states(value)
    if key == "patternProperties" and isinstance(value, dict):
        return sum(pattern_states(each) for each in value)
    return 0


def _keywords_of(node: dict[str, Any]) -> int:
    return sum(
        1 + (len(value) if key in _SIZED and isinstance(value, list | dict) else 0) for key, value in node.items()
    )


def _matching_of(node: dict[str, Any]) -> int:
    cost = sum(_states_of(key, value) // 10 for key, value in node.items())
    if "format" in node:
        cost += _FORMAT_REGEX if node["format"] == "regex" else 1
    return cost


class _Levels:
    """Finds the level of values at which most of a schema applies to one value.

    A schema applies to a value together with all that it refers to for the same value (`allOf`, `$ref`); what these say
    of properties and items applies to the values below, where much may meet again.
    """

    def __init__(self, root: Any, own: Callable[[dict[str, Any]], int]) -> None:
        self._root = root
        self._own = own
        self._anchors = _anchors(root)
        self._here: dict[int, int | None] = {}  # by schema: what applies to its own value; None while it is being found
        self._anywhere: dict[int, int] = {}  # by schema: the most for one value, its own or one below
        self._below: dict[int, tuple[int, int]] = {}  # by schema: the most for one value in an object, in a list

    def most(self) -> int:
        """Return how much of the schema applies to one value at most."""
        schemas = self._reachable()
        for each in schemas:
            self._anywhere[id(each)] = self._in_place(each, 0)
        for _ in range(MAX_NESTING):  # until nothing changes: at once, unless the schema contains itself
            self._below.clear()
            changed = False
            for each in reversed(schemas):
                found = min(max(self._anywhere[id(each)], *self._below_of(each)), UNBOUNDED)
                changed = changed or found > self._anywhere[id(each)]
                self._anywhere[id(each)] = found
            if not changed or self._most(self._root) >= UNBOUNDED:
                break
        return self._most(self._root)

    def _reachable(self) -> list[dict[str, Any]]:
        found = {id(self._root): self._root} if isinstance(self._root, dict) else {}
        todo = list(found.values())
        while todo:
            node = todo.pop()
            for each in (*self._beside(node), *_children(node)):
                if isinstance(each, dict) and id(each) not in found:
                    found[id(each)] = each
                    todo.append(each)
        return list(found.values())

    def _in_place(self, node: Any, depth: int) -> int:
        if not isinstance(node, dict):
            return 1
        known = self._here.get(id(node), -1)
        if known is None or depth > _MAX_DEPTH:
            return UNBOUNDED
        if known < 0:
            self._here[id(node)] = None
            known = self._own(node) + sum(self._in_place(each, depth + 1) for each in self._beside(node))
            self._here[id(node)] = known = min(known, UNBOUNDED)
        return known

    def _most(self, node: Any) -> int:
        return self._anywhere[id(node)] if isinstance(node, dict) else 1

    def _below_of(self, node: Any) -> tuple[int, int]:
        if not isinstance(node, dict) or self._here[id(node)] == UNBOUNDED:
            return 0, 0
        known = self._below.get(id(node))
        if known is None:
            in_object, in_list = self._in_object(node), self._in_list(node)
            for each in self._beside(node):
                more = self._below_of(each)
                in_object, in_list = in_object + more[0], in_list + more[1]
            self._below[id(node)] = known = in_object, in_list
        return known

    def _in_object(self, node: dict[str, Any]) -> int:
        named = [self._most(each) for each in _values(node.get("properties"))]
        matched = [self._most(each) for each in _values(node.get("patternProperties"))]
        return max(named, default=0) + sum(matched) + sum(self._most(node[key]) for key in _OF_KEYS if key in node)

    def _in_list(self, node: dict[str, Any]) -> int:
        placed = [self._most(each) for key in ("prefixItems", "items") for each in _listed(node.get(key))]
        return max(placed, default=0) + sum(
            self._most(node[key]) for key in _OF_ITEMS if isinstance(node.get(key), dict)
        )

    def _beside(self, node: dict[str, Any]) -> Iterator[Any]:
        for key in _LISTS_OF_SCHEMAS:
            yield from _listed(node.get(key))
        for key in _SCHEMAS:
            if key in node:
                yield node[key]
        for key in ("dependentSchemas", "dependencies"):
            yield from _values(node.get(key))
        for key in _REFERENCES:
            if key in node:
                yield self._referred(node[key])

    def _referred(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None  # nothing is fetched: it does not compile
        if reference[1:] in self._anchors:
            return self._anchors[reference[1:]]
        found = self._root
        for part in reference[2:].split("/") if reference != "#" else ():
            found = _part_of(found, part.replace("~1", "/").replace("~0", "~"))
        return found


def _children(node: dict[str, Any]) -> Iterator[Any]:
    for key in ("properties", "patternProperties"):
        yield from _values(node.get(key))
    for key in ("prefixItems", "items"):
        yield from _listed(node.get(key))
    for key in (*_OF_KEYS, *_OF_ITEMS):
        if key in node:
            yield node[key]


def _part_of(value: Any, part: str) -> Any:
    if isinstance(value, dict):
        return value.get(part)
    return value[int(part)] if isinstance(value, list) and part.isdecimal() and int(part) < len(value) else None


def _anchors(schema: Any) -> dict[str, Any]:
    return {
        node[key]: node
        for _, node in _elements(schema)
        if isinstance(node, dict)
        for key in ("$anchor", "$dynamicAnchor")
        if isinstance(node.get(key), str)
    }


def _values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else []


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# ---- Values --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ValueSize:
    """How large a JSON value is: values and bytes in it; the bytes of each value in it added up; and for each key the
    bytes of its object added up.
    """

    values: int
    size: int
    repeated: int
    repeated_by_key: int


_OF_EIGHT_BYTES: Final = frozenset((int, float, bool, type(None)))
_ONE: Final = ValueSize(1, 8, 8, 0)


def size_of(value: Any) -> ValueSize:
    """Measure a JSON value."""
    if type(value) in _OF_EIGHT_BYTES:
        return _ONE
    order: list[tuple[int, Any]] = [(-1, value)]
    sizes: list[int] = []
    for at, (_, one) in enumerate(order):  # grows while it is read
        if isinstance(one, str):
            sizes.append(2 + len(one))
        elif isinstance(one, dict):
            sizes.append(2 + sum(map(len, one)) + 3 * len(one))
            order.extend((at, each) for each in one.values())
        elif isinstance(one, list):
            sizes.append(2 + len(one))
            order.extend((at, each) for each in one)
        else:
            sizes.append(8)
    for at in range(len(order) - 1, 0, -1):
        sizes[order[at][0]] += sizes[at]
    by_key = sum(len(one) * sizes[at] for at, (_, one) in enumerate(order) if isinstance(one, dict))
    return ValueSize(len(order), sizes[0], sum(sizes), by_key)
