"""Part 2 and CORS: what pages of other sites cannot do, and what every answer says to browsers."""

import asyncio

import pytest

from anabranch.services.gateway.headers import SECURITY_HEADERS
from anabranch.services.gateway.settings import GatewaySettings
from tests.security.wire import a_post, sent
from tests.unit.gateway.fakes import Bench, a_gateway, problem

REQUESTS = {
    "accepted": a_post(),
    "invalid": a_post(body=b"{}"),
    "404": b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n",
    "405": b"DELETE /v1/runs HTTP/1.1\r\nHost: x\r\n\r\n",
    "no such run": b"GET /v1/runs/0 HTTP/1.1\r\nHost: x\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x00\xa5\r\n\r\n",
    "a bad header": b"GET / HTTP/1.1\r\nHost: x\r\n : y\r\n\r\n",
    "a bad length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a long line": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "an unknown expectation": a_post(b"Expect: tea"),
    "an unknown expectation nowhere": a_post(b"Expect: tea", path=b"/nowhere"),
    "HTTP/1.0": a_post(version=b"1.0"),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=list(REQUESTS))
async def test_every_answer_has_the_security_headers(gateway: Bench, request_: bytes) -> None:
    """Errors included, those of the HTTP parser too; no version is told."""
    answer = await sent(gateway, request_)
    assert answer.line.startswith("HTTP/1.1 ")
    assert {name: answer.headers.get(name.lower()) for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert "x-request-id" in answer.headers
    assert "aiohttp" not in str(answer.headers).lower()
    if answer.status >= 400:
        answer.problem()


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Origin": "http://["},
        {"Origin": "http://[::1"},
        {"Origin": "http://\u2100.example"},
    ],
)
async def test_a_page_of_another_site_cannot_change_anything(gateway: Bench, headers: dict[str, str]) -> None:
    """It is refused before anything is read."""
    answer = await gateway.submit(headers=headers)
    assert answer.status == 403
    assert (await problem(answer))["type"] == "urn:anabranch:problem:forbidden"
    assert gateway.log.records == []
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_a_page_of_this_host_may(gateway: Bench) -> None:
    """And so may a person who types an address, and what is no browser."""
    own = f"http://{gateway.client.host}:{gateway.client.port}"
    for headers in ({"Sec-Fetch-Site": "same-origin", "Origin": own}, {"Origin": own}, {"Sec-Fetch-Site": "none"}, {}):
        assert (await gateway.submit(headers=headers)).status == 202


async def test_no_origin_is_allowed_by_default(gateway: Bench) -> None:
    """A preflight is an unknown method like any other."""
    headers = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    answer = await gateway.client.options("/v1/runs", headers=headers)
    assert answer.status == 405
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert GatewaySettings().cors_origins == ""


async def test_an_allowed_origin_may_read_and_change() -> None:
    """And no other; caches keep the answers apart."""
    async with a_gateway(cors_origins="https://a.example, http://localhost:3000") as gateway:
        a = {"Origin": "https://a.example", "Sec-Fetch-Site": "cross-site"}
        preflight = await gateway.client.options("/v1/runs", headers=a | {"Access-Control-Request-Method": "POST"})
        assert (preflight.status, preflight.headers["Access-Control-Allow-Origin"]) == (204, "https://a.example")
        answer = await gateway.submit(headers=a)
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (202, "https://a.example")
        assert answer.headers["Vary"] == "Origin"
        assert (await gateway.submit(headers=a | {"Origin": "https://b.example"})).status == 403


async def test_an_origin_without_end_is_not_said_back() -> None:
    """Where every origin is allowed, an answer's head would be as long as the client likes."""
    async with a_gateway(cors_origins="*") as gateway:
        answer = await gateway.submit(headers={"Origin": "https://a.example"})
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (202, "https://a.example")
        answer = await gateway.submit(headers={"Origin": "https://" + 4_000 * "x"})
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert answer.status == 403


@pytest.mark.parametrize("text", ["a.example", "https://a.example/", "https://a.example/x", "file://x", "null"])
def test_a_setting_that_names_no_origin_is_refused_at_the_start(text: str) -> None:
    """A slash too many would match nobody."""
    with pytest.raises(ValueError, match="no origin"):
        GatewaySettings(cors_origins=text)


async def test_two_requests_at_once_do_not_share_headers(gateway: Bench) -> None:
    """Each has the id that it came with."""
    answers = await asyncio.gather(*(gateway.submit(headers={"X-Request-ID": f"r-{n}"}) for n in range(5)))
    assert [answer.headers["X-Request-ID"] for answer in answers] == [f"r-{n}" for n in range(5)]
