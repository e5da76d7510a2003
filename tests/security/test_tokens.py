"""Part 3: a token opens what its issuer signed it for, and nothing else opens anything."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from structlog.stdlib import get_logger

from anabranch.services.gateway.issuer import COOLDOWN_S, Issuer, IssuerAway, IssuerKeys, keys_of
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.services.gateway.tokens import Tokens, claim, scopes_of
from anabranch.shared.contracts.limits import MAX_JWKS_BYTES, MAX_TOKEN_CHARS
from anabranch.shared.runtime.metrics import new_registry
from tests.security.issuers import (
    AUDIENCE,
    ISSUER,
    AnIssuer,
    a_private_key,
    a_token,
    an_issuer,
    by_hand,
    claims,
    jwk_of,
    packed,
    pem_of,
)
from tests.security.test_api_keys import a_key
from tests.unit.gateway.fakes import Bench, a_gateway, problem

NOW = int(time.time())
HOUR = 3600


class Clock:
    """A clock that stands until it is told to go on."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


@asynccontextmanager
async def a_guarded_gateway(auth: str = "jwt", **overrides: Any) -> AsyncIterator[tuple[Bench, AnIssuer, Clock]]:
    clock = Clock()
    async with an_issuer() as issuer:
        told = {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_jwks_url": f"{issuer.url}/jwks"}
        async with a_gateway(auth=auth, monotonic_s=clock, **(told | overrides)) as gateway:
            yield gateway, issuer, clock


async def status(gateway: Bench, token: str) -> int:
    answer = await gateway.client.get("/v1/step-types", headers={"Authorization": f"Bearer {token}"})
    if answer.status == 401:
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert (await problem(answer))["detail"] == "This needs a bearer token that works."
    return answer.status


async def test_a_token_of_the_issuer_is_let_in_as_its_tenant() -> None:
    """Its scopes are its own, and its signature is checked once."""
    async with a_guarded_gateway() as (gateway, issuer, _):
        headers = {"Authorization": f"Bearer {a_token()}"}
        assert [(await gateway.submit(headers=headers)).status for _ in range(3)] == [202, 202, 202]
        assert gateway.log.submitted[0].tenant == "acme"
        assert issuer.asked == 1
        assert await status(gateway, a_token(scope="submit")) == 403
        assert await status(gateway, a_token(scope=["read"])) == 200
        assert await status(gateway, a_token(scope=None)) == 403
        assert await status(gateway, "") == 401


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "ES384", "ES512", "EdDSA"])
async def test_each_asymmetric_algorithm_can_be_allowed(algorithm: str) -> None:
    """By keys that name their algorithm and by keys that do not."""
    async with a_guarded_gateway(jwt_algorithms=algorithm) as (gateway, issuer, _):
        issuer.keys = [jwk_of("a", algorithm), jwk_of("b", algorithm, alg=algorithm)]
        assert [await status(gateway, a_token(kid, algorithm)) for kid in ("a", "b")] == [200, 200]


FORGED: dict[str, Any] = {
    "alg none": lambda: by_hand({"alg": "none", "typ": "JWT"}),
    "alg None with a key": lambda: by_hand({"alg": "None", "kid": "one"}),
    "alg nOnE": lambda: by_hand({"alg": "nOnE", "kid": "one"}, signature=b"x" * 64),
    "no alg": lambda: by_hand({"kid": "one"}, signature=b"x" * 64),
    "alg is a list": lambda: by_hand({"alg": ["ES256"], "kid": "one"}, signature=b"x" * 64),
    "the public key as a secret": lambda: by_hand({"alg": "HS256", "kid": "one"}, secret=pem_of("one", "ES256")),
    "the public RSA key as a secret": lambda: by_hand({"alg": "HS256", "kid": "rsa"}, secret=pem_of("rsa", "RS256")),
    "a listed secret": lambda: by_hand({"alg": "HS256", "kid": "secret"}, secret=b"0" * 32),
    "another's key": lambda: jwt.encode(claims(), a_private_key("x", "ES256"), "ES256", headers={"kid": "one"}),
    "a key of its own": lambda: a_token("x", headers={"kid": "x", "jwk": jwk_of("x", "ES256")}),
    "a key of its own, by URL": lambda: a_token("x", headers={"jku": "http://127.0.0.1:1/", "x5u": "http://[::1]/"}),
    "an algorithm that is not allowed": lambda: a_token("one", "ES384"),
    "a key that is to encrypt": lambda: a_token("enc"),
    "a key for another algorithm": lambda: a_token("rsa", "PS256"),
    "a short key": lambda: a_token("short", "RS256"),
    "no signature": lambda: a_token().rpartition(".")[0] + ".",
    "a signature of nothing": lambda: by_hand({"alg": "ES256", "kid": "one"}, signature=bytes(64)),
    "another audience": lambda: a_token(aud="billing"),
    "no audience": lambda: a_token(aud=None),
    "other audiences": lambda: a_token(aud=["a", "b"]),
    "another issuer": lambda: a_token(iss="https://issuer.example/other"),
    "an issuer with a slash": lambda: a_token(iss=ISSUER + "/"),
    "no issuer": lambda: a_token(iss=None),
    "expired": lambda: a_token(exp=NOW - 60),
    "no expiry": lambda: a_token(exp=None),
    "an odd expiry": lambda: a_token(exp="tomorrow"),
    "an endless expiry": lambda: a_token(exp=float("inf")),
    "an expiry that is no number": lambda: a_token(exp=float("nan")),
    "not yet": lambda: a_token(nbf=int(time.time()) + HOUR),
    "made in the future": lambda: a_token(iat=int(time.time()) + HOUR),
    "nobody's": lambda: a_token(sub=None),
    "an empty subject": lambda: a_token(sub=""),
    "an odd subject": lambda: a_token(sub="a\x00b"),
    "a long subject": lambda: a_token(sub="a" * 300),
    "no tenant": lambda: a_token(tenant=None),
    "an empty tenant": lambda: a_token(tenant=""),
    "a tenant that is no text": lambda: a_token(tenant=["acme"]),
    "half a character as a tenant": lambda: a_token(tenant="\ud800"),
    "a line as a tenant": lambda: a_token(tenant="a\nb"),
    "a token to log out": lambda: a_token(headers={"typ": "logout+jwt"}),
    "a critical header": lambda: a_token(headers={"crit": ["exp2"], "exp2": 1}),
    "a detached payload": lambda: by_hand({"alg": "ES256", "kid": "one", "b64": False, "crit": ["b64"]}),
    "five parts": lambda: a_token() + ".a.b",
    "dots": lambda: "...",
    "a deep head": lambda: packed(b"[" * 5000) + ".e30.e30",
    "a head with a huge number": lambda: packed(b'{"alg":' + b"9" * 5000 + b"}") + ".e30.e30",
    "a head that is a list": lambda: packed([1]) + ".e30.e30",
    "a key id that is a number": lambda: by_hand({"alg": "ES256", "kid": 1}, signature=bytes(64)),
    "garbage": lambda: "\x21" * 2000,
}  # fmt: skip


async def test_what_is_forged_or_for_somebody_else_is_401() -> None:
    """Each of them answered with the same words, and none of them with an error of ours."""
    async with a_guarded_gateway(jwt_algorithms="RS256, PS256, ES256") as (gateway, issuer, _):
        secret = {"kty": "oct", "kid": "secret", "k": packed(b"0" * 32), "alg": "HS256"}
        issuer.keys = [
            jwk_of("one", "ES256"), jwk_of("enc", "ES256", use="enc"), jwk_of("rsa", "RS256", alg="RS256"), secret,
            jwk_of("short", "RS256"), {"kty": "EC"}, 7, {"kty": "RSA", "kid": "bad", "n": "!", "e": "AQAB"},
        ]  # fmt: skip
        found = {what: await status(gateway, make()) for what, make in FORGED.items()}
        assert {what: got for what, got in found.items() if got != 401} == {}
        assert await status(gateway, a_token()) == 200
        assert await status(gateway, a_token("rsa", "RS256")) == 200


async def test_a_huge_token_is_not_looked_at() -> None:
    """Not even its signature, which is right."""
    async with a_guarded_gateway() as (gateway, _, clock):
        tokens = a_reader(gateway.settings, clock)
        assert await tokens.principal(a_token(filling="x" * 100)) is not None
        assert await tokens.principal(a_token(filling="x" * MAX_TOKEN_CHARS)) is None


async def test_clocks_may_differ_a_little() -> None:
    """By the setting, in both directions."""
    async with a_guarded_gateway(jwt_skew_s=120) as (gateway, _, _):
        assert await status(gateway, a_token(exp=int(time.time()) - 60)) == 200
        assert await status(gateway, a_token(nbf=int(time.time()) + 100, iat=int(time.time()) + 100)) == 200
        assert await status(gateway, a_token(exp=NOW - 180)) == 401


def a_reader(told: GatewaySettings, clock: Clock, now_s: Any = time.time) -> Tokens:
    issuer = Issuer(told.jwt_issuer, told.jwt_jwks_url)
    metrics = GatewayMetrics(new_registry())
    keys = IssuerKeys(issuer.keys, told.jwt_allowed, metrics, get_logger(), monotonic_s=clock)
    return Tokens(keys, told, now_s=now_s)


async def test_a_remembered_token_still_expires() -> None:
    """What is known of it is known until then."""
    async with a_guarded_gateway(jwt_skew_s=0) as (gateway, _, clock):
        now = [time.time()]
        tokens, token = a_reader(gateway.settings, clock, lambda: now[0]), a_token(exp=NOW + HOUR)
        assert await tokens.principal(token) is not None
        now[0] = NOW + HOUR
        assert await tokens.principal(token) is None


# ---- The issuer's keys -----------------------------------------------------------------------------------------------


async def test_a_new_key_is_fetched_once_and_an_invented_one_is_not_asked_for_again() -> None:
    """Whoever invents key ids costs the issuer one request per cooldown."""
    async with a_guarded_gateway() as (gateway, issuer, clock):
        assert await status(gateway, a_token()) == 200
        clock.s += COOLDOWN_S
        invented = [a_token(f"invented {n}") for n in range(5)]
        assert [await status(gateway, token) for token in invented] == [401] * 5
        assert set(await asyncio.gather(*(status(gateway, token) for token in invented))) == {401}
        assert issuer.asked == 2
        issuer.keys = [jwk_of("two", "ES256")]
        assert (await status(gateway, a_token("two")), issuer.asked) == (401, 2)
        clock.s += COOLDOWN_S
        assert (await status(gateway, a_token("two")), issuer.asked) == (200, 3)


async def test_what_the_issuer_withdraws_does_not_work_from_memory() -> None:
    """A token that was let in before is checked again with the keys there are."""
    async with a_guarded_gateway() as (gateway, issuer, clock):
        token = a_token()
        assert await status(gateway, token) == 200
        issuer.keys = [jwk_of("two", "ES256")]
        clock.s += COOLDOWN_S
        assert await status(gateway, a_token("two")) == 200
        assert await status(gateway, token) == 401


async def test_while_the_issuer_is_away_its_keys_go_on_working() -> None:
    """Only a gateway that has never seen a key answers 503, and says when to come back."""
    async with a_guarded_gateway() as (gateway, issuer, clock):
        issuer.status = 500
        answer = await gateway.client.get("/v1/step-types", headers={"Authorization": f"Bearer {a_token()}"})
        assert (answer.status, answer.headers["Retry-After"]) == (503, "10")
        asked = issuer.asked
        clock.s += COOLDOWN_S
        for nobodys in ("garbage", by_hand({"alg": "HS256", "kid": "one"}, secret=pem_of("one", "ES256"))):
            assert (await status(gateway, nobodys), issuer.asked) == (401, asked)
        issuer.status = 200
        clock.s += COOLDOWN_S
        assert await status(gateway, a_token()) == 200
        issuer.status = 500
        clock.s += COOLDOWN_S
        assert await status(gateway, a_token("new")) == 401
        assert await status(gateway, a_token(jti="another")) == 200
        assert gateway.count("issuer_requests_total", outcome="failed") == 2
        assert gateway.count("issuer_requests_total", outcome="answered") == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b'{"keys": []' + b" " * MAX_JWKS_BYTES + b"}"), (200, b"[" * 2000), (200, b"{"), (200, b"[]"),
        (200, b'{"keys": {}}'), (200, b"{}"), (302, b""), (404, b"{}"), (200, b""),
    ],
)  # fmt: skip
async def test_an_answer_that_is_no_list_of_keys_is_none(status: int, body: bytes) -> None:
    """Neither a huge one nor a redirect, which would let another say whose keys these are."""
    async with an_issuer() as issuer:
        issuer.status, issuer.body = status, body
        with pytest.raises(IssuerAway):
            await Issuer("", f"{issuer.url}/jwks").keys()
        assert issuer.asked == 1


async def test_an_issuer_that_is_not_there_is_away() -> None:
    """Nothing else is raised."""
    with pytest.raises(IssuerAway):
        await Issuer("", "http://127.0.0.1:1/jwks").keys()


async def test_the_issuer_describes_where_its_keys_are() -> None:
    """Unless it calls itself by another name."""
    async with an_issuer() as issuer:
        found = await Issuer(issuer.url, "").keys()
        assert [key["kid"] for key in found] == ["one"]
        issuer.names_itself = "https://another.example"
        with pytest.raises(IssuerAway, match="another issuer"):
            await Issuer(issuer.url, "").keys()


def test_keys_that_cannot_be_used_say_nothing_against_others() -> None:
    """A private half is not read; a second key of the same id does not replace the first."""
    listed = [
        None, {}, {"kty": 1}, {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, {"kty": "OKP", "crv": "X25519"},
        jwk_of("one", "ES256", d="AAAA"), jwk_of("two", "ES256") | {"kid": "one"}, jwk_of("rs", "RS256"),
    ]  # fmt: skip
    found = keys_of(listed, frozenset({"ES256", "RS256"}))
    assert set(found) == {("one", "ES256"), ("rs", "RS256")}
    assert found["one", "ES256"].key.public_numbers() == a_private_key("one", "ES256").public_key().public_numbers()


async def test_a_token_without_a_key_id_fits_the_only_key() -> None:
    """Of two it would be a guess."""
    async with a_guarded_gateway() as (gateway, issuer, clock):
        assert await status(gateway, a_token(None)) == 200
        issuer.keys = [jwk_of("one", "ES256"), jwk_of("two", "ES256")]
        clock.s += COOLDOWN_S
        assert await status(gateway, a_token("two")) == 200
        assert await status(gateway, a_token(None)) == 401


# ---- Claims and settings ---------------------------------------------------------------------------------------------


async def test_tenant_and_scopes_come_from_the_claims_that_are_named() -> None:
    """By name or by JSON Pointer, with a prefix that sets our scopes apart from others'."""
    told = {"jwt_tenant_claim": "https://a.example/org", "jwt_scope_claim": "/realm/roles", "jwt_scope_prefix": "anb:"}
    async with a_guarded_gateway(**told) as (gateway, _, _):
        named = {"https://a.example/org": "umbrella", "tenant": None}
        token = a_token(realm={"roles": ["anb:submit", "read", "admin", 7]}, scope="admin", **named)
        assert (await gateway.submit(headers={"Authorization": f"Bearer {token}"})).status == 202
        assert gateway.log.submitted[0].tenant == "umbrella"
        assert await status(gateway, token) == 403


def test_a_claim_is_found_by_name_or_by_pointer() -> None:
    """What is not there is none."""
    found = {"a": {"b/c": [1], "~": 2}, "a.b": 3, "": 4}
    assert [claim(found, name) for name in ("a.b", "/a/b~1c", "/a/~0", "/a/x", "/a/b~1c/0", "x", "/")] == [
        3, [1], 2, None, None, None, 4,
    ]  # fmt: skip


@pytest.mark.parametrize("given", [None, 7, {"submit": 1}, [["submit"]], "", "SUBMIT submitter", [None]])
def test_an_odd_scope_opens_nothing(given: Any) -> None:
    """Of a wrong type, or a word that is almost one of ours."""
    assert scopes_of(given, "") == frozenset()


async def test_with_both_either_opens_and_with_one_the_other_does_not() -> None:
    """A key is told from a token by its beginning."""
    found = {}
    for auth in ("both", "jwt", "keys"):
        async with a_guarded_gateway(auth) as (gateway, _, _):
            answers = []
            for credential in (a_key(gateway)[0], a_token(), "anb_x", "x.y.z"):
                headers = {"Authorization": f"Bearer {credential}"}
                answers.append((await gateway.client.get("/v1/step-types", headers=headers)).status)
            found[auth] = answers
    assert found == {"both": [200, 200, 401, 401], "jwt": [401, 200, 401, 401], "keys": [200, 401, 401, 401]}


async def test_each_subject_is_limited_for_itself() -> None:
    """By its subject, not by its token."""
    async with a_guarded_gateway(read_rate_limit=1) as (gateway, _, _):
        tokens = (a_token(jti="1"), a_token(jti="2"), a_token(sub="bob"))
        assert [await status(gateway, token) for token in tokens] == [200, 429, 200]


TOLD: dict[str, Any] = {"auth": "jwt", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}


@pytest.mark.parametrize(
    "wrong",
    [
        {"jwt_algorithms": "HS256"}, {"jwt_algorithms": "RS256, none"}, {"jwt_algorithms": ""}, {"jwt_audience": ","},
        {"jwt_issuer": ""}, {"jwt_issuer": "http://issuer.example"}, {"jwt_jwks_url": "http://issuer.example/jwks"},
        {"jwt_jwks_url": "https://a:b@issuer.example/jwks"}, {"jwt_jwks_url": "file:///etc/passwd"}, {"jwt_skew_s": -1},
    ],
)  # fmt: skip
def test_settings_that_would_let_anybody_in_are_refused(wrong: dict[str, Any]) -> None:
    """Shared secrets, keys over plain HTTP, tokens that are for anybody."""
    with pytest.raises(ValidationError):
        GatewaySettings(**(TOLD | wrong))
    assert GatewaySettings(http_host="0.0.0.0", **TOLD).takes_tokens


# ---- Anything at all -------------------------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_HEADS = st.fixed_dictionaries(
    {},
    optional={
        "alg": st.sampled_from(["ES256", "none", "HS256"]) | _JSON, "kid": st.sampled_from(["one", ""]) | _JSON,
        "typ": _JSON, "crit": _JSON, "b64": _JSON, "jwk": _JSON,
    },
)  # fmt: skip
PARTS = st.one_of(_HEADS.map(packed), _JSON.map(packed), st.binary(max_size=80).map(packed), st.text(max_size=20))
UNSIGNED = st.one_of(st.lists(PARTS, max_size=5).map(".".join), st.text(max_size=200))
SIGNED = st.dictionaries(st.sampled_from([*claims(), "jti"]), _JSON, max_size=3)


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(text=UNSIGNED, changed=SIGNED)
async def test_whatever_is_sent_as_a_token_is_answered(text: str, changed: dict[str, Any]) -> None:
    """Garbage is nobody; odd claims in a token that is signed are nobody, or somebody with a tenant."""

    async def keys() -> list[Any]:
        return [jwk_of("one", "ES256")]

    told = GatewaySettings(**TOLD)
    issuer_keys = IssuerKeys(keys, told.jwt_allowed, GatewayMetrics(new_registry()), get_logger())
    tokens = Tokens(issuer_keys, told)
    assert await tokens.principal(text) is None
    signed = jwt.PyJWS().encode(
        json.dumps(claims() | changed).encode(), a_private_key("one", "ES256"), "ES256", {"kid": "one"}
    )
    principal = await tokens.principal(signed)
    assert principal is None or (principal.tenant.isprintable() and principal.tenant)
