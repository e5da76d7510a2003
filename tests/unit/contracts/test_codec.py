"""Messages to records and back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import Undecodable, decode, encode, header, trace_id_or
from anabranch.shared.contracts.dead_letters import Origin, dead_letter, letter_key
from anabranch.shared.contracts.limits import MAX_MESSAGE_BYTES

ID = {"message_id": "r/a/1", "source": "/s", "at_ms": 1_770_000_000_123, "trace_id": "0" * 31 + "1"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=12,
)  # fmt: skip


@given(json_values)
def test_output_comes_back_as_it_was(output: object) -> None:
    """Nulls in maps and lists too, in the order they had."""
    message = m.AttemptSucceeded(run_id="r", step="a", attempt=1, output=output)
    back = decode(m.INBOX, encode(message, **ID).value)  # type: ignore[arg-type]
    assert isinstance(back, m.AttemptSucceeded)
    assert json.dumps(back.output) == json.dumps(output)


def test_headers_are_cloud_events_in_binary_mode_and_a_traceparent() -> None:
    """CloudEvents 1.0 and W3C Trace Context; nothing of the host that sends."""
    record = encode(m.CancelRun(run_id="r"), **ID)  # type: ignore[arg-type]
    plain = {name: value.decode() for name, value in record.headers if name != "traceparent"}
    assert plain == {
        "ce_id": "r/a/1", "ce_type": "CancelRun", "ce_source": "/s", "ce_time": "2026-02-02T02:40:00.123000Z",
        "ce_specversion": "1.0",
    }  # fmt: skip
    version, trace, span, flags = dict(record.headers)["traceparent"].decode().split("-")
    assert (version, trace, len(span), flags) == ("00", "0" * 31 + "1", 16, "01")
    assert encode(m.CancelRun(run_id="r"), **ID) == record  # type: ignore[arg-type]


def test_type_in_the_headers_is_the_type_in_the_value() -> None:
    """Who waits for failed runs finds them by one header, without parsing the value."""
    event = m.RunEnded(type="RunFailed", run_id="r", seq=1, at="", status="failed", started_at="")
    assert header(encode(event, **ID).headers, "ce_type") == "RunFailed"  # type: ignore[arg-type]


def test_a_dead_letter_of_a_record_without_key_and_value_can_be_read() -> None:
    """A tombstone is a record like any other: its letter has no key and no value, and says so."""
    origin = Origin("pipelines.inbox", 0, 1, 1_770_000_000_123, None, None, ())
    letter = dead_letter(origin, service="s", source="/s", error_type="Undecodable", reason="the record has no value")
    read = decode(m.DEAD_LETTERS, letter.value)
    assert isinstance(read, m.DeadLetter)
    assert (read.key_base64, read.value_base64) == (None, None)


def test_a_dead_letter_fits_into_a_record_whatever_the_key_the_headers_and_the_words_are() -> None:
    """A letter that cannot be written would end its process, and again after each restart."""
    large, odd = b"k" * 3_000_000, "\ud800" * 9000
    origin = Origin("pipelines.inbox", 0, 1, 1_770_000_000_123, large, large, ((odd, large), ("\udcff", None)))
    letter = dead_letter(origin, service="s", source="/s", error_type="X", reason=odd, traceback=odd)
    assert len(letter.value) + len(letter_key(large) or b"") < MAX_MESSAGE_BYTES
    assert isinstance(decode(m.DEAD_LETTERS, letter.value), m.DeadLetter)


@pytest.mark.parametrize("at_ms", [-1, 253_402_300_800_000, 2**80])
def test_a_command_of_a_time_that_cannot_be_written_is_none(at_ms: int) -> None:
    """Its answer would carry that time in its headers: it is put aside instead of ending the worker."""
    command = {"type": "RunStep", "run_id": "r", "step": "a", "attempt": 1, "uses": "x", "tenant": "t", "timeout_s": 1}
    assert isinstance(decode(m.COMMANDS, json.dumps({**command, "at_ms": at_ms}).encode()), Undecodable)
    last = decode(m.COMMANDS, json.dumps({**command, "at_ms": 253_402_300_799_999}).encode())
    assert isinstance(last, m.RunStep)
    assert encode(last, message_id="r/a/1", source="/s", at_ms=last.at_ms, trace_id="")


@pytest.mark.parametrize(
    "value",
    [None, b"", b"{", b"[]", b"\xff\xfe", b'{"type":"Nope"}', b"[" * 5000, b'{"type":"CancelRun"}',
     b'{"type":"AttemptSucceeded","run_id":"r","step":"a","attempt":1,"output":NaN}',
     b'{"type":"AttemptSucceeded","run_id":"r","step":"a","attempt":1,"output":[1e400]}'],
)  # fmt: skip
def test_record_that_cannot_be_decoded_keeps_its_bytes_and_says_why(value: bytes | None) -> None:
    """Never an exception in a consume loop; what is not JSON by RFC 8259 would not survive a restore."""
    undecodable = decode(m.INBOX, value)
    assert isinstance(undecodable, Undecodable)
    assert undecodable.value == value
    assert undecodable.reason


def test_header_that_is_absent_null_or_not_text_is_none() -> None:
    """Kafka allows a header without a value."""
    headers = (("a", b"1"), ("b", None), ("c", b"\xff"))
    assert [header(headers, name) for name in "abcd"] == ["1", None, None, None]


def test_trace_is_the_clients_or_made_of_the_run_id() -> None:
    """32 hex digits either way."""
    assert trace_id_or("f" * 32, "r") == "f" * 32
    assert trace_id_or("", "0192f0c3-0000-7000-8000-000000000001") == "0192f0c3000070008000000000000001"
