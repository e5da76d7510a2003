"""How deep a JSON value is nested: one measure, and `limits.MAX_NESTING`, wherever a value enters.

A list or an object counts one level, what it holds counts from there: `1` has depth 0, `[]` has 1, `[{"a": []}]` has 3.
Nothing here recurses, so a hostile value cannot exhaust the stack.

The parsers and writers in use stop at 1,024 (orjson reads), 254 (orjson and pydantic write): all of them have room for
a value at the limit in the largest envelope. pydantic's own JSON parser stops at 200 and takes NaN, so nothing that
travels or is stored is read with it.
"""

from collections.abc import Collection, Iterable
from typing import Any, Final

from anabranch.shared.contracts.limits import MAX_NESTING

_HOLDS: Final = frozenset((dict, list, tuple))  # what parsers make, and pydantic of them
_FEW: Final = 8  # children that are gone through one by one


def is_too_deep(value: Any, limit: int = MAX_NESTING) -> bool:
    """Return whether a JSON value has more than `limit` levels of lists and objects."""
    level = [value] if type(value) in _HOLDS else []
    depth = 0
    while level:
        depth += 1
        if depth > limit:
            return True
        level = [child for each in level for child in _children(each) if type(child) in _HOLDS]
    return False


def holds_too_deep(value: Any, encoded: bytes, limit: int = MAX_NESTING) -> bool:
    """Return `is_too_deep(value, limit)` for a value whose JSON is `encoded`: few brackets answer it at once."""
    return encoded.count(b"[") + encoded.count(b"{") > limit and is_too_deep(value, limit)


def _children(value: Any) -> Iterable[Any]:
    if not value:
        return ()
    children: Collection[Any] = value.values() if type(value) is dict else value
    return () if len(children) > _FEW and _HOLDS.isdisjoint(map(type, children)) else children
