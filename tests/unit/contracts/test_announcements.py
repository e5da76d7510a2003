"""What may be announced, and what is passed over."""

from typing import Any

import orjson
import pytest

from anabranch.shared.contracts.announcements import BadAnnouncement, read_announcement
from anabranch.shared.contracts.limits import MAX_ANNOUNCEMENT_BYTES


def an_announcement(**changes: Any) -> bytes:
    """Return the value of a record that announces the type `say`."""
    whole = {"type": "StepTypeAnnounced", "name": "say", "version": "1", "input_schema": {}, "output_schema": {}}
    return orjson.dumps(whole | changes)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


def test_announcement_of_the_type_that_its_key_names_is_taken() -> None:
    """Unknown fields are tolerated, as everywhere."""
    assert read_announcement(b"say", an_announcement(more=1)).name == "say"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (b"other", an_announcement(), "its key is"),
        (None, an_announcement(), "its key is"),
        (b"say\xff", an_announcement(), "its key is"),
        (b"say", b"{", "not JSON"),
        (b"say", b"[" * 200_000, "not JSON"),
        (b"say", b"[]", "value"),
        (b"say", an_announcement(input_schema=True), "input_schema"),
        (b"say", an_announcement(description="x" * MAX_ANNOUNCEMENT_BYTES), "bytes"),
        (b"say", an_announcement(description="x" * 5_000), "description"),
        (b"say", an_announcement(version="x" * 64), "version"),
        (b"A b", an_announcement(name="A b"), "no step type can be named"),
        (b"x" * 64, an_announcement(name="x" * 64), "no step type can be named"),
        (b"../x", an_announcement(name="../x"), "no step type can be named"),
        (b"transform", an_announcement(name="transform"), "of the engine itself"),
        (b"approval", an_announcement(name="approval"), "of the engine itself"),
        (b"say", an_announcement(input_schema={"type": "nothing"}), "its input schema is broken"),
        (b"say", an_announcement(output_schema={"pattern": "("}), "its output schema is broken"),
        (b"say", an_announcement(input_schema={"$ref": "http://example.com/x"}), "its input schema is broken"),
        (b"say", an_announcement(input_schema=nested(65)), "nested"),
        (b"say", an_announcement(output_schema=nested(200)), "nested"),
    ],
)
def test_what_is_none_is_refused_with_the_reason(key: bytes | None, value: bytes, words: str) -> None:
    """Whoever wrote it: the reader goes on."""
    with pytest.raises(BadAnnouncement, match=words):
        read_announcement(key, value)
