"""Bytes to a gateway on the loop of the test, and what an answer to a stranger must be."""

import asyncio
import gzip
from collections.abc import Mapping
from typing import Final

import orjson
from aiohttp.test_utils import TestServer

from anabranch.shared.contracts.limits import KIB
from tests.fuzz.target import LONGEST_ANSWER, REFUSALS

_ANSWER_S: Final = 60.0  # nothing here waits for a run: an answer that takes longer never comes
_LONGEST_HEAD: Final = 8 * KIB  # of an answer
_OTHERS: Final = frozenset({200, 202, 204, 401, 403, 409})

# Every header that an answer may have: another one was put there by what was sent.
_NAMES: Final = frozenset(
    {
        "accept", "accept-encoding", "accept-post", "access-control-allow-headers", "access-control-allow-methods",
        "access-control-allow-origin", "access-control-expose-headers", "access-control-max-age", "allow",
        "cache-control", "connection", "content-encoding", "content-length", "content-security-policy", "content-type",
        "date", "etag", "last-modified", "accept-ranges", "location", "ratelimit", "ratelimit-policy",
        "referrer-policy", "retry-after", "server", "strict-transport-security", "transfer-encoding", "vary",
        "www-authenticate", "x-content-type-options", "x-frame-options", "x-request-id", "x-xss-protection",
    }
)  # fmt: skip


class Answer:
    """What came back to one request."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body


class Caller:
    """Sends bytes to a server that is being tested on the same loop, and knows whether the loop had to complain."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.complaints: list[str] = []
        loop.set_exception_handler(lambda _, context: self.complaints.append(repr(context)))

    async def answers(self, server: TestServer, request: bytes, *, is_head: bool, then: bytes = b"") -> list[Answer]:
        """Return the answer to a request, and the one to what is sent on the same connection afterwards."""
        reader, writer = await asyncio.open_connection(server.host, server.port)
        found: list[Answer] = []
        try:
            async with asyncio.timeout(_ANSWER_S):
                writer.write(request)
                if not then:
                    writer.write_eof()
                found.append(await _answer(reader, is_head=is_head))
                if then and found[0].headers.get("connection", "").lower() != "close":
                    writer.write(then)
                    found.append(await _answer(reader, is_head=False))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the caller says whether that was right
        finally:
            writer.close()
        assert not self.complaints, self.complaints
        return found


async def _answer(reader: asyncio.StreamReader, *, is_head: bool) -> Answer:
    status = 100
    while status == 100:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        version, code = lines[0].split(" ")[:2]
        assert version == "HTTP/1.1", lines[0]
        status = int(code)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
    assert sum(map(len, lines)) <= _LONGEST_HEAD, lines
    assert headers.keys() <= _NAMES, f"headers of somebody else: {headers.keys() - _NAMES}"
    has_body = not is_head and status not in (204, 304)
    return Answer(status, headers, await _body(reader, headers) if has_body else b"")


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if "chunked" not in headers.get("transfer-encoding", ""):
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    else:
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    return gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body


def check_answer(answer: Answer, sent: bytes, others: frozenset[int], *, is_head: bool) -> None:
    """Fail when an answer is none of those that are meant for strangers."""
    assert answer.status in REFUSALS | _OTHERS | others, f"{answer.status}: {answer.body[:2000]!r} to {sent[:4000]!r}"
    assert answer.headers.get("x-content-type-options") == "nosniff", answer.headers
    assert answer.headers.get("server") == "anabranch", answer.headers
    assert 0 < len(answer.headers.get("x-request-id", "")) <= 128, answer.headers
    if answer.status >= 400 and not is_head:
        assert answer.headers["content-type"].startswith("application/problem+json"), answer.headers
        assert orjson.loads(answer.body)["status"] == answer.status
        assert len(answer.body) <= LONGEST_ANSWER, f"a refusal of {len(answer.body)} bytes"


FOLLOWING: Final = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
