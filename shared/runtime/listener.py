"""The HTTP listener: what strangers can do to a connection before anybody knows what they want.

aiohttp's own connection is made stricter and more polite: a head has so much time and so many bytes; there are so many
connections, of one address and in all; with TLS, a handshake has as much time, and there are as many at once; what its
parser refuses, or what may be read in two ways, is answered in the application's way, in HTTP/1.1; a client that ends
its half after a whole request is answered; one that still sends when it has its answer is heard out, or was told that
the connection closes and has the time to read so.
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
from aiohttp.hdrs import CONNECTION
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_writer import StreamWriter
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDict, CIMultiDictProxy

from anabranch.shared.contracts.limits import (
    MAX_BODY_BYTES,
    MAX_CHUNK_HEAD_SHARE,
    MAX_HEAD_BYTES,
    MAX_HEAD_LINE_BYTES,
    MAX_HEADERS,
)
from anabranch.shared.runtime.framing import why_ambiguous
from anabranch.shared.runtime.tls import ServerCertificate

_LINGER_S: Final = 1.0  # in which a client that is sent away has to send more, or else has read why
_LINGERS: Final = 30  # as long as most bodies take
_IDLE_LOOK_S: Final = 0.05
_BACKLOG: Final = 4096  # as Linux allows: of a thousand clients in one moment, those beyond it try again in a second

EXPECTS: Final = web.RequestKey("expects", str)
"""The `Expect` header of a request, taken out of its headers, until whoever reads the body has answered it."""

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
    body_timeout_s: float = 30.0
    """In which a body that nobody wants has to end for its connection to be kept."""
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
            lingering_time=app.get(LISTENING, Listening()).body_timeout_s,
        )

    async def listen(self, host: str, port: int) -> int:
        """Accept connections from now on, and return the port."""
        await web.TCPSite(self, host, port, backlog=_BACKLOG).start()
        found: int = self.addresses[0][1]
        return found

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(made, self.app.get(LISTENING, Listening()))


class _Server(web.Server):
    def __init__(self, made: web.Server, listening: Listening) -> None:
        super().__init__(
            _as_we_read_it(made.request_handler, listening),
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


def _as_we_read_it(handler: Callable[..., Any], listening: Listening) -> Callable[..., Any]:
    async def handle(request: web.Request) -> web.StreamResponse:
        ambiguous = why_ambiguous(request._message)
        if ambiguous:
            request._version = HttpVersion11
            return _last(listening.refusal(400, ambiguous), listening)
        if request._version != HttpVersion11:  # `version` would remember what it says first
            request[VERSION] = f"{request._version.major}.{request._version.minor}"
            request._version = HttpVersion11
        if "Expect" in request._headers:  # `headers` would remember them
            kept = CIMultiDict(request._headers)
            request[EXPECTS] = ", ".join(kept.popall("Expect")).lower()
            request._headers = CIMultiDictProxy(kept)
        response: web.StreamResponse = await handler(request)
        if request._message.upgrade:  # declined, but the parser has lost what came behind it
            response.force_close()
        return response

    return handle


def _last(response: web.Response, listening: Listening) -> web.Response:
    """Return a refusal as the last answer of its connection."""
    listening.refused(response.status)
    response.force_close()
    return response


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

    __slots__ = (
        "_body_bytes",
        "_client",
        "_head_bytes",
        "_head_timer",
        "_heard",
        "_is_cut",
        "_listening",
        "_reading",
        "_server",
        "half_closed",
    )

    def __init__(self, server: _Server, **rest: Any) -> None:
        super().__init__(server, **rest)
        self.half_closed = False
        self._server = server
        self._listening = server.listening
        self._client: str | None = None
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._reading: Any = None  # the body that was begun last
        self._body_bytes = 0  # of it and of what stands around its chunks
        self._is_cut = False  # the parser has given up, and nobody knows where the request ends
        self._heard = False  # since it was looked at, on a connection that is about to be closed

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
        """Parse, and see whether a head is being sent for too long, and a body with too much around it."""
        self._heard = True
        count, body_goes_on = self._request_count, self._body_goes_on
        super().data_received(data)
        if self._request_count != count:
            if self._body_goes_on:  # no request comes before a body's end: the parser has given up within it
                self._spoil_body("The body's chunks are not as they should be.")
            self._head_is_whole()
            self._reading = self._messages[-1][1] if self._messages else None
            self._body_bytes = 0
        elif body_goes_on:
            self._body_goes_on_with(len(data))
        elif data and not self._force_close:
            self._reading = None
            self._head_goes_on(len(data))

    def _body_goes_on_with(self, more: int) -> None:
        self._body_bytes += more
        around = self._body_bytes - self._reading.total_bytes
        if around > MAX_HEAD_BYTES + MAX_CHUNK_HEAD_SHARE * self._reading.total_bytes and self._body_goes_on:
            self._spoil_body("There is too much around the body's chunks.")

    def _spoil_body(self, why: str) -> None:
        if self._reading.exception() is None:
            self._is_cut = True
            self._reading.set_exception(web.RequestPayloadError(why))

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
        self._part_from(transport)

    # ---- The end --------------------------------------------------------------------------------------------------

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep the connection when a whole request is to be answered; a client within its body has left."""
        self.half_closed = True
        if self._force_close or self._body_goes_on or self._is_idle:
            return None
        if self.transport is None or self.transport.get_extra_info("sslcontext"):
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

    # ---- Answers before a request's end ---------------------------------------------------------------------------

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Say in an answer that the connection closes when it will, and close it so that the answer is not lost."""
        if isinstance(resp, web.StreamResponse) and _is_last(request, resp):
            resp.force_close()
        resp, is_gone = await super().finish_response(request, resp, start_time)
        transport = self.transport
        if not resp.keep_alive and not is_gone and transport is not None:
            is_whole = request.content.is_eof() and not self._is_cut
            if not is_whole or transport.can_write_eof():  # TLS cannot end one half: it is left when nothing is to come
                self._force_close = True
                self._part_from(transport)
        return resp, is_gone

    def _part_from(self, transport: asyncio.Transport) -> None:
        """Close a connection when the client has: it would be reset, and the answer lost, by what it still sends."""
        if transport.can_write_eof():
            transport.write_eof()
        if self.half_closed:
            transport.close()
        else:
            transport.resume_reading()
            self._heard = False
            self._loop.call_later(_LINGER_S, self._look_whether_to_close, transport, _LINGERS)

    def _look_whether_to_close(self, transport: asyncio.Transport, looks: int) -> None:
        if self._heard and looks and not transport.is_closing():
            self._heard = False
            self._loop.call_later(_LINGER_S, self._look_whether_to_close, transport, looks - 1)
        else:
            transport.close()

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
        self._is_cut = True
        why = (message or HTTPStatus(status).phrase).partition("\n")[0]
        return _last(self._listening.refusal(status, why), self._listening)


def _is_last(request: web.BaseRequest, response: web.StreamResponse) -> bool:
    """Return whether an answer is its connection's last: it says so, or what is left of the request may not end."""
    if response.headers.get(CONNECTION) == "close":
        return True
    if request.content.is_eof():
        return False
    length = request.content_length
    return length is None or length > MAX_BODY_BYTES or EXPECTS in request or request.content.exception() is not None


def _encoded(response: web.Response) -> bytes:
    """Return an answer as bytes, for a connection that no request came on."""
    body = response.body
    assert isinstance(body, bytes), "a refusal has a body"
    head = {**response.headers, "Content-Length": str(len(body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {response.status} {response.reason}", *(f"{name}: {value}" for name, value in head.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def say_continue(request: web.Request) -> None:
    """Tell a client that waits for it that its body is wanted (RFC 9110 §10.1.1)."""
    if request.pop(EXPECTS, None) == "100-continue" and request.content is not None:
        writer = request.writer
        assert isinstance(writer, StreamWriter)
        await writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        writer.output_size = 0  # the answer itself has not begun
