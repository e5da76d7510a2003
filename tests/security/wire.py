"""A client that sends what no HTTP library would."""

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson

from tests.unit.gateway.fakes import Bench

BODY = b'{"definition":{"name":"p","steps":{"a":{"uses":"simulate"}}}}'
WITHIN_S = 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: first line, headers by small name, body."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def status(self) -> int:
        return int(self.line.split()[1])

    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"].startswith("application/problem+json"), self
        document: dict[str, Any] = orjson.loads(self.body)
        assert document["status"] == self.status
        return document


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> Answer:
        async with asyncio.timeout(WITHIN_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(head[0], headers, body)

    async def ended(self) -> bytes:
        """Return what else comes until the other side closes."""
        async with asyncio.timeout(WITHIN_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    def close(self) -> None:
        self.writer.close()


async def a_wire(gateway: Bench) -> Wire:
    return Wire(*await asyncio.open_connection(gateway.client.host, gateway.client.port))


async def sent(gateway: Bench, data: bytes) -> Answer:
    """Send on a connection of its own and return the first answer."""
    wire = await a_wire(gateway)
    try:
        await wire.send(data)
        return await wire.answer()
    finally:
        wire.close()


def a_post(*headers: bytes, path: bytes = b"/v1/runs", body: bytes = BODY, version: bytes = b"1.1") -> bytes:
    """Return a whole submission."""
    lines = [b"POST %s HTTP/%s" % (path, version), b"Host: x", b"Content-Type: application/json", *headers]
    if not any(header.lower().startswith((b"content-length", b"transfer-encoding")) for header in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", b""]) + body
