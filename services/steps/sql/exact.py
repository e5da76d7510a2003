"""Values of DuckDB as JSON that says exactly the same: what JSON has no number for is text.

Python's types do not hold all of it: `infinity` becomes a date of the year 9999, the months of an interval become days,
a time zone needs a package. So such columns are cast to text by DuckDB, wherever they lie in lists and structs.
"""

import base64
import math
import re
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from types import NoneType
from typing import Any, Final

from anabranch.shared.contracts.limits import MAX_INTEGER

_AS_IT_IS: Final = frozenset(
    ("boolean", "tinyint", "smallint", "integer", "bigint", "utinyint", "usmallint", "uinteger", "ubigint", "hugeint",
     "uhugeint", "float", "double", "decimal", "varchar", "blob", "null", "sqlnull", '"null"')
)  # fmt: skip
_DATED: Final = re.compile(r"(\d{4,}-\d\d-\d\d) (\d\d:.*)", re.DOTALL)
_SPAN: Final = re.compile(
    r"(?:(-?\d+) years?)?\s*(?:(-?\d+) months?)?\s*(?:(-?\d+) days?)?\s*(?:(-?)(\d+):(\d+):(\d+)(\.\d+)?)?"
)


def text_type(kind: Any) -> str:  # noqa: PLR0911  a table of types
    """Return the SQL type that a column is cast to so that Python loses nothing of it; its own if it need not be."""
    match kind.id:
        case "list":
            return f"{text_type(kind.children[0][1])}[]"
        case "array":
            return f"{text_type(kind.children[0][1])}[{kind.children[1][1]}]"
        case "struct" | "tuple":
            if not kind.children[0][0]:  # `row(1, 2)`: its fields have no names
                return f"TUPLE({', '.join(text_type(inner) for _, inner in kind.children)})"
            fields = ", ".join(f"{quoted(name)} {text_type(inner)}" for name, inner in kind.children)
            return f"STRUCT({fields})"
        case "map":
            return f"MAP(VARCHAR, {text_type(kind.children[1][1])})"
        case "union":
            members = ", ".join(f"{quoted(name)} {text_type(inner)}" for name, inner in kind.children if name)
            return f"UNION({members})"
        case plain:
            return str(kind) if plain in _AS_IT_IS else "VARCHAR"


def converter(kind: Any) -> Callable[[Any], Any]:
    """Return what makes JSON of a column's values, cast as `text_type` says."""
    make = _maker(kind)
    return lambda value: None if value is None else make(value)


def _maker(kind: Any) -> Callable[[Any], Any]:
    match kind.id:
        case "interval":
            return iso_duration
        case "date" | "timestamp" | "timestamp_s" | "timestamp_ms" | "timestamp_ns" | "timestamp with time zone":
            return partial(_DATED.sub, r"\1T\2")
        case "list" | "array":
            item = converter(kind.children[0][1])
            return lambda value: [item(each) for each in value]
        case "struct" | "tuple":
            fields = [converter(inner) for _, inner in kind.children]
            return partial(_struct, fields)
        case "map":
            held = converter(kind.children[1][1])
            return lambda value: {key: held(each) for key, each in value.items()}
        case _:
            return plain_json


def _struct(fields: list[Callable[[Any], Any]], value: Any) -> Any:
    if isinstance(value, dict):
        return {name: make(each) for make, (name, each) in zip(fields, value.items(), strict=True)}
    return [make(each) for make, each in zip(fields, value, strict=True)]  # its fields have no names


def iso_duration(text: str) -> str:
    """Return an interval, as DuckDB writes it, as ISO 8601: months, days and time stay apart, each with its sign."""
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        return text
    years, months, days, sign, hours, minutes, seconds, fraction = match.groups()
    date = "".join(f"{number}{unit}" for number, unit in ((years, "Y"), (months, "M"), (days, "D")) if number)
    clock = ((hours, "H"), (minutes, "M"))
    time = "".join(f"{sign}{int(number)}{unit}" for number, unit in clock if number and int(number))
    rest = f"{int(seconds or 0)}{(fraction or '').rstrip('0').rstrip('.')}"
    if rest != "0":
        time += f"{sign}{rest}S"
    return f"P{date}{f'T{time}' if time else ''}" if date or time else "PT0S"


def quoted(name: str) -> str:
    """Return a name as SQL takes it, whatever it is."""
    return '"' + name.replace('"', '""') + '"'


def _decimal(value: Decimal) -> Any:
    """Return a number if one says the same, else the text."""
    if value == value.to_integral_value() and abs(value) <= MAX_INTEGER:
        return int(value)
    number = float(value)
    return number if Decimal(repr(number)) == value else format(value, "f")


_CONVERSIONS: Final[tuple[tuple[Any, Callable[[Any], Any]], ...]] = (
    (NoneType | bool | str, lambda value: value),
    (int, lambda value: value if abs(value) <= MAX_INTEGER else str(value)),
    (float, lambda value: value if math.isfinite(value) else _named(value)),
    (Decimal, _decimal),
    (bytes, lambda value: base64.b64encode(value).decode()),
    (list | tuple, lambda value: [plain_json(item) for item in value]),
    (dict, lambda value: {str(key): plain_json(item) for key, item in value.items()}),
)


def _named(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def plain_json(value: Any) -> Any:
    """Return a value of Python's as JSON."""
    for kinds, convert in _CONVERSIONS:
        if isinstance(value, kinds):
            return convert(value)
    return str(value)
