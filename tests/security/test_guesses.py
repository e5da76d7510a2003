"""Part 3: credentials are not guessed without end, and whoever guesses locks nobody else out."""

import secrets
from typing import Any

import pytest

from anabranch.services.gateway.guesses import Guesses
from anabranch.services.gateway.problems import ProblemError
from anabranch.services.gateway.rate_limit import Standing
from tests.security.test_api_keys import a_key
from tests.security.test_tokens import Clock, a_guarded_gateway, a_token
from tests.security.wire import a_post, a_wire
from tests.unit.gateway.fakes import Bench, FakeRedis, a_gateway, problem


async def status(gateway: Bench, key: str | None, **headers: str) -> int:
    sent = headers | ({"X-API-Key": key} if key else {})
    answer = await gateway.client.get("/v1/step-types", headers=sent)
    if answer.status == 429:
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        assert (await problem(answer))["type"] == "urn:anabranch:problem:too-many-requests"
    return int(answer.status)


def a_guess() -> str:
    return f"anb_{secrets.token_hex(8)}_{secrets.token_hex(32)}"


async def test_guesses_over_the_limit_are_429_and_not_looked_at() -> None:
    """Not even the right one, unless it had worked from there before."""
    async with a_gateway(auth="keys", auth_failure_limit=3) as gateway:
        old, new = a_key(gateway)[0], a_key(gateway)[0]
        assert await status(gateway, old) == 200
        assert [await status(gateway, a_guess()) for _ in range(5)] == [401, 401, 401, 429, 429]
        assert [await status(gateway, key) for key in (old, new)] == [200, 429]
        assert (await gateway.client.get("/healthz")).status == 200


async def test_a_key_that_worked_and_was_revoked_is_a_guess_like_others() -> None:
    """Having worked lets it be checked, not in."""
    async with a_gateway(auth="keys", auth_failure_limit=1) as gateway:
        key, issued = a_key(gateway)
        assert await status(gateway, key) == 200
        gateway.api_keys.take(issued.id.encode(), None)
        assert [await status(gateway, each) for each in (a_guess(), a_guess(), key)] == [401, 429, 429]


async def test_each_address_guesses_for_itself() -> None:
    """By the address that the rate limit counts, too."""
    async with a_gateway(auth="keys", auth_failure_limit=1, trusted_proxies="127.0.0.0/8") as gateway:
        key = a_key(gateway)[0]
        one, other = {"X-Forwarded-For": "198.51.100.1"}, {"X-Forwarded-For": "198.51.100.2"}
        assert [await status(gateway, a_guess(), **one) for _ in range(2)] == [401, 429]
        assert await status(gateway, key, **one) == 429
        assert await status(gateway, key, **other) == 200


async def test_forged_tokens_are_guesses() -> None:
    """With any credentials, by either header."""
    async with a_guarded_gateway("both", auth_failure_limit=2) as (gateway, _, _):
        bad: list[Any] = [a_token(aud="x"), "garbage", a_guess()]
        found = [await status(gateway, None, Authorization=f"Bearer {each}") for each in bad]
    assert found == [401, 401, 429]


async def test_without_redis_guesses_are_counted_alone() -> None:
    """And nobody gets a 5xx."""
    redis = FakeRedis()
    redis.down = True
    async with a_gateway(redis, auth="keys", auth_failure_limit=2) as gateway:
        assert [await status(gateway, a_guess()) for _ in range(4)] == [401, 401, 429, 429]


async def test_a_flood_of_guesses_costs_no_round_trips() -> None:
    """What is refused anyway asks nobody."""
    redis = FakeRedis()
    async with a_gateway(redis, auth="keys", auth_failure_limit=2) as gateway:
        for _ in range(10):
            await status(gateway, a_guess())
    assert redis.calls == 3


class FullLimits:
    """Says that everything is too much, for a minute."""

    async def take_failure(self, _: str) -> Standing:
        return Standing(1, False, 0, 60.0)


async def test_after_its_time_an_address_is_looked_at_again() -> None:
    """When the limit says so."""
    clock = Clock()
    guesses = Guesses(FullLimits(), monotonic_s=clock)  # type: ignore[arg-type]
    with pytest.raises(ProblemError):
        await guesses.failed("192.0.2.1")
    with pytest.raises(ProblemError):
        guesses.look("192.0.2.1", "x")
    guesses.look("192.0.2.2", "x")
    clock.s += 60
    guesses.look("192.0.2.1", "x")


async def test_without_credentials_a_request_is_counted_like_any_other() -> None:
    """It is no guess: credentials that come later are looked at."""
    async with a_gateway(auth="keys", read_rate_limit=2, auth_failure_limit=1) as gateway:
        assert [await status(gateway, None) for _ in range(3)] == [401, 401, 429]
        assert await status(gateway, a_key(gateway)[0]) == 200


async def test_what_a_key_may_not_do_is_counted() -> None:
    """A client that goes on asking is told to wait."""
    async with a_gateway(auth="keys", read_rate_limit=2) as gateway:
        key = a_key(gateway, "submit")[0]
        assert [await status(gateway, key) for _ in range(3)] == [403, 403, 429]


async def test_after_401_403_and_429_the_connection_goes_on() -> None:
    """The body that nobody read does not become the next request."""
    async with a_gateway(auth="keys", auth_failure_limit=1) as gateway:
        good, reader = a_key(gateway)[0], a_key(gateway, "read")[0]
        wire = await a_wire(gateway)
        found = []
        for key in ("", good, a_guess(), reader, a_guess(), good):
            await wire.send(a_post(*([b"X-API-Key: " + key.encode()] if key else [])))
            answer = await wire.answer()
            assert answer.headers.get("connection", "").lower() != "close"
            found.append(answer.status)
        wire.close()
    assert found == [401, 202, 401, 403, 429, 202]
