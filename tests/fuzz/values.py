"""Values and bytes that somebody may send: deep, wide, long, odd. A case says how they are made,
so that it stays small."""

import json
from dataclasses import dataclass
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st


@dataclass(frozen=True)
class Deep:
    """A value inside of so many lists or objects."""

    depth: int
    shape: str  # "list" or "object"
    leaf: Any


@dataclass(frozen=True)
class Many:
    """A list of, or an object with, so many of the same value."""

    count: int
    shape: str
    each: Any


@dataclass(frozen=True)
class Long:
    """A text so many times."""

    count: int
    unit: str


# Around the limits that are ours, Python's, orjson's and pydantic's.
DEPTHS = (1, 3, 31, 59, 61, 62, 63, 64, 65, 66, 127, 128, 198, 199, 200, 201, 252, 253, 254, 255, 256, 1023, 1025, 9999)
COUNTS = (0, 1, 2, 33, 101, 257, 1_000, 10_001, 40_000)
LENGTHS = (256, 257, 4_097, 65_536, 262_145, 1_048_576, 1_100_000)

TEXTS = (
    "",
    "a",
    "x y",
    "ü",
    "€",
    "💥",
    "\x00",
    "\ud800",
    "caf\udce9.csv",
    "\u2028",
    "\ufeff",
    "..",
    "/",
    "a/b",
    "~1",
    ".submission",
    "_checkpoint",
    "null",
    "1e999",
    "NaN",
    "${{ inputs.n }}",
    "$${{",
    "${{",
    "__proto__",
    "type",
    "\r\n",
    "İ",
    "ﬃ",
    "-1s",
    "9" * 400,
)
NUMBERS = (
    0,
    1,
    -1,
    255,
    2**31,
    2**53,
    2**53 + 1,
    2**63 - 1,
    2**63,
    -(2**63),
    -(2**63) - 1,
    2**64,
    10**30,
    10**400,
    0.1,
    -0.0,
    1e308,
    5e-324,
    float("inf"),
    float("-inf"),
    float("nan"),
    1e22,
)

scalars = st.one_of(
    st.sampled_from((None, True, False)),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.integers(),
    st.text(max_size=12),
)
plain = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(TEXTS), st.text(max_size=5)), inner, max_size=4),
    ),
    max_leaves=8,
)
shapes = st.sampled_from(("list", "object"))
large = st.one_of(
    st.builds(Deep, st.sampled_from(DEPTHS), shapes, scalars),
    st.builds(Many, st.sampled_from(COUNTS), shapes, scalars),
    st.builds(Long, st.sampled_from(LENGTHS), st.sampled_from(("x", "ü", '"', "\x00", "💥", "\\"))),
    st.builds(Deep, st.integers(1, 70), shapes, st.builds(Many, st.sampled_from(COUNTS[:6]), shapes, scalars)),
    st.builds(Many, st.sampled_from(COUNTS[:5]), shapes, st.builds(Deep, st.integers(1, 70), shapes, scalars)),
)
values = st.one_of(
    plain, plain, large, st.dictionaries(st.sampled_from(("value", "a", "b")), large, min_size=1, max_size=2)
)


def as_python(value: Any) -> Any:
    """Return the value that a case stands for."""
    match value:
        case Deep(depth, shape, leaf):
            made = as_python(leaf)
            for _ in range(depth):
                made = [made] if shape == "list" else {"d": made}
            return made
        case Many(count, shape, each):
            one = as_python(each)
            return [one] * count if shape == "list" else {f"k{number}": one for number in range(count)}
        case Long(count, unit):
            return unit * count
        case dict():
            return {name: as_python(inner) for name, inner in value.items()}
        case list() | tuple():
            return [as_python(inner) for inner in value]
        case _:
            return value


def as_json(value: Any) -> str:
    """Return it as JSON text, deeper than any writer goes, with NaN and lone surrogates (escaped) as they come."""
    match value:
        case Deep(depth, shape, leaf):
            opening, closing = ("[", "]") if shape == "list" else ('{"d":', "}")
            return opening * depth + as_json(leaf) + closing * depth
        case Many(count, shape, each):
            one = as_json(each)
            if shape == "list":
                return "[" + ",".join([one] * count) + "]"
            return "{" + ",".join(f'"k{number}":{one}' for number in range(count)) + "}"
        case Long(count, unit):
            return json.dumps(unit * count)
        case dict():
            return "{" + ",".join(f"{json.dumps(name)}:{as_json(inner)}" for name, inner in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(as_json, value)) + "]"
        case int() if not isinstance(value, bool):
            return f"{value:d}"
        case _:
            return json.dumps(value)


def weight(value: Any) -> int:
    """Return about how many bytes of JSON it is, without writing it."""
    match value:
        case Deep(depth, _, leaf):
            return 6 * depth + weight(leaf)
        case Many(count, _, each):
            return count * (8 + weight(each))
        case Long(count, unit):
            return count * 6 * len(unit)
        case dict():
            return sum(len(name) + 4 + weight(inner) for name, inner in value.items())
        case list() | tuple():
            return sum(1 + weight(inner) for inner in value)
        case str():
            return 6 * len(value)
        case _:
            return 8


MAX_WEIGHT = 16 * 1024 * 1024  # several times what anything of ours may weigh


# --- what is done to a document that was right --------------------------------------------------------------------


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    places = [at]
    if isinstance(value, dict):
        for name, inner in value.items():
            places += _places(inner, (*at, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            places += _places(inner, (*at, number))
    return places


def replaced(value: Any, at: tuple[Any, ...], by: Any) -> Any:
    """Return the document with another value at a place."""
    if not at:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = replaced(value[at[0]], at[1:], by)
    return copy


@st.composite
def spoilt(draw: st.DrawFn, documents: st.SearchStrategy[Any], most: int = 2) -> Any:
    """Draw a document with up to so many values of it replaced by odd ones, or with keys that nobody knows."""
    document = draw(documents)
    for _ in range(draw(st.integers(0, most))):
        places = _places(document)
        at = places[draw(st.integers(0, len(places) - 1))]
        by = draw(values)
        if draw(st.integers(0, 5)) == 0:
            name = draw(st.sampled_from(TEXTS))
            holder = document
            for part in at:
                holder = holder[part]
            by = {**holder, name: by} if isinstance(holder, dict) else by
        document = replaced(document, at, by)
    assume(weight(document) <= MAX_WEIGHT)
    return document


@dataclass(frozen=True)
class Wire:
    """A document as bytes, and what happened to the bytes: (what, where in per mille, with what)."""

    document: Any
    harm: tuple[tuple[str, int, bytes], ...] = ()

    @property
    def raw(self) -> bytes:
        """The bytes."""
        raw = as_json(self.document).encode("utf-8", "surrogatepass")
        for what, per_mille, by in self.harm:
            at = len(raw) * per_mille // 1000
            match what:
                case "cut":
                    raw = raw[:at]
                case "insert":
                    raw = raw[:at] + by + raw[at:]
                case "overwrite":
                    raw = raw[:at] + by + raw[at + len(by) :]
                case "repeat":
                    raw = raw[:at] + raw[at:] * 2
        return raw


_HARM = st.tuples(
    st.sampled_from(("cut", "insert", "overwrite", "repeat")),
    st.integers(0, 1000),
    st.one_of(
        st.binary(min_size=1, max_size=6),
        st.sampled_from((b'"', b"{", b"]", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"1e999", b",")),
    ),
)


def wires(documents: st.SearchStrategy[Any], most: int = 2) -> st.SearchStrategy[Wire]:
    """Draw documents, spoilt ones among them, as bytes, harmed ones among them."""
    harms = st.one_of(st.just(()), st.just(()), st.lists(_HARM, min_size=1, max_size=3).map(tuple))
    return st.builds(Wire, spoilt(documents, most), harms)
