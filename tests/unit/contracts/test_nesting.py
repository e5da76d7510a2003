"""Depth is counted in levels of lists and objects, without recursion."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.shared.contracts.limits import MAX_NESTING
from anabranch.shared.contracts.nesting import is_text_too_deep, is_too_deep


def nested(levels: int, leaf: Any = 1) -> Any:
    """Return a value of `levels` levels, lists and objects in turn."""
    for level in range(levels):
        leaf = [leaf] if level % 2 else {"a": leaf}
    return leaf


@pytest.mark.parametrize("levels", [0, 1, 2, MAX_NESTING])
def test_what_is_within_the_limit_passes(levels: int) -> None:
    """A value of exactly the limit is not too deep."""
    assert not is_too_deep(nested(levels))


@pytest.mark.parametrize("levels", [MAX_NESTING + 1, 254, 100_000])
def test_what_is_over_the_limit_is_too_deep(levels: int) -> None:
    """Also where every parser and every recursion would have ended the process."""
    assert is_too_deep(nested(levels))


def test_an_empty_container_is_a_level() -> None:
    """`[[]]` has two levels, as a parser counts it."""
    assert is_too_deep([[]], limit=1)
    assert not is_too_deep([[]], limit=2)


def test_one_deep_branch_among_many_flat_ones_is_found() -> None:
    """The deepest branch counts."""
    assert is_too_deep({"flat": list(range(1000)), "deep": nested(MAX_NESTING)})


TEXTS = st.text(alphabet='[]{}"\\\\a,\n')
VALUES = st.recursive(
    TEXTS | st.none(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)
)


@given(VALUES, st.integers(0, 8))
def test_the_text_of_a_value_is_as_deep_as_the_value(value: Any, limit: int) -> None:
    """Whatever brackets and quotes stand in its texts."""
    assert is_text_too_deep(orjson.dumps(value), limit) == is_too_deep(value, limit)


@pytest.mark.parametrize("levels", [MAX_NESTING, MAX_NESTING + 1])
def test_the_text_of_a_value_at_the_limit_is_not_too_deep(levels: int) -> None:
    """As the value itself."""
    assert is_text_too_deep(orjson.dumps(nested(levels))) == (levels > MAX_NESTING)
