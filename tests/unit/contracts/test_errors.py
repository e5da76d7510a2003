"""What authors of handlers raise: what means a duration is taken, the rest is refused where it is made."""

from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from anabranch.shared.contracts.errors import RetryableError, StepError, TerminalError
from anabranch.shared.contracts.limits import MAX_ERROR_MESSAGE_CHARS, MAX_ERROR_TYPE_CHARS


@pytest.mark.parametrize(
    ("after", "seconds"),
    [
        (None, None), (0, 0.0), (2, 2.0), (1.5, 1.5), (timedelta(seconds=1, milliseconds=500), 1.5), ("1s", 1.0),
        ("1m30s", 90.0), ("500ms", 0.5), (Decimal("1.5"), 1.5), (Fraction(3, 2), 1.5), (timedelta(0), 0.0),
    ],
)  # fmt: skip
def test_whatever_means_a_duration_is_one(after: Any, seconds: float | None) -> None:
    """Seconds, a `timedelta`, or the text of the pipeline language."""
    assert RetryableError("later", after=after).after_s == seconds


@pytest.mark.parametrize(
    ("after", "error", "words"),
    [
        (-1, ValueError, "negative"), (timedelta(seconds=-1), ValueError, "negative"),
        (float("nan"), ValueError, "not a duration"), (float("inf"), ValueError, "not a duration"),
        (Decimal("NaN"), ValueError, "not a duration"), (Decimal("sNaN"), ValueError, "NaN"),
        (10**5000, ValueError, "longer than anything may wait"), (timedelta.max, ValueError, "longer than anything"),
        ("", ValueError, "not a duration"), ("soon", ValueError, "not a duration"),
        ("\udcff", ValueError, "not a duration"), (True, TypeError, "not bool"), ([], TypeError, "not list"),
        (b"1s", TypeError, "not bytes"), (1j, TypeError, "not complex"), (object(), TypeError, "not object"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_no_duration_is_refused_where_it_is_made(after: Any, error: type[Exception], words: str) -> None:
    """So the attempt fails with an error that says which argument was wrong."""
    with pytest.raises(error, match=words):
        RetryableError("later", after=after)


@pytest.mark.parametrize("kind", [TerminalError, RetryableError])
def test_an_error_type_that_is_no_text_is_refused_where_it_is_made(kind: Any) -> None:
    """A number is not a type, though HTTP calls it so."""
    with pytest.raises(TypeError, match="error_type is a text, not int"):
        kind("not found", error_type=404)
    assert kind("not found", error_type="NotFound").error_type == "NotFound"
    assert kind("not found").error_type == kind.__name__


def test_the_texts_of_a_steps_error_are_bounded_and_can_be_encoded() -> None:
    """Escaping makes a text longer, not longer than the limit."""
    error = StepError.of("\udcff" * 300, "caf\udce9.csv" + "\udcff" * 5000)
    assert error.message.startswith("caf\\udce9.csv")
    assert (len(error.type), len(error.message)) == (MAX_ERROR_TYPE_CHARS, MAX_ERROR_MESSAGE_CHARS)
    assert error.model_dump_json()
