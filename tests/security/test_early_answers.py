"""Part 5: after an answer that did not wait for its body, a client's next request on its connections works."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from io import BytesIO
from typing import Any

import aiohttp
import pytest

from tests.security.wire import BODY, a_post, a_wire
from tests.unit.gateway.fakes import Bench, a_gateway

KIB, MIB = 1024, 1024 * 1024
SIZES = (0, KIB, MIB, 5 * MIB)

Early = tuple[int, str, dict[str, str], dict[str, Any]]
EARLY: Mapping[str, Early] = {
    "401": (401, "/v1/runs", {}, {"auth": "keys"}),
    "403": (403, "/v1/runs", {"Sec-Fetch-Site": "cross-site"}, {}),
    "404": (404, "/nowhere", {}, {}),
    "405": (405, "/v1/step-types", {}, {}),
    "415 by type": (415, "/v1/runs", {"Content-Type": "image/png"}, {}),
    "415 by encoding": (415, "/v1/runs", {"Content-Encoding": "br"}, {}),
    "417": (417, "/v1/runs", {"Expect": "tea"}, {}),
    "429": (429, "/v1/runs", {}, {"rate_limit": 1}),
}


async def in_pieces(size: int) -> AsyncIterator[bytes]:
    for _ in range(0, size, 64 * KIB):
        yield b" " * min(64 * KIB, size)


@pytest.mark.parametrize("expects", [False, True], ids=["", "expects"])
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("early", EARLY.values(), ids=EARLY)
async def test_a_client_goes_on_after_an_early_answer(early: Early, is_chunked: bool, expects: bool) -> None:
    """Whatever the size of what it sends, and however often it does."""
    status, path, headers, settings = early
    given = {"Content-Type": "application/json", **headers}
    async with a_gateway(**settings) as gateway, aiohttp.ClientSession() as session:
        if status == 429:
            assert (await gateway.post(BODY)).status == 202
        for size in SIZES * 2:
            body = in_pieces(size) if is_chunked else BytesIO(b" " * size)
            url = gateway.client.make_url(path)
            waits = expects and "Expect" not in headers
            async with session.post(url, data=body, headers=given, expect100=waits) as answer:
                assert answer.status == status
                await answer.read()
            async with session.get(gateway.client.make_url("/healthz")) as answer:
                assert answer.status == 200


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("expects", [False, True], ids=["", "expects"])
async def test_a_client_goes_on_after_a_body_that_is_too_large(gateway: Bench, is_chunked: bool, expects: bool) -> None:
    """It has read 413, although it may still have sent."""
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession() as session:
        for size in (3 * MIB, 20 * MIB) * 2:
            body = in_pieces(size) if is_chunked else BytesIO(b" " * size)
            url = gateway.client.make_url("/v1/runs")
            async with session.post(url, data=body, headers=headers, expect100=expects) as answer:
                assert answer.status == 413
                await answer.read()
            async with session.post(url, data=BODY, headers=headers) as answer:
                assert answer.status == 202


async def test_a_client_that_sends_all_before_it_reads_has_its_answer(gateway: Bench) -> None:
    """A body of any size, in no hurry."""
    wire = await a_wire(gateway)
    await wire.send(a_post(b"Transfer-Encoding: chunked", path=b"/nowhere", body=b""))
    for _ in range(50):
        await wire.send(b"10000\r\n" + b" " * 65_536 + b"\r\n")
        await asyncio.sleep(0)
    await wire.send(b"0\r\n\r\n")
    answer = await wire.answer()
    assert (answer.status, answer.headers["connection"]) == (404, "close")
    assert await wire.ended() == b""
    wire.close()


async def test_a_body_that_is_nobodys_is_heard_out(gateway: Bench) -> None:
    """The connection was not said to close, so it is there when the client has sent all."""
    wire = await a_wire(gateway)
    await wire.send(a_post(b"Content-Length: 4", path=b"/nowhere", body=b"12"))
    answer = await wire.answer()
    assert (answer.status, answer.headers.get("connection")) == (404, None)
    await wire.send(b"34" + a_post())
    assert (await wire.answer()).status == 202
    wire.close()


async def test_a_body_that_is_nobodys_has_its_time() -> None:
    """As long as one that somebody wants."""
    async with a_gateway(body_timeout_s=0.05) as gateway:
        wire = await a_wire(gateway)
        await wire.send(a_post(b"Content-Length: 4", path=b"/nowhere", body=b"12"))
        assert (await wire.answer()).status == 404
        assert await wire.ended() == b""
        wire.close()


async def test_a_body_that_may_not_come_ends_the_connection(gateway: Bench) -> None:
    """Who waits for `100 Continue` and has another answer may send the body or a request: nobody knows which."""
    wire = await a_wire(gateway)
    await wire.send(a_post(b"Expect: 100-continue", b"Content-Length: %d" % len(a_post()), path=b"/nowhere", body=b""))
    answer = await wire.answer()
    assert (answer.status, answer.headers["connection"]) == (404, "close")
    await wire.send(a_post())
    assert await wire.ended() == b""
    assert gateway.log.records == []
    wire.close()
