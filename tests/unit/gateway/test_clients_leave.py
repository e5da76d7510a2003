"""Clients that go away, or hardly send, are nobody's error."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from .fakes import Bench, a_gateway, problem

HEAD = b"POST /v1/runs%s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n%s\r\n"
WITH_LENGTH = b"Content-Length: 1000\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


async def a_request(gateway: Bench, head: bytes, body: bytes) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection(gateway.client.host, gateway.client.port)
    writer.write(head + body)
    await writer.drain()
    return writer


def closes(writer: asyncio.StreamWriter) -> None:
    writer.close()


def resets(writer: asyncio.StreamWriter) -> None:
    opened: Any = writer.get_extra_info("socket")
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def ends_its_half(writer: asyncio.StreamWriter) -> None:
    writer.write_eof()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("framing", [(WITH_LENGTH, b"{"), (CHUNKED, b"1\r\n{\r\n"), (CHUNKED, b"5\r\n{")])
@pytest.mark.parametrize("leave", [closes, resets, ends_its_half])
async def test_a_client_that_leaves_within_its_body_is_counted_and_not_logged(
    gateway: Bench, leave: Callable[[asyncio.StreamWriter], None], framing: tuple[bytes, bytes]
) -> None:
    """However it leaves and however the body is framed."""
    with capture_logs() as logged:
        writer = await a_request(gateway, HEAD % (b"", framing[0]), framing[1])
        await until(lambda: gateway.bodies.receiving_bytes)
        leave(writer)
        await until(lambda: gateway.count("clients_left_total") == 1)
    assert [line for line in logged if line["log_level"] != "debug"] == []
    assert gateway.bodies.receiving_bytes == 0
    assert (await gateway.submit()).status == 202
    writer.close()


@pytest.mark.parametrize("leave", [closes, resets, ends_its_half])
async def test_a_client_that_leaves_while_it_waits_is_not_logged(
    gateway: Bench, leave: Callable[[asyncio.StreamWriter], None]
) -> None:
    """Its run was accepted, and its place among the waiters is free again at the next look."""
    body = b'{"definition":{"name":"p","steps":{"a":{"uses":"simulate"}}}}'
    with capture_logs() as logged:
        writer = await a_request(gateway, HEAD % (b"?wait=60s", b"Content-Length: %d\r\n" % len(body)), body)
        await until(lambda: gateway.count("waiters") == 1)
        leave(writer)
        await until(lambda: gateway.count("waiters") == 0)
    assert [line for line in logged if line["log_level"] != "debug"] == []
    assert len(gateway.log.submitted) == 1
    writer.close()


async def test_a_body_that_does_not_come_is_answered_in_time() -> None:
    """With 408, and the connection is closed: whatever else comes on it is not a request."""
    async with a_gateway(body_timeout_s=0.05) as gateway:
        reader, writer = await asyncio.open_connection(gateway.client.host, gateway.client.port)
        writer.write(HEAD % (b"", WITH_LENGTH) + b"{")
        async with asyncio.timeout(60):
            head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head.lower()


async def test_bodies_on_their_way_have_so_many_bytes_together(gateway: Bench) -> None:
    """A large one is sent away while there is no room; a small one still goes through."""
    gateway.bodies.receiving_bytes += 64 * 1024 * 1024
    answers: list[Awaitable[Any]] = [gateway.submit(inputs={"n": 1, "x": "x" * 200_000}), gateway.submit()]
    large, small = [await answer for answer in answers]
    document = await problem(large)
    assert (document["status"], large.headers["Retry-After"]) == (503, "1")
    assert "being received" in document["detail"]
    assert small.status == 202
