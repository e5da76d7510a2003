"""The checked syntax tree of a CEL expression: read, walked and changed in its protobuf wire form.

`Expression.serialize()` gives a `google.protobuf.Any` with a `cel.expr.CheckedExpr` (github.com/google/cel-spec,
proto/cel/expr/{checked,syntax}.proto). googleapis-common-protos does not have its classes, and protobuf's parser stops
at 100 levels, which an expression may have; nine messages are needed, so the wire format
(protobuf.dev/programming-guides/encoding) is read here. Nothing here recurses.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final


class Kind(Enum):
    """The messages of the tree that are looked into."""

    ANY = "any"
    CHECKED = "checked"
    EXPR = "expr"
    SELECT = "select"
    CALL = "call"
    LIST = "list"
    STRUCT = "struct"
    ENTRY = "entry"
    COMPREHENSION = "comprehension"


# Field numbers.
ANY_VALUE: Final = 2
CHECKED_TYPES: Final = 3
CHECKED_EXPR: Final = 4
EXPR_ID: Final = 2
EXPR_CONST: Final = 3
EXPR_IDENT: Final = 4
EXPR_SELECT: Final = 5
EXPR_CALL: Final = 6
EXPR_LIST: Final = 7
EXPR_STRUCT: Final = 8
EXPR_COMPREHENSION: Final = 9
SELECT_OPERAND: Final = 1
SELECT_FIELD: Final = 2
CALL_TARGET: Final = 1
CALL_FUNCTION: Final = 2
CALL_ARGS: Final = 3
CONST_STRING: Final = 6
LIST_OPTIONAL_INDICES: Final = 2
ENTRY_OPTIONAL: Final = 5
STRUCT_MESSAGE: Final = 1
COMPREHENSION_VAR: Final = 1
COMPREHENSION_RANGE: Final = 2
COMPREHENSION_ACCU: Final = 3
COMPREHENSION_INIT: Final = 4
COMPREHENSION_CONDITION: Final = 5
COMPREHENSION_STEP: Final = 6
COMPREHENSION_RESULT: Final = 7
COMPREHENSION_VAR2: Final = 8
CONST_INT: Final = 3
TYPE_NULL: Final = 2
TYPE_PRIMITIVE: Final = 3
TYPE_WELL_KNOWN: Final = 5
TYPE_LIST: Final = 6
TYPE_MAP: Final = 7

# Static types as `types` returns them: null, bool, int, uint, double, timestamp, duration; string and bytes.
SCALAR_TYPES: Final = frozenset(
    ((TYPE_NULL, 0), *((TYPE_PRIMITIVE, which) for which in (1, 2, 3, 4)), (TYPE_WELL_KNOWN, 2), (TYPE_WELL_KNOWN, 3))
)
TEXT_TYPES: Final = frozenset(((TYPE_PRIMITIVE, 5), (TYPE_PRIMITIVE, 6)))

_CHILDREN: Final[dict[Kind, dict[int, Kind]]] = {
    Kind.ANY: {ANY_VALUE: Kind.CHECKED},
    Kind.CHECKED: {CHECKED_EXPR: Kind.EXPR},
    Kind.EXPR: {
        EXPR_SELECT: Kind.SELECT,
        EXPR_CALL: Kind.CALL,
        EXPR_LIST: Kind.LIST,
        EXPR_STRUCT: Kind.STRUCT,
        EXPR_COMPREHENSION: Kind.COMPREHENSION,
    },
    Kind.SELECT: {SELECT_OPERAND: Kind.EXPR},
    Kind.CALL: {CALL_TARGET: Kind.EXPR, CALL_ARGS: Kind.EXPR},
    Kind.LIST: {1: Kind.EXPR},
    Kind.STRUCT: {2: Kind.ENTRY},
    Kind.ENTRY: {3: Kind.EXPR, 4: Kind.EXPR},
    Kind.COMPREHENSION: {
        COMPREHENSION_RANGE: Kind.EXPR,
        COMPREHENSION_INIT: Kind.EXPR,
        COMPREHENSION_CONDITION: Kind.EXPR,
        COMPREHENSION_STEP: Kind.EXPR,
        COMPREHENSION_RESULT: Kind.EXPR,
    },
}

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_NODE: Final = -1  # not on the wire: a bytes field that was decoded into a Node

APPEND_BLOCK: Final = 128  # elements: about the root of the most iterations, where both copies cost the least
_ENGINE_IDS_END: Final = 1 << 20  # an expression of 4,096 characters has far fewer nodes


@dataclass(slots=True)
class Field:
    """One field of a message, in the order of the wire."""

    number: int
    wire: int
    value: "int | bytes | Node"


@dataclass(slots=True)
class Node:
    """One message of the tree."""

    kind: Kind
    fields: list[Field] = field(default_factory=list)

    def child(self, number: int) -> "Node | None":
        """Return the message in the field, or None when it is absent."""
        return next((f.value for f in self.fields if f.number == number and isinstance(f.value, Node)), None)

    def children(self) -> Iterator["Node"]:
        """Return the messages below this one, in order."""
        return (f.value for f in self.fields if isinstance(f.value, Node))

    def args(self) -> list["Node"]:
        """Return the arguments of a call, without its target."""
        return [f.value for f in self.fields if f.number == CALL_ARGS and isinstance(f.value, Node)]

    def raw(self, number: int) -> bytes | None:
        """Return the bytes of a field that is not part of the tree, or None when it is absent."""
        return next((f.value for f in self.fields if f.number == number and isinstance(f.value, bytes)), None)

    def text(self, number: int) -> str:
        """Return the text of a field, empty when it is absent."""
        return (self.raw(number) or b"").decode()

    @property
    def expr_id(self) -> int:
        """The id of an EXPR node."""
        return next((f.value for f in self.fields if f.number == EXPR_ID and isinstance(f.value, int)), 0)


def decode(serialized: bytes) -> Node:
    """Return the tree of a serialized expression: an ANY node."""
    root = Node(Kind.ANY)
    todo = [(root, serialized)]
    while todo:
        node, raw = todo.pop()
        kinds = _CHILDREN[node.kind]
        for one in _fields(raw):
            kind = kinds.get(one.number)
            if kind is not None and isinstance(one.value, bytes):
                raw_child, one.wire, one.value = one.value, _NODE, Node(kind)
                todo.append((one.value, raw_child))
            node.fields.append(one)
    return root


def encode(root: Node) -> bytes:
    """Return the wire form of a tree."""
    encoded: dict[int, bytes] = {}
    for node in reversed(list(walk(root))):  # children before their parents
        encoded[id(node)] = b"".join(_encode_field(one, encoded) for one in node.fields)
    return encoded[id(root)]


def walk(root: Node) -> Iterator[Node]:
    """Return every node, parents before their children."""
    todo = [root]
    while todo:
        node = todo.pop()
        yield node
        todo.extend(node.children())


def expression(root: Node) -> Node:
    """Return the EXPR node at the top of a decoded tree."""
    checked = root.child(ANY_VALUE)
    top = checked.child(CHECKED_EXPR) if checked else None
    if top is None:
        raise ValueError("not a checked expression")
    return top


def types(root: Node) -> dict[int, tuple[int, int]]:
    """Return the static type by expression id: its kind (TYPE_LIST, TYPE_MAP, …) and, of a number or text, which."""
    checked = root.child(ANY_VALUE)
    kinds: dict[int, tuple[int, int]] = {}
    for one in checked.fields if checked else ():
        if one.number == CHECKED_TYPES and isinstance(one.value, bytes):
            entry = {f.number: f.value for f in _fields(one.value)}
            expr_id, type_ = entry.get(1, 0), entry.get(2)
            if isinstance(expr_id, int) and isinstance(type_, bytes):
                kind = next(_fields(type_), Field(0, _VARINT, 0))
                kinds[expr_id] = kind.number, kind.value if isinstance(kind.value, int) else 0
    return kinds


def const_int(expr: Node) -> int | None:
    """Return the value of an EXPR that is an integer literal of 0 or more, else None."""
    const = expr.raw(EXPR_CONST)
    one = next(_fields(const), None) if const is not None else None
    is_int = one is not None and one.number == CONST_INT and isinstance(one.value, int) and one.value < 1 << 63
    return one.value if is_int and one and isinstance(one.value, int) else None


def function_of(expr: Node) -> str:
    """Return the function that an EXPR calls; empty when it is no call."""
    call = expr.child(EXPR_CALL)
    return call.text(CALL_FUNCTION) if call else ""


def makes_optional(node: Node) -> bool:
    """Whether a message gives an optional, or has an optional element: `optional.of`, `a.?b`, `[?x]`, `first()`."""
    if node.kind is Kind.CALL:
        name = node.text(CALL_FUNCTION)
        return name in _OPTIONAL_CALLS or "opt" in name
    optional = {Kind.LIST: LIST_OPTIONAL_INDICES, Kind.ENTRY: ENTRY_OPTIONAL}.get(node.kind)
    return any(one.number == optional for one in node.fields)


_OPTIONAL_CALLS: Final = frozenset(("_?._", "_[?_]", "first", "last"))


def const_length(expr: Node) -> int:
    """Return the bytes of an EXPR that is a literal."""
    return len(expr.raw(EXPR_CONST) or b"")


def const_string(expr: Node) -> str | None:
    """Return the text of an EXPR that is a string literal, else None."""
    const = expr.raw(EXPR_CONST)
    if const is None:
        return None
    one = next(_fields(const), None)
    return one.value.decode() if one and one.number == CONST_STRING and isinstance(one.value, bytes) else None


def ident_name(expr: Node) -> str | None:
    """Return the name of an EXPR that is an identifier, else None."""
    ident = expr.raw(EXPR_IDENT)
    if ident is None:
        return None
    one = next(_fields(ident), None)
    return one.value.decode() if one and isinstance(one.value, bytes) else ""


def become_ident(expr: Node, name: str) -> None:
    """Turn an EXPR into an identifier. It gets a new id, as the checker's reference is kept by id."""
    raw = name.encode()
    ident = b"\x0a" + _varint(len(raw)) + raw
    expr.fields = [Field(EXPR_ID, _VARINT, _ENGINE_IDS_END + expr.expr_id), Field(EXPR_IDENT, _BYTES, ident)]


def must_be_list(comprehension: Node) -> None:
    """Make the range of a comprehension fail unless it is a list: `range + []`, which no map has."""
    for one in comprehension.fields:
        if one.number == COMPREHENSION_RANGE and isinstance(one.value, Node):
            base = 2 * _ENGINE_IDS_END + 2 * one.value.expr_id
            empty = Node(Kind.EXPR, [Field(EXPR_ID, _VARINT, base), Field(EXPR_LIST, _BYTES, b"")])
            call = Node(
                Kind.CALL,
                [
                    Field(CALL_FUNCTION, _BYTES, b"_+_"),
                    Field(CALL_ARGS, _NODE, one.value),
                    Field(CALL_ARGS, _NODE, empty),
                ],
            )
            one.value = Node(Kind.EXPR, [Field(EXPR_ID, _VARINT, base + 1), Field(EXPR_CALL, _NODE, call)])


def appends_to(comprehension: Node) -> Node | None:
    """Return the EXPR `accumulator + [x]` of a `map` or `filter`; None when the comprehension builds no list."""
    init, step = comprehension.child(COMPREHENSION_INIT), comprehension.child(COMPREHENSION_STEP)
    result = comprehension.child(COMPREHENSION_RESULT)
    accumulator = comprehension.text(COMPREHENSION_ACCU)
    if init is None or step is None or result is None or not is_empty_list(init) or ident_name(result) != accumulator:
        return None
    call = step.child(EXPR_CALL)
    if call is not None and call.text(CALL_FUNCTION) == "_?_:_":
        step = call.args()[1]
        call = step.child(EXPR_CALL)
    is_append = call is not None and call.text(CALL_FUNCTION) == "_+_" and ident_name(call.args()[0]) == accumulator
    return step if is_append else None


def append_in_blocks(comprehension: Node, append: Node) -> None:
    """Let a comprehension gather its list in blocks: the engine copies the whole list for every element.

    The accumulator becomes `[done, block]`: an element goes to the block, and a full block to what is done. Copying
    10,000 elements one by one takes 1.6 GB and eight seconds, this way 35 MB and a tenth of a second.
    """
    make = _Maker(append.expr_id)
    accumulator = comprehension.text(COMPREHENSION_ACCU)
    call = append.child(EXPR_CALL)
    assert call is not None
    added = call.args()[1]

    def part(index: int) -> Node:
        return make.call("_[_]", make.ident(accumulator), make.integer(index))

    def is_full() -> Node:
        return make.call("_>=_", make.call("size", part(1)), make.integer(APPEND_BLOCK))

    done = make.call("_?_:_", is_full(), make.call("_+_", part(0), part(1)), part(0))
    block = make.call("_+_", make.call("_?_:_", is_full(), make.list(), part(1)), added)
    append.fields = make.list(done, block).fields
    for one in comprehension.fields:
        if one.number == COMPREHENSION_INIT:
            one.value = make.list(make.list(), make.list())
        elif one.number == COMPREHENSION_RESULT:
            one.value = make.call("_+_", part(0), part(1))


def is_empty_list(expr: Node) -> bool:
    """Whether an EXPR is the literal `[]`."""
    return any(f.number == EXPR_LIST and (f.value == b"" or _has_no_fields(f.value)) for f in expr.fields)


def _has_no_fields(value: "int | bytes | Node") -> bool:
    return isinstance(value, Node) and not value.fields


class _Maker:
    """Makes expressions with new ids, which belong to the one expression that they replace."""

    def __init__(self, replaced_id: int) -> None:
        self._next_id = 4 * _ENGINE_IDS_END + 64 * replaced_id

    def _expr(self, one: Field) -> Node:
        self._next_id += 1
        return Node(Kind.EXPR, [Field(EXPR_ID, _VARINT, self._next_id), one])

    def ident(self, name: str) -> Node:
        raw = name.encode()
        return self._expr(Field(EXPR_IDENT, _BYTES, b"\x0a" + _varint(len(raw)) + raw))

    def integer(self, value: int) -> Node:
        return self._expr(Field(EXPR_CONST, _BYTES, b"\x18" + _varint(value)))

    def list(self, *items: Node) -> Node:
        return self._expr(Field(EXPR_LIST, _NODE, Node(Kind.LIST, [Field(1, _NODE, one) for one in items])))

    def call(self, function: str, *args: Node) -> Node:
        fields = [Field(CALL_FUNCTION, _BYTES, function.encode()), *(Field(CALL_ARGS, _NODE, one) for one in args)]
        return self._expr(Field(EXPR_CALL, _NODE, Node(Kind.CALL, fields)))


def _fields(raw: bytes) -> Iterator[Field]:
    at, end = 0, len(raw)
    while at < end:
        tag, at = _read_varint(raw, at)
        number, wire = tag >> 3, tag & 7
        value: int | bytes
        if wire == _VARINT:
            value, at = _read_varint(raw, at)
        elif wire == _BYTES:
            length, at = _read_varint(raw, at)
            value, at = raw[at : at + length], at + length
        else:  # the tree has no other wire type than a double's
            value, at = raw[at : at + 8], at + 8
        yield Field(number, wire, value)


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _encode_field(one: Field, encoded: dict[int, bytes]) -> bytes:
    if one.wire == _VARINT and isinstance(one.value, int):
        return _varint(one.number << 3) + _varint(one.value)
    raw = encoded[id(one.value)] if isinstance(one.value, Node) else one.value
    assert isinstance(raw, bytes)
    if one.wire == _FIXED64:
        return _varint(one.number << 3 | _FIXED64) + raw
    return _varint(one.number << 3 | _BYTES) + _varint(len(raw)) + raw
