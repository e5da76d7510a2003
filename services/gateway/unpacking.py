"""Bodies that come packed: never more is unpacked than a body may have."""

import zlib
from typing import Final

from anabranch.shared.contracts.errors import AnabranchError

_GZIP: Final = 16 + zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS
_MAX_MEMBERS: Final = 64  # of one gzip body: a million empty ones would cost and bring nothing


class NotPackedError(AnabranchError):
    """The body is not what its encoding says, or ends too early."""


class Unpacking:
    """Unpacks one body as it comes: gzip, or deflate (RFC 9110) with zlib's frame or, as some send it, without."""

    def __init__(self, *, is_gzip: bool) -> None:
        self._is_gzip = is_gzip
        self._stream = zlib.decompressobj(_GZIP) if is_gzip else None
        self._head = b""
        self._members = 1

    def unpacked(self, chunk: bytes, room: int) -> bytes:
        """Return what is in a chunk, at most `room` bytes. Raises `NotPackedError`."""
        try:
            return self._unpacked(chunk, room)
        except zlib.error as error:
            raise NotPackedError(str(error)) from error

    def end(self) -> None:
        """Raise `NotPackedError` unless the body is whole."""
        if self._stream is None or not self._stream.eof:
            raise NotPackedError("it ends too early")

    def _unpacked(self, chunk: bytes, room: int) -> bytes:
        if self._stream is None:
            self._head += chunk
            if len(self._head) < 2:
                return b""
            chunk, self._head = self._head, b""
            self._stream = zlib.decompressobj(zlib.MAX_WBITS if _has_frame(chunk) else _RAW)
        out = bytearray()
        while chunk and len(out) < room:
            if self._stream.eof:
                self._next_member()
            out += self._stream.decompress(chunk, room - len(out))
            chunk = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
        return bytes(out)

    def _next_member(self) -> None:
        self._members += 1
        if not self._is_gzip or self._members > _MAX_MEMBERS:
            raise NotPackedError("there is more behind its end")
        self._stream = zlib.decompressobj(_GZIP)


def _has_frame(head: bytes) -> bool:
    """Return whether these are zlib's two bytes (RFC 1950 §2.2)."""
    return head[0] & 0x0F == 8 and (head[0] << 8 | head[1]) % 31 == 0
