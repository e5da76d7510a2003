"""How deep a JSON value is nested: one measure, and `limits.MAX_NESTING`, wherever a value enters.

A list or an object counts one level, what it holds counts from there: `1` has depth 0, `[]` has 1, `[{"a": []}]` has 3.
Nothing here recurses, so a hostile value cannot exhaust the stack.

The parsers and writers in use stop at 1,024 (orjson reads), 254 (orjson and pydantic write): all of them have room for
a value at the limit in the largest envelope. pydantic's own JSON parser stops at 200 and takes NaN, so nothing that
travels or is stored is read with it.
"""

import re
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


_TEXTS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_AS_LISTS: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def holds_too_deep(value: Any, encoded: bytes, limit: int = MAX_NESTING) -> bool:
    """Return `is_too_deep(value, limit)` for a value within the JSON `encoded`: few brackets answer it at once."""
    if len(encoded) <= 2 * limit:  # a level takes two brackets
        return False
    return encoded.count(b"[") + encoded.count(b"{") > limit and is_too_deep(value, limit)


def is_text_too_deep(encoded: bytes, limit: int = MAX_NESTING) -> bool:
    """Return `is_too_deep` of the value whose JSON, which must be valid, is `encoded`.

    Few brackets answer it at once. Else what holds nothing is taken out of the text, level by level: a walk through the
    value takes ten times as long.
    """
    if len(encoded) <= 2 * limit or encoded.count(b"{") + encoded.count(b"[") <= limit:  # a level takes two
        return False
    brackets = _TEXTS.sub(b"", encoded).translate(_AS_LISTS, _NO_BRACKETS)
    for _ in range(limit):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def _children(value: Any) -> Iterable[Any]:
    if not value:
        return ()
    children: Collection[Any] = value.values() if type(value) is dict else value
    return () if len(children) > _FEW and _HOLDS.isdisjoint(map(type, children)) else children
