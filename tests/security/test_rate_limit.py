"""Part 1: nobody takes more than his share."""

import asyncio
from typing import Any

import pytest
from multidict import CIMultiDict

from anabranch.services.gateway.addresses import Addresses, networks_of
from anabranch.services.gateway.rate_limit import Standing, Window, standing_of
from anabranch.services.gateway.settings import GatewaySettings
from tests.unit.gateway.fakes import FakeRedis, a_gateway, problem


async def test_the_request_over_the_limit_is_429_and_says_when_to_come_back() -> None:
    """With the headers of the IETF's draft; reads are counted apart."""
    async with a_gateway(rate_limit=3, read_rate_limit=600) as gateway:
        answers = [await gateway.submit() for _ in range(4)]
        read = await gateway.client.get("/v1/step-types")
        document = await problem(answers[3])
    assert [answer.status for answer in answers] == [202, 202, 202, 429]
    assert document["type"] == "urn:anabranch:problem:too-many-requests"
    assert 1 <= int(answers[3].headers["Retry-After"]) <= 60
    assert answers[3].headers["RateLimit-Policy"] == '"change";q=3;w=60'
    assert answers[3].headers["RateLimit"].startswith('"change";r=0;t=')
    assert answers[0].headers["RateLimit"].startswith('"change";r=2;t=')
    assert read.status == 200
    assert read.headers["RateLimit-Policy"] == '"read";q=600;w=60'
    assert len(gateway.log.records) == 3


def test_the_defaults_are_those_of_the_issue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty changes, six hundred reads, nobody's `X-Forwarded-For`."""
    monkeypatch.delenv("ANABRANCH_RATE_LIMIT")
    monkeypatch.delenv("ANABRANCH_READ_RATE_LIMIT")
    settings = GatewaySettings()
    assert (settings.rate_limit, settings.read_rate_limit, settings.trusted_proxies) == (60, 600, "")


async def test_probes_are_never_limited() -> None:
    """An orchestrator of containers asks often."""
    async with a_gateway(read_rate_limit=1) as gateway:
        unknown = [(await gateway.client.get("/nowhere")).status for _ in range(2)]
        probes = [(await gateway.client.get("/healthz")).status for _ in range(3)]
    assert (unknown, probes) == ([404, 429], [200, 200, 200])


async def test_a_tenant_may_have_limits_of_its_own() -> None:
    """Per route class; what is not named is as for everybody."""
    limits: Any = {"default": {"change": 1}}
    async with a_gateway(rate_limit=50, tenant_rate_limits=limits) as gateway:
        assert [(await gateway.submit()).status for _ in range(2)] == [202, 429]
        assert (await gateway.client.get("/v1/step-types")).status == 200


async def test_without_redis_the_process_counts_alone_and_nobody_gets_a_5xx() -> None:
    """It is counted in a metric, and Redis is asked again after a pause only."""
    redis = FakeRedis()
    redis.down = True
    async with a_gateway(redis, rate_limit=3) as gateway:
        statuses = [(await gateway.submit()).status for _ in range(5)]
        assert statuses == [202, 202, 202, 429, 429]
        assert gateway.count("redis_errors_total", use="rate_limit") == 1


async def test_redis_is_asked_once_per_request_and_not_for_what_is_refused_anyway() -> None:
    """A flood over the limit costs no round trips."""
    redis = FakeRedis()
    async with a_gateway(redis, rate_limit=2) as gateway:
        for _ in range(10):
            await gateway.submit()
    assert redis.calls == 3


async def test_a_large_limit_is_taken_in_portions_and_stays_exact_in_sum() -> None:
    """A thousandth at once: 3,000 a minute ask every third time."""
    redis = FakeRedis()
    async with a_gateway(redis, rate_limit=3000) as gateway:
        answers = await asyncio.gather(*(gateway.submit() for _ in range(30)))
    assert {answer.status for answer in answers} == {202}
    assert redis.calls <= 12


# ---- Who is counted --------------------------------------------------------------------------------------------------


async def test_a_client_cannot_name_itself_another() -> None:
    """`X-Forwarded-For` of somebody who is no trusted proxy is nothing."""
    async with a_gateway(rate_limit=1) as gateway:
        statuses = [(await gateway.submit(headers={"X-Forwarded-For": f"198.51.100.{n}"})).status for n in range(3)]
    assert statuses == [202, 429, 429]


async def test_behind_a_trusted_proxy_each_client_is_counted() -> None:
    """By the rightmost hop that nobody vouches for: what is left of it the client wrote."""
    async with a_gateway(rate_limit=1, trusted_proxies="127.0.0.0/8, 10.0.0.0/8") as gateway:

        async def status(forwarded: str) -> int:
            answer: int = (await gateway.submit(headers={"X-Forwarded-For": forwarded})).status
            return answer

        assert await status("198.51.100.1") == 202
        assert await status("198.51.100.2, 10.1.1.1") == 202
        assert await status("1.2.3.4, 198.51.100.1") == 429
        assert await status("5.6.7.8, 198.51.100.2, 10.9.9.9") == 429


class _Request:
    def __init__(self, remote: str, forwarded: str) -> None:
        self.remote = remote
        self.headers = CIMultiDict({"X-Forwarded-For": forwarded} if forwarded else {})


@pytest.mark.parametrize(
    ("remote", "forwarded", "counted"),
    [
        ("2001:db8:1:2:3::1", "", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::9", "", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "", "192.0.2.1"),
        ("fe80::1%eth0", "", "fe80::/64"),
        ("10.0.0.1", "[2001:db8::1]:443", "2001:db8::/64"),
        ("10.0.0.1", "192.0.2.9:4711", "192.0.2.9"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.9, nonsense, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "10.0.0.3", "10.0.0.3"),
        ("::ffff:10.0.0.1", "192.0.2.9", "192.0.2.9"),
        ("", "192.0.2.9", "local"),
    ],
)
def test_an_address_is_counted_as(remote: str, forwarded: str, counted: str) -> None:
    """IPv6 by /64, IPv4 in IPv6 as IPv4, ports left aside, nonsense not believed."""
    found = Addresses(networks_of("10.0.0.0/8")).client(_Request(remote, forwarded))  # type: ignore[arg-type]
    assert found == counted


@pytest.mark.parametrize(
    ("window", "reset_s"),
    [
        (Window(False, 0, 0, 60, 90_000), 30),
        (Window(False, 60, 45_000, 15, 105_000), 0.001),
        (Window(False, 60, 60_000, 30, 119_000), 30),
    ],
)
def test_a_refusal_says_when_the_next_request_may_come(window: Window, reset_s: float) -> None:
    """When the window moves on, or when enough of the one before counts no more."""
    assert standing_of(60, window) == Standing(60, False, 0, reset_s)
