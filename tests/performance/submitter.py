"""Submits runs over HTTP at little cost: it shares the machine with what it measures.

Raw protocols on keep-alive connections, prebuilt bytes, no future per request: some 30 µs each.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final, Self, cast
from urllib.parse import urlsplit

import orjson

_ACCEPTED: Final = frozenset({b"200", b"202"})
_COME_AGAIN: Final = frozenset({b"502", b"503"})
_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"
_RETRY_AFTER_S: Final = 1.0


class Refused(Exception):
    """The gateway answered neither that it accepted a run nor that it would later."""


def request(
    definition: bytes, inputs: bytes = b"{}", key: str | None = None, query: bytes = b"", api_key: str | None = None
) -> bytes:
    """Return a submission as it goes over the wire."""
    body = b'{"definition":%b,"inputs":%b}' % (definition, inputs)
    key_line = b"" if key is None else b"Idempotency-Key: %b\r\n" % key.encode()
    key_line += b"" if api_key is None else b"Authorization: Bearer %b\r\n" % api_key.encode()
    head = (
        b"POST /v1/runs%b HTTP/1.1\r\nHost: anabranch\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n"
    )
    return head % (query, key_line, len(body)) + body


def definition_bytes(definition: Mapping[str, Any]) -> bytes:
    """Return a definition as it is put into requests."""
    return orjson.dumps(definition)


class Submitter:
    """A number of connections to the gateway; what is submitted goes to whichever is free."""

    def __init__(self, url: str, connections: int = 64) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._address = (parts.hostname, parts.port or 80)
        self._count = connections
        self._connections: list[_Connection] = []
        self._waiting: deque[bytes] = deque()
        self._free: list[_Connection] = []
        self._open = 0
        self._done: asyncio.Future[None] | None = None
        self.accepted: list[str] = []
        self.took_s: list[float] = []
        self.refused = 0

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in list(self._connections):
            connection.close()

    async def submit(self, requests: Iterable[bytes]) -> list[str]:
        """Submit all; return the ids of the runs when all are answered. One call at a time.

        `took_s` then says of each how long its answer took.
        """
        await self._connect()
        self.accepted, self.took_s = [], []
        self._waiting.extend(requests)
        self._open = len(self._waiting)
        self._done = asyncio.get_running_loop().create_future()
        while self._free and self._waiting:
            self._free.pop().send(self._waiting.popleft())
        await self._done
        return self.accepted

    async def _connect(self) -> None:
        """Open what is missing: the gateway closes a connection that has been idle for a while."""
        loop = asyncio.get_running_loop()
        while len(self._connections) < self._count:
            _, connection = await loop.create_connection(lambda: _Connection(self), *self._address)
            self._connections.append(connection)
            self._free.append(connection)

    def closed(self, connection: "_Connection", why: str) -> None:
        """The gateway has closed a connection; while it had an answer to give, that is the end."""
        self._connections.remove(connection)
        if connection in self._free:
            self._free.remove(connection)
        else:
            self.lost(why)

    def answered(self, connection: "_Connection", sent: bytes, status: bytes, body: bytes) -> None:
        """A connection has an answer, and is free."""
        if status in _ACCEPTED:
            self.accepted.append(orjson.loads(body)["id"])
            self.took_s.append(time.perf_counter() - connection.sent_at_s)
            self._open -= 1
        elif status in _COME_AGAIN:
            self.refused += 1
            asyncio.get_running_loop().call_later(_RETRY_AFTER_S, self._again, sent)
        else:
            self.lost(f"{status.decode()}: {body[:2000].decode(errors='replace')}")
            return
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._free.append(connection)
        if not self._open and self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _again(self, sent: bytes) -> None:
        if self._free:
            self._free.pop().send(sent)
        else:
            self._waiting.append(sent)

    def lost(self, why: str) -> None:
        """It cannot go on."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(Refused(why))


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, submitter: Submitter) -> None:
        self._submitter = submitter
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._sent = b""
        self.sent_at_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's

    def connection_lost(self, exc: Exception | None) -> None:
        self._submitter.closed(self, f"the gateway closed a connection: {exc!r}")

    def send(self, request: bytes) -> None:
        assert self._transport is not None
        self._sent = request
        self.sent_at_s = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(_END)
        if end < 0:
            return
        length = _length_of(self._received[:end])
        body = self._received[end + len(_END) :]
        if len(body) >= length:
            status, self._received = self._received[9:12], b""
            self._submitter.answered(self, self._sent, status, body)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _length_of(head: bytes) -> int:
    lowered = head.lower()
    begin = lowered.find(_LENGTH) + len(_LENGTH)
    return int(lowered[begin:].partition(b"\r\n")[0])
