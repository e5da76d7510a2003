"""An HTTP server that answers as nobody should: what its path asks for, byte by byte.

`/zoo/STATUS/TYPE/BODY/HOW`, see the tables. Bodies are made while they are sent, so that large ones cost nothing here.
"""

import asyncio
import gzip
import random
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final
from urllib.parse import quote, unquote

from anabranch.deploy.local.ports import HOST

STATUSES: Final = (200, 200, 200, 201, 204, 206, 299, 301, 302, 304, 307, 400, 404, 418, 429, 500, 503, 599, 99, 999)
TYPES: Final = (
    "",
    "text/plain",
    "application/json",
    "application/json; charset=utf-16",
    "text/html; charset=hex",
    "text/plain; charset=rot13",
    "text/plain; charset=idna",
    "text/plain; charset=punycode",
    "text/plain; charset=unicode_escape",
    "text/plain; charset=utf-7",
    "text/plain; charset=\xff",
    "application/json; charset=no-such",
    "image/png",
    "text/csv",
    "a/b/c;;;=",
    "x" * 3000,
)
BODIES: Final = (
    "",
    "ok",
    "{",
    "null",
    "NaN",
    '{"a":1e999}',
    '"\\ud800"',
    "deep-64",
    "deep-300",
    "deep-5000",
    "deep-200000",
    "wide-1000",
    "wide-300000",
    "long-1100000",
    "long-60000000",
    "divs-60000",
    "latin",
    "csv-100000",
    "gzip-bomb",
    "gzip-broken",
    "deflate-odd",
    "endless",
    "numbers",
)
HOWS: Final = (
    "plain",
    "plain",
    "plain",
    "chunked",
    "slow",
    "cut",
    "long-length",
    "short-length",
    "no-length",
    "many-headers",
    "bad-chunk",
    "loop",
    "stall",
)

_CHUNK: Final = 65_536


def drawn_path(chance: random.Random) -> str:
    """Return the path of one of the animals."""
    return animal(chance.choice(STATUSES), chance.choice(TYPES), chance.choice(BODIES), chance.choice(HOWS))


def animal(status: int, media_type: str, body: str, how: str = "plain") -> str:
    """Return the path of this one."""
    return f"/zoo/{status}/{quote(media_type, safe='') or '-'}/{quote(body, safe='') or '-'}/{how}"


_MADE: Final[dict[str, Callable[[int], bytes]]] = {
    "deep": lambda count: b"[" * count + b"]" * count,
    "wide": lambda count: b"[" + b",".join([b"1"] * count) + b"]",
    "long": lambda count: b'"' + b"x" * count + b'"',
    "divs": lambda count: b"<div>" * count,
    "csv": lambda count: b"a,b\n" + b"1,x\n" * count,
    "latin": lambda _: b"caf\xe9 \xff\xfe\x00",
    "numbers": lambda _: b"[" + b",".join([b"1" * 4000] * 50) + b"]",
}
_PACKED: Final[dict[str, tuple[str, Callable[[], bytes]]]] = {
    "gzip-bomb": ("gzip", lambda: gzip.compress(b"0" * 200_000_000, 9)),
    "gzip-broken": ("gzip", lambda: b"\x1f\x8b broken"),
    "deflate-odd": ("deflate", lambda: zlib.compress(b"x" * 1000)[2:-7]),
}


def _body(kind: str) -> tuple[str, bytes]:
    """Return what a body's Content-Encoding says, and the body."""
    if kind in _PACKED:
        encoding, packed = _PACKED[kind]
        return encoding, packed()
    name, _, number = kind.partition("-")
    if name in _MADE:
        return "", _MADE[name](int(number or 0))
    return "", kind.encode("utf-8", "surrogatepass")


_BOMBS: dict[str, tuple[str, bytes]] = {}


@asynccontextmanager
async def a_zoo() -> AsyncIterator[str]:
    """Provide the zoo's URL."""
    server = await asyncio.start_server(_answer, HOST, 0)
    async with server:
        yield f"http://{HOST}:{server.sockets[0].getsockname()[1]}"


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, EOFError, asyncio.LimitOverrunError, ValueError):  # clients leave
        head = await reader.readuntil(b"\r\n\r\n")
        await _show(head.split(b" ")[1].decode(), writer)
    writer.close()


async def _show(path: str, writer: asyncio.StreamWriter) -> None:
    _, _, status, media_type, kind, how = path.split("?", maxsplit=1)[0].split("/")
    media_type, kind = (unquote(part) if part != "-" else "" for part in (media_type, kind))
    encoding, body = ("", b"x" * _CHUNK) if kind == "endless" else _BOMBS.setdefault(kind, _body(kind))
    length = {"long-length": len(body) + 1000, "short-length": len(body) // 2}.get(how, len(body))
    headers = [f"HTTP/1.1 {status} What"]
    headers += [f"Content-Type: {media_type}"] if media_type else []
    headers += [f"Content-Encoding: {encoding}"] if encoding else []
    headers += [f"Location: {path if how == 'loop' else '/zoo/200/-/ok/plain'}"] if status[0] == "3" else []
    headers += [f"X-{number}: {'y' * 200}" for number in range(900)] if how == "many-headers" else []
    is_chunked = how in ("chunked", "bad-chunk") or kind == "endless"
    headers.append("Transfer-Encoding: chunked" if is_chunked else "Connection: close")
    headers += [] if is_chunked or how == "no-length" else [f"Content-Length: {length}"]
    writer.write("\r\n".join([*headers, "", ""]).encode("latin-1", "replace"))
    await writer.drain()
    await _send(body, kind, how, is_chunked, writer)


async def _send(body: bytes, kind: str, how: str, is_chunked: bool, writer: asyncio.StreamWriter) -> None:
    if how == "stall":
        await asyncio.sleep(30)
        return
    if how == "cut":
        body = body[: len(body) // 2]
    size = 7 if how == "slow" else _CHUNK
    pieces = [body[at : at + size] for at in range(0, min(len(body), 100 * size if how == "slow" else len(body)), size)]
    while True:
        for piece in pieces:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
            await writer.drain()
            if how == "slow":
                await asyncio.sleep(0.1)
        if kind != "endless":
            break
    if is_chunked:
        writer.write(b"zz\r\n" if how == "bad-chunk" else b"0\r\n\r\n")
        await writer.drain()
