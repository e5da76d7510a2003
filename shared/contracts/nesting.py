"""How deep a JSON value is nested: one measure, and `limits.MAX_NESTING`, wherever a value enters.

A list or an object counts one level, what it holds counts from there: `1` has depth 0, `[]` has 1, `[{"a": []}]` has 3.
Nothing here recurses, so a hostile value cannot exhaust the stack.
"""

from collections.abc import Iterable
from typing import Any

from anabranch.shared.contracts.limits import MAX_NESTING


def is_too_deep(value: Any, limit: int = MAX_NESTING) -> bool:
    """Return whether a JSON value has more than `limit` levels of lists and objects."""
    level = [value] if isinstance(value, dict | list | tuple) else []
    depth = 0
    while level:
        depth += 1
        if depth > limit:
            return True
        level = [child for each in level for child in _children(each) if isinstance(child, dict | list | tuple)]
    return False


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
