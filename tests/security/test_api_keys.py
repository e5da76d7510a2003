"""Part 3: who is nobody is let in nowhere, and who may not does not."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from structlog.stdlib import get_logger
from structlog.testing import capture_logs

from anabranch.client.keys import Found, new_key
from anabranch.services.gateway.api_keys import ApiKeyReader, ApiKeys
from anabranch.services.gateway.route_classes import CLASSES, SCOPES, RouteClass
from anabranch.services.gateway.routes import ROUTES
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.shared.contracts.messages import API_KEYS, ApiKeyIssued, ApiKeyUsed, use_key_of
from anabranch.shared.contracts.times import rfc3339
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


FORGED: list[dict[str, Any]] = [
    {"hash": "é" * 64}, {"hash": "\ud800"}, {"hash": ""}, {"hash": "0" * 63}, {"hash": "A" * 64}, {"tenant": ""},
    {"expires_at": "soon"}, {"expires_at": "2099-01-01T00:00:00"}, {"expires_at": "0001-01-01T00:00:00+23:59"},
    {"id": "0" * 16}, {"scopes": ["root"]}, {"type": "ApiKeyUsed", "used_at": "2026-01-01T00:00:00Z"},
]  # fmt: skip


@pytest.mark.parametrize("forged", FORGED, ids=str)
async def test_a_forged_record_is_passed_over_with_a_line(forged: dict[str, Any]) -> None:
    """Its key does not work, nothing is raised when somebody tries it, and other keys do."""
    async with a_gateway(auth="keys") as gateway:
        good, (text, issued) = a_key(gateway)[0], a_key(gateway)
        record = SimpleNamespace(
            key=issued.id.encode(), value=json.dumps(issued.model_dump(mode="json") | forged).encode()
        )
        with capture_logs() as said:
            reader = ApiKeyReader(None, "t", gateway.api_keys, get_logger())  # type: ignore[arg-type]
            reader.take(record)
        statuses = [(await gateway.submit(headers={"X-API-Key": key})).status for key in (text, good)]
    assert statuses == [401, 202]
    assert [line["key"] for line in said] == ([] if str(forged.get("expires_at")).startswith("0001") else [issued.id])


def test_a_use_is_noted_once_a_minute_for_all_gateways() -> None:
    """What another gateway noted counts, unless it lies in the future."""
    now, noted = [1000.0], list[tuple[str, float]]()
    api_keys = ApiKeys(lambda: now[0], used=lambda key_id, used_s: noted.append((key_id, used_s)))
    text, issued = new_key(tenant="acme", scopes=("read",), name="", days=None, now_ms=0)
    give(api_keys, issued)

    def use(at_s: float) -> int:
        now[0] = at_s
        assert api_keys.principal(text) is not None
        return len(noted)

    def elsewhere(at_s: float) -> None:
        used = ApiKeyUsed(id=issued.id, used_at=rfc3339(int(at_s * 1000)))
        api_keys.take(use_key_of(issued.id).encode(), API_KEYS.dump_json(used))

    assert [use(1000), use(1059), use(1060)] == [1, 1, 2]
    elsewhere(1060)
    now[0] = 1100
    elsewhere(1100)
    assert [use(1130), use(1160)] == [2, 3]
    elsewhere(9999)
    assert use(1220) == 4
    assert api_keys.principal(text[:-1] + "x") is None
    assert noted == [(issued.id, 1000.0), (issued.id, 1060.0), (issued.id, 1160.0), (issued.id, 1220.0)]


def test_a_use_does_not_bring_a_revoked_key_back() -> None:
    """It is a record of its own, and one under the key's own id takes the key away."""
    api_keys = ApiKeys()
    text, issued = new_key(tenant="acme", scopes=("read",), name="", days=None, now_ms=0)
    give(api_keys, issued.model_copy(update={"revoked_at": "2026-01-01T00:00:00Z"}))
    used = API_KEYS.dump_json(ApiKeyUsed(id=issued.id, used_at="2026-01-01T00:00:00Z"))
    api_keys.take(use_key_of(issued.id).encode(), used)
    assert api_keys.principal(text) is None
    give(api_keys, issued)
    with pytest.raises(ValueError, match="not that of a use"):
        api_keys.take(issued.id.encode(), used)
    assert api_keys.principal(text) is None


def test_the_command_line_reads_records_as_a_gateway_does() -> None:
    """A forged one takes its key away, a use does not."""
    _, issued = new_key(tenant="acme", scopes=("read",), name="", days=None, now_ms=0)
    used = API_KEYS.dump_json(ApiKeyUsed(id=issued.id, used_at="2026-01-01T00:00:00Z"))
    found = Found()
    found.take(issued.id, API_KEYS.dump_json(issued))
    found.take(use_key_of(issued.id), used)
    assert (found.issued, found.used_at) == ({issued.id: issued}, {issued.id: "2026-01-01T00:00:00Z"})
    for forged in (used, b"{", None):
        found.take(issued.id, API_KEYS.dump_json(issued))
        found.take(issued.id, forged)
        assert found.issued == {}


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
