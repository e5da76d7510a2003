"""Dead letters: a record that could not be handled, with where it stood, its bytes, and why."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from anabranch.shared.contracts.codec import Encoded, encode
from anabranch.shared.contracts.limits import KIB, MAX_ERROR_MESSAGE_CHARS, MAX_MESSAGE_BYTES
from anabranch.shared.contracts.messages import DeadLetter
from anabranch.shared.contracts.text import writable

_VALUE_BYTES: Final = MAX_MESSAGE_BYTES * 3 // 4 * 7 // 8  # as base64, with the envelope, within a message
_KEY_BYTES: Final = 4 * KIB  # many times what a key of ours has
_TRACEBACK_CHARS: Final = 8000
_HEADERS_CHARS: Final = 16_000


@dataclass(frozen=True, slots=True)
class Origin:
    """A record as it stood on its topic. Clients may send headers without a value.

    Of a compacted topic's record the key tells which one it is; then its offset, which is not known, is -1.
    """

    topic: str
    partition: int
    offset: int
    at_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()

    @property
    def place(self) -> str:
        """Where it stood, as `topic/partition/offset` or, without an offset, with its key: the letter's id."""
        key = letter_key(self.key)
        which = str(self.offset) if self.offset >= 0 or key is None else key.decode(errors="replace")
        return f"{self.topic}/{self.partition}/{which}"


def dead_letter(
    origin: Origin, *, service: str, source: str, error_type: str, reason: str, traceback: str | None = None
) -> Encoded:
    """Return the dead letter of a record; of a key or value too large, its beginning, and the reason says so."""
    value, reason = origin.value, writable(reason)
    if origin.key is not None and len(origin.key) > _KEY_BYTES:
        reason = f"{reason} (the first {_KEY_BYTES} of {len(origin.key)} bytes of the key are kept)"
    if value is not None and len(value) > _VALUE_BYTES:
        reason = f"{reason} (the first {_VALUE_BYTES} of {len(value)} bytes are kept)"
        value = value[:_VALUE_BYTES]
    letter = DeadLetter(
        topic=origin.topic, partition=origin.partition, offset=origin.offset, at_ms=origin.at_ms,
        key_base64=_base64(letter_key(origin.key)), value_base64=_base64(value), headers=_text_of(origin.headers),
        service=service, error_type=error_type, error_message=reason[-MAX_ERROR_MESSAGE_CHARS:],
        traceback=None if traceback is None else writable(traceback[-_TRACEBACK_CHARS:]),
    )  # fmt: skip
    trace = blake2b(origin.place.encode(), digest_size=16).hexdigest()
    return encode(letter, message_id=origin.place, source=source, at_ms=origin.at_ms, trace_id=trace)


def letter_key(key: bytes | None) -> bytes | None:
    """Return the key under which the letter of a record with this key is kept: its beginning, if it is a large one."""
    return None if key is None else key[:_KEY_BYTES]


def _text_of(headers: Sequence[tuple[str, bytes | None]]) -> dict[str, str]:
    kept: dict[str, str] = {}
    room = _HEADERS_CHARS
    for name, value in headers:
        text = "" if value is None else value.decode(errors="replace")
        room -= len(name) + len(text)
        if room < 0:
            break
        kept[writable(name)] = text
    return kept


def _base64(raw: bytes | None) -> str | None:
    return None if raw is None else b64encode(raw).decode()
