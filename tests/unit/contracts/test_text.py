"""Every text can be written once `writable` has seen it."""

from hypothesis import given
from hypothesis import strategies as st

from anabranch.shared.contracts.text import writable


def test_a_lone_surrogate_is_shown_escaped() -> None:
    """A file name that is not UTF-8 stays recognisable."""
    assert writable("caf\udce9.csv") == r"caf\udce9.csv"


@given(st.text(st.characters(codec=None)))
def test_any_text_can_be_encoded_afterwards(text: str) -> None:
    """And what could be before is not changed."""
    writable(text).encode()


@given(st.text())
def test_ordinary_text_is_not_changed(text: str) -> None:
    """Umlauts, emoji and NUL are ordinary."""
    assert writable(text) == text
