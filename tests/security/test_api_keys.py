"""Part 3: who is nobody is let in nowhere, and who may not does not."""

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from anabranch.client.keys import new_key
from anabranch.services.gateway.api_keys import ApiKeys
from anabranch.services.gateway.route_classes import CLASSES, SCOPES, RouteClass
from anabranch.services.gateway.routes import ROUTES
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.shared.contracts.messages import API_KEYS, ApiKeyIssued
from tests.unit.gateway.fakes import Bench, a_gateway, problem

NOW_MS = 1_769_860_800_000


def give(api_keys: ApiKeys, issued: ApiKeyIssued) -> None:
    api_keys.take(issued.id.encode(), API_KEYS.dump_json(issued))


def a_key(gateway: Bench, *scopes: str, tenant: str = "acme", days: int | None = None) -> tuple[str, ApiKeyIssued]:
    text, issued = new_key(tenant=tenant, scopes=scopes or ("submit", "read"), name="", days=days, now_ms=NOW_MS)
    give(gateway.api_keys, issued)
    return text, issued


async def test_without_a_key_that_works_every_route_but_the_probes_is_401() -> None:
    """A missing, a wrong, a malformed and an unknown key are answered alike."""
    async with a_gateway(auth="keys") as gateway:
        text, issued = a_key(gateway)
        wrong = f"anb_{issued.id}_{'0' * 64}"
        unknown = f"anb_{'0' * 16}_{text[-64:]}"
        bad: list[dict[str, str]] = [
            {}, {"X-API-Key": wrong}, {"X-API-Key": unknown}, {"X-API-Key": "x"}, {"X-API-Key": text + "0"},
            {"Authorization": f"Basic {text}"}, {"Authorization": f"Bearer {wrong}"}, {"X-API-Key": issued.hash},
        ]  # fmt: skip
        said = set()
        for headers in bad:
            answers = [await gateway.submit(headers=headers)]
            for path in ("/v1/step-types", "/v1/runs/x", "/nowhere"):
                answers.append(await gateway.client.get(path, headers=headers))
            for answer in answers:
                assert answer.status == 401, (headers, answer.status)
                assert answer.headers["WWW-Authenticate"].startswith("Bearer")
                said.add((await problem(answer))["detail"])
        assert len(said) == 1
        assert gateway.log.records == []
        assert (await gateway.client.get("/healthz")).status == 200


@pytest.mark.parametrize("header", [b"X-API-Key: \xff", b"Authorization: Bearer \xff"])
async def test_a_key_of_odd_bytes_is_401(header: bytes) -> None:
    """Bytes that are no UTF-8 reach the hash as half surrogate pairs: sent raw, since clients refuse to."""
    async with a_gateway(auth="keys") as gateway:
        reader, writer = await asyncio.open_connection(gateway.client.host, gateway.client.port)
        writer.write(b"GET /v1/step-types HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n")
        status = await asyncio.wait_for(reader.readline(), 60)
        writer.close()
    assert status == b"HTTP/1.1 401 Unauthorized\r\n"


@pytest.mark.parametrize("scheme", ["X-API-Key", "Bearer", "bearer"])
async def test_a_key_that_works_is_let_in(scheme: str) -> None:
    """By either header, whose scheme has no case."""
    async with a_gateway(auth="keys") as gateway:
        text, _ = a_key(gateway)
        headers = {"X-API-Key": text} if scheme == "X-API-Key" else {"Authorization": f"{scheme} {text}"}
        assert (await gateway.submit(headers=headers)).status == 202
        assert gateway.log.submitted[0].tenant == "acme"


async def test_two_credentials_are_refused() -> None:
    """Which of them counts would be a guess."""
    async with a_gateway(auth="keys") as gateway:
        text, _ = a_key(gateway)
        answer = await gateway.submit(headers={"X-API-Key": text, "Authorization": f"Bearer {text}"})
        assert (answer.status, gateway.log.records) == (400, [])


async def test_a_scope_that_is_missing_is_403() -> None:
    """Reading is not submitting; `admin` is everything."""
    async with a_gateway(auth="keys") as gateway:
        found: dict[str, Any] = {}
        for scope in ("submit", "read", "operate", "admin"):
            headers = {"X-API-Key": a_key(gateway, scope)[0]}
            submitted = await gateway.submit(headers=headers)
            found[scope] = (submitted.status, (await gateway.client.get("/v1/step-types", headers=headers)).status)
    assert found == {"submit": (202, 403), "read": (403, 200), "operate": (403, 403), "admin": (202, 200)}


async def test_a_revoked_an_expired_and_an_unreadable_key_do_not_work() -> None:
    """Whatever cannot be understood of a key closes the door."""
    async with a_gateway(auth="keys") as gateway:
        kept, _ = a_key(gateway)
        revoked, issued = a_key(gateway)
        give(gateway.api_keys, issued.model_copy(update={"revoked_at": "2026-01-01T00:00:00Z"}))
        gone, removed = a_key(gateway)
        gateway.api_keys.take(removed.id.encode(), None)
        garbled, spoiled = a_key(gateway)
        with pytest.raises(ValueError, match="JSON"):
            gateway.api_keys.take(spoiled.id.encode(), b"{")
        expired, old = new_key(tenant="acme", scopes=("submit",), name="", days=1, now_ms=0)
        give(gateway.api_keys, old)
        keys = (kept, revoked, gone, garbled, expired)
        statuses = [(await gateway.submit(headers={"X-API-Key": key})).status for key in keys]
    assert statuses == [202, 401, 401, 401, 401]


async def test_nobody_is_let_in_before_the_keys_are_read() -> None:
    """A key that is not known yet may be revoked a record later."""
    async with a_gateway(auth="keys") as gateway:
        gateway.api_keys.complete = False
        assert (await gateway.submit(headers={"X-API-Key": a_key(gateway)[0]})).status == 503


async def test_each_key_is_limited_for_itself() -> None:
    """Two keys behind one address are two clients."""
    async with a_gateway(auth="keys", rate_limit=1) as gateway:
        one, other = a_key(gateway)[0], a_key(gateway)[0]
        statuses = [(await gateway.submit(headers={"X-API-Key": key})).status for key in (one, one, other)]
    assert statuses == [202, 429, 202]


def test_every_route_names_its_scope() -> None:
    """One that forgets to is for `admin` alone."""
    paths = {(route.method, route.path) for route in ROUTES}
    assert {each for each in paths if CLASSES.get(each) is not RouteClass.OPEN} <= SCOPES.keys()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "", "example.org"])
def test_a_gateway_that_strangers_reach_does_not_start_without_authentication(host: str) -> None:
    """Unless it is told twice."""
    for told in ({}, {"auth": "off"}, {"auth_off_is_meant": True}):
        with pytest.raises(ValidationError, match="ANABRANCH_AUTH=keys"):
            GatewaySettings(http_host=host, **told)
    GatewaySettings(http_host=host, auth="keys")
    GatewaySettings(http_host=host, auth="off", auth_off_is_meant=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_on_loopback_nobody_is_asked(host: str) -> None:
    """The local stack works without keys."""
    assert GatewaySettings(http_host=host).auth == "loopback"
