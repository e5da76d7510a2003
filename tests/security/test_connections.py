"""Part 5 and the protocol of part 10: connections of strangers."""

import asyncio

import pytest

from tests.security.wire import BODY, a_post, a_wire, sent
from tests.unit.gateway.fakes import Bench, a_gateway


@pytest.mark.parametrize("begun", [b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nX-A: ", b"P"])
async def test_a_head_that_does_not_come_is_answered_in_time(begun: bytes) -> None:
    """408, however it trickles, and the connection is closed; on a fresh connection and on a used one."""
    async with a_gateway(head_timeout_s=0.2) as gateway:
        for first in (b"", a_post()):
            wire = await a_wire(gateway)
            if first:
                await wire.send(first)
                assert (await wire.answer()).status == 202
            await wire.send(begun)
            answer = await wire.answer()
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            assert answer.problem()["type"] == "urn:anabranch:problem:too-slow"
            assert await wire.ended() == b""
            wire.close()


async def test_a_connection_that_says_nothing_is_closed() -> None:
    """Without an answer: it asked nothing."""
    async with a_gateway(head_timeout_s=0.05) as gateway:
        wire = await a_wire(gateway)
        assert await wire.ended() == b""
        wire.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 9000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 1000) for n in range(99)) + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(200)) + b"\r\n",
    ],
)
async def test_a_head_has_a_size(gateway: Bench, head: bytes) -> None:
    """Its lines, their number and all of it."""
    wire = await a_wire(gateway)
    for at in range(0, len(head), 4096):
        await wire.send(head[at : at + 4096])
        await asyncio.sleep(0)
    answer = await wire.answer()
    assert answer.status in (400, 431)
    answer.problem()
    wire.close()


@pytest.mark.parametrize("path", [b"/v1/runs", b"x:443"])
async def test_nobody_is_connected_through(gateway: Bench, path: bytes) -> None:
    """What comes after a CONNECT is a tunnel to the parser: the answer says that the connection ends."""
    wire = await a_wire(gateway)
    await wire.send(b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
    answer = await wire.answer()
    assert answer.status in (400, 404, 405)
    assert answer.headers["connection"] == "close"
    answer.problem()
    wire.close()


async def test_a_large_body_is_no_head(gateway: Bench) -> None:
    """Its last piece neither."""
    body = BODY[:-1] + b" " * 300_000 + b"}"
    wire = await a_wire(gateway)
    for _ in range(2):
        await wire.send(a_post(body=body))
        assert (await wire.answer()).status == 202
    wire.close()


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_of_client"])
async def test_connections_are_bounded(limit: str) -> None:
    """The next one is told why, and there is room again when one has gone."""
    limits: dict[str, int] = {limit: 2}
    async with a_gateway(**limits) as gateway:  # type: ignore[arg-type]
        wires = [await a_wire(gateway) for _ in range(2)]
        for wire in wires:
            await wire.send(a_post())
            assert (await wire.answer()).status == 202
        answer = await sent(gateway, a_post())
        assert (answer.status, answer.headers["retry-after"], answer.headers["connection"]) == (503, "1", "close")
        assert answer.problem()["type"] == "urn:anabranch:problem:unavailable"
        wires[0].close()
        await wires[0].writer.wait_closed()
        async with asyncio.timeout(20):
            while (await sent(gateway, a_post())).status != 202:
                await asyncio.sleep(0.01)
        wires[1].close()


@pytest.mark.parametrize("limit", ["max_requests", "max_requests_of_client"])
async def test_requests_in_hand_are_bounded(limit: str) -> None:
    """503 with `Retry-After`; probes get through."""
    limits: dict[str, int] = {limit: 1}
    async with a_gateway(**limits) as gateway:  # type: ignore[arg-type]
        wire = await a_wire(gateway)
        await wire.send(a_post(path=b"/v1/runs?wait=60s"))
        async with asyncio.timeout(20):
            while not gateway.count("waiters"):
                await asyncio.sleep(0.01)
        answer = await gateway.submit()
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert (await gateway.client.get("/healthz")).status == 200
        gateway.watches.release_all()
        assert (await wire.answer()).status == 202
        wire.close()


async def test_waits_of_one_client_are_bounded() -> None:
    """The second is told at once, others may still wait."""
    async with a_gateway(max_waiters_of_client=1) as gateway:
        wire = await a_wire(gateway)
        await wire.send(a_post(path=b"/v1/runs?wait=60s"))
        async with asyncio.timeout(20):
            while not gateway.count("waiters"):
                await asyncio.sleep(0.01)
        assert not gateway.watches.full
        assert gateway.watches.full_for("127.0.0.1")
        assert not gateway.watches.full_for("192.0.2.1")
        assert (await gateway.submit(query="?wait=60s")).status == 202
        gateway.watches.release_all()
        wire.close()


EARLY = {
    "404": (a_post(path=b"/nowhere"), 404),
    "405": (a_post(path=b"/v1/step-types"), 405),
    "400": (a_post(path=b"/v1/runs?wait=1s&wait=2s"), 400),
    "403": (a_post(b"Sec-Fetch-Site: cross-site"), 403),
    "413": (a_post(b"Content-Length: 3000000", body=b"x" * 3_000_000), 413),
    "415": (a_post(b"Content-Encoding: br"), 415),
    "417": (a_post(b"Expect: tea"), 417),
}


@pytest.mark.parametrize(("early", "status"), EARLY.values(), ids=list(EARLY))
async def test_after_an_early_answer_the_connection_works_or_said_that_it_will_not(
    gateway: Bench, early: bytes, status: int
) -> None:
    """Nobody's next request is lost without a word."""
    wire = await a_wire(gateway)
    sending = asyncio.create_task(wire.send(early))
    answer = await wire.answer()
    assert answer.status == status
    await sending
    if answer.headers.get("connection") != "close":
        await wire.send(a_post())
        assert (await wire.answer()).status == 202
    wire.close()


async def test_after_429_the_connection_works() -> None:
    """The client may come back on it."""
    async with a_gateway(rate_limit=1) as gateway:
        wire = await a_wire(gateway)
        statuses = []
        for _ in range(3):
            await wire.send(a_post())
            statuses.append((await wire.answer()).status)
        wire.close()
    assert statuses == [202, 429, 429]


@pytest.mark.parametrize("count", [1, 3])
async def test_a_client_that_ends_its_half_is_answered(gateway: Bench, count: int) -> None:
    """All that it asked before, and then the connection is closed."""
    wire = await a_wire(gateway)
    wire.writer.write(a_post() * count)
    wire.writer.write_eof()
    assert [(await wire.answer()).status for _ in range(count)] == [202] * count
    assert await wire.ended() == b""
    wire.close()


@pytest.mark.parametrize("version", [b"0.9", b"1.0", b"1.2", b"2.0", b"3.7", b"1", b"x"])
async def test_other_versions_are_refused(gateway: Bench, version: bytes) -> None:
    """In HTTP/1.1."""
    answer = await sent(gateway, a_post(version=version))
    assert answer.line.startswith("HTTP/1.1 ")
    assert answer.status in (400, 505)
    answer.problem()
    assert gateway.log.records == []


async def test_a_probe_may_speak_http_1_0(gateway: Bench) -> None:
    """Load balancers do."""
    answer = await sent(gateway, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert answer.line == "HTTP/1.1 200 OK"


async def test_a_body_that_is_too_large_is_not_asked_for(gateway: Bench) -> None:
    """`Expect: 100-continue` gets 413 without a 100 before it, and 100 when the body is wanted."""
    answer = await sent(gateway, a_post(b"Expect: 100-continue", b"Content-Length: 3000000", body=b""))
    assert answer.status == 413
    wire = await a_wire(gateway)
    await wire.send(a_post(b"Expect: 100-continue", b"Content-Length: %d" % len(BODY), body=b""))
    assert (await wire.answer()).line == "HTTP/1.1 100 Continue"
    await wire.send(BODY)
    assert (await wire.answer()).status == 202
    wire.close()


@pytest.mark.parametrize(
    "headers",
    [
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Content-Length: 5", b"Content-Length: 6"),
        (b"Transfer-Encoding: chunked, identity",),
        (b"Transfer-Encoding : chunked",),
        (b"Content-Length: +5",),
        (b"Content-Length: 0x5",),
    ],
)
async def test_shapes_of_request_smuggling_are_refused_and_close(gateway: Bench, headers: tuple[bytes, ...]) -> None:
    """What follows on the connection is never a request."""
    wire = await a_wire(gateway)
    await wire.send(a_post(*headers, body=b"0\r\n\r\n") + a_post())
    answer = await wire.answer()
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    answer.problem()
    assert await wire.ended() == b""
    assert gateway.log.records == []
    wire.close()


async def test_a_run_is_found_by_its_id_in_capitals(gateway: Bench) -> None:
    """Hexadecimal digits have no case (RFC 9562)."""
    run_id = (await (await gateway.submit()).json())["id"]
    answer = await gateway.client.get(f"/v1/runs/{run_id.upper()}")
    assert (answer.status, (await answer.json())["id"]) == (200, run_id)


async def test_wait_is_given_once(gateway: Bench) -> None:
    """Of two, nobody knows which is meant."""
    assert (await gateway.submit(query="?wait=1s&wait=2s")).status == 400
    assert (await gateway.client.get("/v1/runs/x?wait=1s&wait=1s")).status == 400
