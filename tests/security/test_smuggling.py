"""Part 5: requests that two readers may take for different ones.

Behind each comes a request that runs something. Where the first one's end is not beyond doubt, nobody ever reads the
second; whether the bytes come at once or one by one makes no difference.
"""

import asyncio
import socket
from collections.abc import Mapping

import pytest

from anabranch.client.keys import new_key
from anabranch.shared.contracts.messages import API_KEYS
from tests.security.wire import BODY, Answer, Wire, a_post, a_wire
from tests.unit.gateway.fakes import Bench, a_gateway

HIDDEN = a_post()
CHUNKED = b"Transfer-Encoding: chunked"
LENGTH = b"Content-Length: %d" % len(BODY)
SIZE = b"%x" % len(BODY)
CHUNK = SIZE + b"\r\n" + BODY + b"\r\n"
END = b"0\r\n\r\n"


def a_head(*lines: bytes, body: bytes = BODY) -> bytes:
    return b"\r\n".join([b"POST /v1/runs HTTP/1.1", *lines, b"Content-Type: application/json", LENGTH, b"", b""]) + body


def a_target(target: bytes, *, method: bytes = b"POST", host: bytes = b"x") -> bytes:
    return a_post().replace(b"POST /v1/runs", method + b" " + target).replace(b"Host: x", b"Host: " + host)


def coded(*headers: bytes, version: bytes = b"1.1") -> bytes:
    return a_post(*headers, body=CHUNK + END, version=version)


def in_chunks(body: bytes) -> bytes:
    return a_post(CHUNKED, body=body)


HEADS: Mapping[str, bytes] = {
    "a folded header": a_post(b"X-A: b\r\n c"),
    "a coding in a fold": a_post(b"X-A: b\r\n Transfer-Encoding: chunked"),
    "a folded coding": coded(b"Transfer-Encoding:\r\n chunked"),
    "a fold before all headers": a_head(b" X-A: b", b"Host: x"),
    "a fold by tab before all headers": a_head(b"\tX-A: b", b"Host: x"),
    "lines that end by LF": a_post().replace(b"\r\n", b"\n"),
    "a first line that ends by LF": a_post().replace(b"\r\n", b"\n", 1),
    "a header that ends by LF": a_post(b"X-A: b\nX-C: d"),
    "a coding behind LF": a_post(b"X-A: b\nTransfer-Encoding: chunked", LENGTH),
    "a head that ends by LF": a_post().replace(b"\r\n\r\n", b"\r\n\n"),
    "a header that ends by CR": a_post(b"X-A: b\rX-C: d"),
    "a header that ends by CR CR LF": a_post(b"X-A: b\r"),
    "a first line that ends by CR": a_post().replace(b"\r\n", b"\r", 1),
    "NUL in a value": a_post(b"X-A: b\0c"),
    "a control character in a value": a_post(b"X-A: b\x01c"),
    "ESC in a value": a_post(b"X-A: b\x1bc"),
    "DEL in a value": a_post(b"X-A: b\x7fc"),
    "a vertical tab in a value": a_post(b"X-A: b\x0bc"),
    "NUL in a name": a_post(b"X\0A: b"),
    "a space before the colon": a_post(b"X-A : b"),
    "a tab before the colon": a_post(b"X-A\t: b"),
    "a length with a space before the colon": a_post().replace(b"Content-Length:", b"Content-Length :"),
    "a space in a name": a_post(b"X A: b"),
    "no name": a_post(b": b"),
    "no colon": a_post(b"XA"),
    "a name of other letters": a_post(b"X\xe9A: b"),
    "no host": a_post().replace(b"Host: x\r\n", b""),
    "two hosts": a_post(b"Host: y"),
    "a host that is none": a_post().replace(b"Host: x", b"Host: x/y z"),
    "a host with a user": a_post().replace(b"Host: x", b"Host: u@x"),
    "a line of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another protocol": a_post().replace(b"HTTP/1.1", b"ICE/1.1"),
    "a version in small letters": a_post().replace(b"HTTP/1.1", b"http/1.1"),
    "a space behind the version": a_post().replace(b"HTTP/1.1", b"HTTP/1.1 "),
    "a method in small letters": a_post().replace(b"POST", b"post"),
    "tabs in the first line": a_post().replace(b"POST /v1/runs HTTP", b"POST\t/v1/runs\tHTTP"),
    "a space in the target": a_target(b"/v1/runs x"),
    "a control character in the target": a_target(b"/v1/runs\x01"),
    "a fragment": a_target(b"/v1/runs#/v1/step-types"),
    "a target without a slash": a_target(b"v1/runs"),
    "the target of OPTIONS": a_target(b"*"),
    "a host as the target": a_target(b"x:80"),
    "a tunnel": a_target(b"x:80", method=b"CONNECT"),
    "a tunnel to a path": a_target(b"/v1/runs", method=b"CONNECT"),
    "a URL of another host": a_target(b"http://y/v1/runs"),
    "a URL of another port": a_target(b"http://x:8080/v1/runs"),
    "a URL with a user": a_target(b"http://u:p@x/v1/runs"),
    "a URL of another scheme": a_target(b"ftp://x/v1/runs"),
    "a URL that is a file": a_target(b"file:///v1/runs", host=b""),
}

LENGTHS: Mapping[str, bytes] = {
    name: a_post(b"Content-Length: " + value)
    for name, value in {
        "two of them": LENGTH.partition(b": ")[2] + b"\r\nContent-Length: 5",
        "the same twice": LENGTH.partition(b": ")[2] + b"\r\n" + LENGTH,
        "a list": b"%d, %d" % (len(BODY), len(BODY)),
        "none": b"",
        "minus": b"-1",
        "plus": b"+%d" % len(BODY),
        "an underscore": b"6_1",
        "a space": b"6 1",
        "a fraction": b"61.0",
        "hexadecimal": b"0x3d",
        "other digits": "٦١".encode(),
        "2^64 and more": b"%d" % (2**64 + len(BODY)),
        "beyond all": b"9" * 5000,
    }.items()
}

CODINGS: Mapping[str, bytes] = {
    "and a length": coded(CHUNKED, LENGTH),
    "behind a length": coded(LENGTH, CHUNKED),
    "none, and a length": a_post(b"Transfer-Encoding:", LENGTH),
    "none": coded(b"Transfer-Encoding:"),
    "of HTTP/1.0": coded(CHUNKED, version=b"1.0"),
    "of HTTP/1.0 that goes on": coded(CHUNKED, b"Connection: keep-alive", version=b"1.0"),
    "of a probe's HTTP/1.0": b"GET /healthz HTTP/1.0\r\nHost: x\r\n%s\r\n\r\n%s" % (CHUNKED, CHUNK + END),
    "twice": coded(CHUNKED, CHUNKED),
    "twice, the second another": coded(CHUNKED, b"Transfer-Encoding: identity"),
    "twice, the first another": coded(b"Transfer-Encoding: identity", CHUNKED),
    **{
        value.decode("latin-1"): coded(b"Transfer-Encoding: " + value)
        for value in (
            b"chunked, identity", b"identity, chunked", b"gzip, chunked", b"chunked, chunked", b"chunked,",
            b", chunked", b"xchunked", b"chunkedx", b"chunked;q=1", b"identity", b'"chunked"', b"\x0bchunked",
            b"chunked\x0b", b"\xa0chunked", b"chun\xe2\x84\xaaed", b"gzip", b"chunked\0",
        )
    },
}  # fmt: skip

CHUNKS: Mapping[str, bytes] = {
    name: in_chunks(body)
    for name, body in {
        "a quoted extension over lines": SIZE + b';a="b\r\nc"\r\n' + BODY + b"\r\n" + END,
        "an extension that ends by LF": SIZE + b";a\n" + BODY + b"\r\n" + END,
        "CR in an extension": SIZE + b";a\rb\r\n" + BODY + b"\r\n" + END,
        "NUL in an extension": SIZE + b";a\0b\r\n" + BODY + b"\r\n" + END,
        "an extension without a name": SIZE + b";\r\n" + BODY + b"\r\n" + END,
        "plus": b"+" + CHUNK + END,
        "minus": b"-" + CHUNK + END,
        "minus nothing": CHUNK + b"-" + END,
        "an underscore": b"0_" + CHUNK + END,
        "0x": b"0x" + CHUNK + END,
        "a space before the size": b" " + CHUNK + END,
        "a space behind the size": SIZE + b" \r\n" + BODY + b"\r\n" + END,
        "a tab behind the size": SIZE + b"\t\r\n" + BODY + b"\r\n" + END,
        "no size": b"\r\n" + BODY + b"\r\n" + END,
        "no hexadecimal": b"g" + CHUNK + END,
        "2^64 and more": b"1" + SIZE.rjust(16, b"0") + b"\r\n" + BODY + b"\r\n" + END,
        "a size that ends by LF": SIZE + b"\n" + BODY + b"\r\n" + END,
        "a size that ends by CR": SIZE + b"\r" + BODY + b"\r\n" + END,
        "a size that ends by CR CR LF": SIZE + b"\r\r\n" + BODY + b"\r\n" + END,
        "a chunk that ends by LF": SIZE + b"\r\n" + BODY + b"\n" + END,
        "a chunk that does not end": SIZE + b"\r\n" + BODY + END,
        "a chunk that ends otherwise": SIZE + b"\r\n" + BODY + b"XX" + END,
        "an end by LF": CHUNK + b"0\n\n",
        "a last LF": CHUNK + b"0\r\n\n",
        "a trailer that is a coding": CHUNK + b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "a trailer that is a length": CHUNK + b"0\r\nContent-Length: 5\r\n\r\n",
        "a trailer that is a request": CHUNK + b"0\r\nPOST /v1/runs HTTP/1.1\r\n\r\n",
        "a trailer with a space before its colon": CHUNK + b"0\r\nX-A : b\r\n\r\n",
        "a trailer that ends by LF": CHUNK + b"0\r\nX-A: b\nX-C: d\r\n\r\n",
        "NUL in a trailer": CHUNK + b"0\r\nX-A: b\0c\r\n\r\n",
    }.items()
}

REFUSED = {
    f"{what}: {name}": shape
    for what, shapes in (("head", HEADS), ("length", LENGTHS), ("coding", CODINGS), ("chunks", CHUNKS))
    for name, shape in shapes.items()
}

UNDERSTOOD = {
    "a coding behind a tab": coded(b"Transfer-Encoding:\tchunked"),
    "a coding in capitals": coded(b"Transfer-Encoding: CHUNKED"),
    "an extension": in_chunks(SIZE + b';a="b c";d\r\n' + BODY + b"\r\n0;e\r\n\r\n"),
    "zeros before a size": in_chunks(b"000" + CHUNK + b"000\r\n\r\n"),
    "each byte a chunk": in_chunks(b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + END),
    "a trailer": in_chunks(CHUNK + b"0\r\nX-A: b\r\n\r\n"),
    "an URL of this host": a_target(b"http://X:80/v1/runs", host=b"x:80"),
    "an address of IPv6": a_target(b"/v1/runs", host=b"[::1]:8080"),
    "zeros before a length": a_post(b"Content-Length: 000%d" % len(BODY)),
    "an empty line before": b"\r\n" + a_post(),
}


async def answers(wire: Wire) -> list[Answer]:
    """Return all that comes until the other side closes."""
    found = []
    while True:
        try:
            found.append(await wire.answer())
        except (asyncio.IncompleteReadError, ConnectionError):
            return found


async def byte_by_byte(wire: Wire, data: bytes) -> None:
    wire.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(len(data)):
        wire.writer.write(data[at : at + 1])
        await asyncio.sleep(0)


@pytest.mark.parametrize("is_cut", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("shape", REFUSED.values(), ids=REFUSED)
async def test_what_may_be_read_in_two_ways_is_refused(gateway: Bench, shape: bytes, is_cut: bool) -> None:
    """One problem document, the connection is closed, and nothing has run."""
    wire = await a_wire(gateway)
    if is_cut:
        await byte_by_byte(wire, shape)
    await wire.send(HIDDEN if is_cut else shape + HIDDEN)
    (answer,) = await answers(wire)
    assert answer.status in (400, 505)
    assert answer.headers["connection"] == "close"
    answer.problem()
    assert gateway.log.records == []
    wire.close()


@pytest.mark.parametrize("is_cut", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("shape", UNDERSTOOD.values(), ids=UNDERSTOOD)
async def test_what_is_odd_and_clear_is_understood(gateway: Bench, shape: bytes, is_cut: bool) -> None:
    """As RFC 9112 says: it runs once, and so does what comes behind it."""
    wire = await a_wire(gateway)
    if is_cut:
        await byte_by_byte(wire, shape)
    await wire.send(HIDDEN if is_cut else shape + HIDDEN)
    assert [(await wire.answer()).status for _ in range(2)] == [202, 202]
    assert len(gateway.log.records) == 2
    wire.close()


@pytest.mark.parametrize(
    "body",
    [SIZE + b";a=" + b"b" * 300_000 + b"\r\n", b"0" * 300_000 + CHUNK, (b"1;a=" + b"b" * 100 + b"\r\n \r\n") * 3_000],
    ids=["a long extension", "many zeros", "many extensions"],
)
async def test_what_stands_around_chunks_is_bounded(gateway: Bench, body: bytes) -> None:
    """It costs, and is nobody's body."""
    wire = await a_wire(gateway)
    await wire.send(in_chunks(body))
    answer = await wire.answer()
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    wire.close()


async def test_a_chunk_larger_than_any_body_is_not_waited_for(gateway: Bench) -> None:
    """2^64 - 1 bytes are more than a body may have as soon as so many have come."""
    wire = await a_wire(gateway)
    await wire.send(in_chunks(b"f" * 16 + b"\r\n" + HIDDEN * 20_000))
    answer = await wire.answer()
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert gateway.log.records == []
    wire.close()


async def test_a_trailer_is_no_header() -> None:
    """A key that comes behind the body proves nothing."""
    async with a_gateway(auth="keys") as gateway:
        text, issued = new_key(tenant="acme", scopes=["submit"], name="", days=None, now_ms=1_769_860_800_000)
        gateway.api_keys.take(issued.id.encode(), API_KEYS.dump_json(issued))
        key = b"X-API-Key: " + text.encode()
        for shape, status in ((coded(CHUNKED, key), 202), (in_chunks(CHUNK + b"0\r\n" + key + b"\r\n\r\n"), 401)):
            wire = await a_wire(gateway)
            await wire.send(shape)
            assert (await wire.answer()).status == status
            wire.close()


@pytest.mark.parametrize("to", [b"h2c", b"websocket", b"TLS/1.0"])
async def test_behind_a_protocol_that_is_declined_nothing_is_read(gateway: Bench, to: bytes) -> None:
    """The answer is HTTP/1.1's and the connection's last, for a proxy may believe that it is a tunnel by now."""
    wire = await a_wire(gateway)
    await wire.send(a_post(b"Connection: Upgrade", b"Upgrade: " + to) + HIDDEN)
    (answer,) = await answers(wire)
    assert (answer.status, answer.headers["connection"]) == (202, "close")
    assert len(gateway.log.records) == 1
    wire.close()


@pytest.mark.parametrize(
    "last",
    [a_post(b"Connection: close"), a_post(b"Connection: keep-alive", version=b"1.0")],
    ids=["asked for", "another version"],
)
async def test_behind_the_last_answer_nothing_is_read(gateway: Bench, last: bytes) -> None:
    """What was said to be closed is; and the answer is not lost by what comes."""
    wire = await a_wire(gateway)
    await wire.send(last)
    answer = await wire.answer()
    count = len(gateway.log.records)
    await wire.send(HIDDEN)
    assert answer.headers["connection"] == "close"
    assert await wire.ended() == b""
    assert len(gateway.log.records) == count
    wire.close()
