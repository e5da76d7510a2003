"""The HTTP listener: what strangers can do to a connection before anybody knows what they want.

aiohttp's own connection is made stricter and more polite: a head has so much time and so many bytes; there are so many
connections, of one address and in all; with TLS, a handshake has as much time, and there are as many at once; what its
parser refuses is answered in the application's way, in HTTP/1.1; a client that ends its half after a whole request is
answered.
"""

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, cast

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_writer import StreamWriter
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDict, CIMultiDictProxy

from anabranch.shared.contracts.limits import MAX_HEAD_BYTES, MAX_HEAD_LINE_BYTES, MAX_HEADERS
from anabranch.shared.runtime.tls import ServerCertificate

_LINGER_S: Final = 1.0  # for a client that is sent away: it has to read why before its connection is reset
_IDLE_LOOK_S: Final = 0.05

EXPECTS: Final = web.RequestKey("expects", str)
"""The `Expect` header of a request, taken out of its headers: whoever reads the body answers it."""

VERSION: Final = web.RequestKey("version", str)
"""The HTTP version that a request came in, when it is not 1.1; it is answered in 1.1."""

Refusal = Callable[[int, str], web.Response]


def _plain(status: int, detail: str) -> web.Response:
    return web.Response(status=status, text=f"{status}: {detail}\n")


def _anybody(_: str) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Listening:
    """How to listen. `refusal` makes the answer to what no application sees; `counted_as` names a peer, "" nobody."""

    refusal: Refusal = _plain
    refused: Callable[[int], None] = field(default=lambda _: None)
    counted_as: Callable[[str], str] = _anybody
    max_connections: int = 15_000
    max_connections_of_client: int = 15_000
    head_timeout_s: float = 15.0
    keepalive_timeout_s: float = 75.0
    certificate: ServerCertificate | None = None
    """What TLS is spoken with, and nothing else; without one nobody does."""
    no_handshake: Callable[[], None] = field(default=lambda: None)


LISTENING: Final = web.AppKey("listening", Listening)


class Listener(web.AppRunner):
    """Serves an application by connections of our own."""

    def __init__(self, app: web.Application, *, shutdown_timeout: float = 60.0) -> None:
        super().__init__(
            app,
            access_log=None,
            shutdown_timeout=shutdown_timeout,
            auto_decompress=False,  # what a body may unpack to is bounded where it is read
            max_line_size=MAX_HEAD_LINE_BYTES,
            max_field_size=MAX_HEAD_LINE_BYTES,
            max_headers=MAX_HEADERS,
            keepalive_timeout=app.get(LISTENING, Listening()).keepalive_timeout_s,
            lingering_time=_LINGER_S,
        )

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(made, self.app.get(LISTENING, Listening()))


class _Server(web.Server):
    def __init__(self, made: web.Server, listening: Listening) -> None:
        super().__init__(
            _in_our_version(made.request_handler),
            request_factory=made.request_factory,
            loop=made._loop,
            **made._kwargs,
        )
        self.listening = listening
        self.open = Crowd(listening.max_connections, listening.max_connections_of_client)
        self.handshakes = Crowd(listening.max_connections, listening.max_connections_of_client)
        self.hands: set[Handshake] = set()

    def __call__(self) -> asyncio.BaseProtocol:  # type: ignore[override]  # what a listening socket is given
        """Return what a new connection begins with."""
        certificate = self.listening.certificate
        return self.connection() if certificate is None else Handshake(self, certificate)

    def connection(self) -> "Connection":
        """Return a connection for what is said in plain, or within TLS."""
        return Connection(self, loop=self._loop, **self._kwargs)

    def pre_shutdown(self) -> None:
        """Let go of who has not asked anything yet."""
        for handshake in tuple(self.hands):
            handshake.abort()
        super().pre_shutdown()


class Crowd:
    """How many there are, of one client and in all."""

    def __init__(self, most: int, most_of_client: int) -> None:
        self._most, self._most_of_client = most, most_of_client
        self._of_client: Counter[str] = Counter()
        self._all = 0

    def has_room_for(self, client: str) -> bool:
        """Whether one more may come; of a client without a name only all are counted."""
        return self._all < self._most and not (client and self._of_client[client] >= self._most_of_client)

    def enter(self, client: str) -> None:
        """Count one more."""
        self._all += 1
        if client:
            self._of_client[client] += 1

    def leave(self, client: str) -> None:
        """Count one less."""
        self._all -= 1
        if client:
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]


def _in_our_version(handler: Callable[..., Any]) -> Callable[..., Any]:
    async def handle(request: web.Request) -> web.StreamResponse:
        if request._version != HttpVersion11:  # `version` would remember what it says first
            request[VERSION] = f"{request._version.major}.{request._version.minor}"
            request._version = HttpVersion11
        if "Expect" in request._headers:  # `headers` would remember them
            kept = CIMultiDict(request._headers)
            request[EXPECTS] = ", ".join(kept.popall("Expect")).lower()
            request._headers = CIMultiDictProxy(kept)
        response: web.StreamResponse = await handler(request)
        return response

    return handle


def _client_of(transport: asyncio.Transport, listening: Listening) -> str:
    peer = transport.get_extra_info("peername")
    return listening.counted_as(str(peer[0])) if isinstance(peer, tuple) else ""


def _duplicate(transport: asyncio.Transport) -> socket.socket | None:
    """Return the connection's socket under a descriptor of its own, or None when there are no more."""
    try:
        return socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
    except OSError:  # of too many open files; the connection is ended as one too many
        return None


class Handshake(asyncio.Protocol):
    """A connection until TLS is agreed on; then it is a `Connection`'s.

    The loop could do it alone, but would not say how many there are and when one has failed. It is given the socket
    anew, before anything was read.
    """

    def __init__(self, server: _Server, certificate: ServerCertificate) -> None:
        self._server = server
        self._certificate = certificate
        self._doing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless too many have begun."""
        transport = cast(asyncio.Transport, transport)
        client = _client_of(transport, self._server.listening)
        again = _duplicate(transport) if self._server.handshakes.has_room_for(client) else None
        if again is None:
            self._server.listening.no_handshake()
        else:
            self._server.handshakes.enter(client)
            self._server.hands.add(self)
            self._doing = asyncio.create_task(self._agree(again, client), name="TLS handshake")
        transport.abort()

    def abort(self) -> None:
        """End the connection."""
        if self._doing is not None:
            self._doing.cancel()

    async def _agree(self, again: socket.socket, client: str) -> None:
        again.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._server.connection,
                again,
                ssl=self._certificate.context,
                ssl_handshake_timeout=self._server.listening.head_timeout_s,
            )
        except OSError:  # no TLS, another version, hung up, or too slow
            self._server.listening.no_handshake()
            again.close()
        finally:
            self._server.handshakes.leave(client)
            self._server.hands.discard(self)


class Connection(RequestHandler):
    """One connection."""

    __slots__ = ("_client", "_head_bytes", "_head_timer", "_listening", "_reading", "_server", "half_closed")

    def __init__(self, server: _Server, **rest: Any) -> None:
        super().__init__(server, **rest)
        self.half_closed = False
        self._server = server
        self._listening = server.listening
        self._client: str | None = None
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._reading: Any = None  # the body that was begun last

    # ---- How many -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection up, or say that there are too many."""
        transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        client = _client_of(transport, self._listening)
        if not self._server.open.has_room_for(client):
            self._force_close = True
            self._send_away(transport, 503, "Too many connections are open.")
            return
        self._client = client
        self._server.open.enter(client)
        super().connection_made(transport)
        self._head_timer = self._loop.call_later(self._listening.head_timeout_s, self._head_is_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Make room."""
        if self._client is not None:
            self._server.open.leave(self._client)
            self._client = None
        self._head_is_whole()
        super().connection_lost(exc)

    # ---- Heads ----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse, and see whether a head is being sent for too long."""
        count, body_goes_on = self._request_count, self._body_goes_on
        super().data_received(data)
        if self._request_count != count:
            self._head_is_whole()
            self._reading = self._messages[-1][1] if self._messages else None
        elif data and not body_goes_on and not self._force_close:
            self._reading = None
            self._head_goes_on(len(data))

    def _head_goes_on(self, more: int) -> None:
        self._head_bytes += more
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head(431, f"A request's head may have {MAX_HEAD_BYTES} bytes at most.")
        elif self._head_timer is None:
            self._head_timer = self._loop.call_later(self._listening.head_timeout_s, self._head_is_late)

    def _head_is_whole(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            within = self._listening.head_timeout_s
            self._refuse_head(408, f"The request's head was not complete within {within:g} seconds.")
        else:
            self.force_close()

    def _refuse_head(self, status: int, detail: str) -> None:
        """Answer in place of a request that never was one; what is being answered on the connection goes first."""
        transport = self.transport
        if self._is_idle and transport is not None:
            self._force_close = True
            self._send_away(transport, status, detail)
        else:
            self.close()

    @property
    def _is_idle(self) -> bool:
        waiting = self._waiter is not None and not self._waiter.done()
        return not self._messages and (waiting or self._request_count == 0)

    @property
    def _body_goes_on(self) -> bool:
        return self._reading is not None and not self._reading.is_eof()

    def _send_away(self, transport: asyncio.Transport, status: int, detail: str) -> None:
        self._listening.refused(status)
        transport.write(_encoded(self._listening.refusal(status, detail)))
        if transport.can_write_eof():
            transport.write_eof()
        self._loop.call_later(_LINGER_S, transport.close)

    # ---- The end --------------------------------------------------------------------------------------------------

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep the connection when a whole request is to be answered; a client within its body has left."""
        self.half_closed = True
        if self._body_goes_on or self._is_idle or self.transport is None or self.transport.get_extra_info("sslcontext"):
            return None
        self._loop.call_later(_IDLE_LOOK_S, self._close_when_answered)
        return True

    def _close_when_answered(self) -> None:
        if self.transport is None:
            return
        if self._is_idle:
            self.force_close()
        else:
            self._loop.call_later(_IDLE_LOOK_S, self._close_when_answered)

    # ---- What the parser refuses ----------------------------------------------------------------------------------

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer in the application's way; the connection is closed."""
        if status >= 500:
            self.log_exception("Error handling request from %s", request.remote, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("A part of an answer is sent already.")
        if isinstance(exc, LineTooLong):
            status, message = 431, f"A line of a request's head may have {MAX_HEAD_LINE_BYTES} bytes at most."
        request._version = HttpVersion11
        self._listening.refused(status)
        response = self._listening.refusal(status, (message or HTTPStatus(status).phrase).partition("\n")[0])
        response.force_close()
        return response


def _encoded(response: web.Response) -> bytes:
    """Return an answer as bytes, for a connection that no request came on."""
    body = response.body
    assert isinstance(body, bytes), "a refusal has a body"
    head = {**response.headers, "Content-Length": str(len(body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {response.status} {response.reason}", *(f"{name}: {value}" for name, value in head.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def say_continue(request: web.Request) -> None:
    """Tell a client that waits for it that its body is wanted (RFC 9110 §10.1.1)."""
    if request.get(EXPECTS) == "100-continue" and request.content is not None:
        writer = request.writer
        assert isinstance(writer, StreamWriter)
        await writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        writer.output_size = 0  # the answer itself has not begun
