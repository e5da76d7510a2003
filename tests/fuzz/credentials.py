"""What is fuzzed of tokens and API keys."""

import base64
import json
import time
from contextlib import AsyncExitStack
from typing import Any

import jwt
from hypothesis import strategies as st
from structlog.stdlib import get_logger

from anabranch.client.keys import new_key
from anabranch.services.gateway.issuer import IssuerKeys
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.principal import Principal
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.services.gateway.tokens import Tokens as TokenChecks
from anabranch.shared.contracts.limits import MAX_CLAIM_CHARS
from anabranch.shared.runtime.metrics import new_registry
from tests.fuzz.caller import FOLLOWING, Caller, check_answer
from tests.fuzz.guard import MeteredLoop, bounded, close
from tests.fuzz.target import Target
from tests.fuzz.values import Deep, Long, Wire, plain, scalars, wires
from tests.security.issuers import AUDIENCE, ISSUER, a_private_key, an_issuer, claims, jwk_of, pem_of
from tests.unit.gateway.fakes import a_gateway

_LARGE_CLAIMS = st.one_of(
    plain,
    st.builds(Deep, st.sampled_from((1, 60, 300, 1_000)), st.sampled_from(("list", "object")), scalars),
    st.builds(Long, st.sampled_from((255, 256, 4_000, 9_000)), st.sampled_from(("x", "ü", "\x00"))),
)
_TIMES = st.one_of(
    st.sampled_from((0, -1, 1, 2**31, 2**53, 2**63, 2**64, 10**18, 10**400, 1.5, 1e18, 1e308, float("inf"))),
    st.sampled_from((float("-inf"), float("nan"), True, False, None, "1", "9" * 400, "1e999", "1_0", " 1 ", [], {})),
    st.builds(lambda seconds: int(time.time()) + seconds, st.sampled_from((-3600, -31, -29, 0, 29, 31, 3600))),
)
_IS = {
    "exp": _TIMES,
    "nbf": _TIMES,
    "iat": _TIMES,
    "aud": st.one_of(
        st.sampled_from((AUDIENCE, [AUDIENCE], [AUDIENCE, 1], [], [[]], {AUDIENCE: 1}, "")), _LARGE_CLAIMS
    ),
    "iss": st.one_of(st.sampled_from((ISSUER, [ISSUER], ISSUER + "/", "")), _LARGE_CLAIMS),
    "sub": st.one_of(st.sampled_from(("alice", "", "a\nb", "\ud800", "a" * 255, "a" * 256, "\u202e")), _LARGE_CLAIMS),
    "tenant": st.one_of(st.sampled_from(("acme", "", "default", "a:b", "*", "\ud800", "\x00")), _LARGE_CLAIMS),
    "scope": st.one_of(
        st.sampled_from(("submit read", "admin", ["read"], [["read"]], {"read": 1}, "\ud800")), _LARGE_CLAIMS
    ),
    "jti": _LARGE_CLAIMS,
}
_CLAIMS = st.fixed_dictionaries({}, optional=_IS)
_HEADS = st.fixed_dictionaries(
    {},
    optional={
        "alg": st.one_of(
            st.sampled_from(
                ("ES256", "none", "None", "NONE", "HS256", "RS256", "es256", "ES256K", "EdDSA", "", "ES256\x00")
            ),
            _LARGE_CLAIMS,
        ),
        "kid": st.one_of(
            st.sampled_from(("one", "", "../one", "one\x00", "'; --", "\ud800", "x" * 4_000)), _LARGE_CLAIMS
        ),
        "typ": st.one_of(st.sampled_from(("JWT", "at+jwt", "logout+jwt", "jWt", "\ud800")), _LARGE_CLAIMS),
        "crit": st.one_of(st.sampled_from((["exp"], ["b64"], [], ["b64", "b64"], "b64", [1], [[]])), _LARGE_CLAIMS),
        "b64": st.sampled_from((True, False, None, 0)),
        "cty": _LARGE_CLAIMS,
        "zip": st.sampled_from(("DEF", 1)),
        "jwk": st.one_of(st.just({"kty": "oct", "k": "AAAA"}), _LARGE_CLAIMS),
        "jku": st.sampled_from(("http://169.254.169.254/", "file:///etc/passwd", 1)),
        "x5u": st.sampled_from(("http://127.0.0.1/", [])),
        "x5c": _LARGE_CLAIMS,
    },
)
_NO_DICT = st.one_of(scalars, st.lists(scalars, max_size=3), st.just(Deep(2_000, "list", 0)))
_ANY_HEAD = wires(st.one_of(_HEADS, _HEADS, _NO_DICT), most=0)
_ANY_CLAIMS = wires(st.one_of(_CLAIMS, _CLAIMS, _NO_DICT), most=0)
_SIGNATURES = st.sampled_from(("right", "right", "of another", "nothing", "zeros", "short", "long", "der", "hmac"))
_BASE64 = st.sampled_from(
    ("url", "url", "url", "padded", "standard", "spaces", "lines", "bad", "not ascii", "more bits")
)
_ALPHABET = st.sampled_from(("x", ".", "..", "=", "-", "_", "+", "/", "%", " ", "\x00", "é", "\ud800", "e30", "eyJ"))

_KEY_HARM = st.sampled_from(
    ("", "upper", "cut", "longer", "space", "line", "nul", "digits", "another id", "no prefix", "twice", "surrogate")
)


class Tokens(Target):
    """Tokens and API keys, forged, broken and signed with odd claims: nobody, or somebody with a name."""

    name = "tokens"
    cases = st.tuples(
        st.one_of(
            st.tuples(st.just("token"), _ANY_HEAD, _ANY_CLAIMS, _SIGNATURES, _BASE64),
            st.tuples(st.just("token"), st.just(Wire({})), _ANY_CLAIMS, st.just("right"), st.just("url")),
            st.tuples(
                st.just("text"), st.lists(_ALPHABET, max_size=12).map("".join), st.sampled_from((1, 1, 9, 3_000))
            ),
            st.tuples(st.just("key"), _KEY_HARM),
        ),
        st.sampled_from((b"Authorization: Bearer ", b"authorization: bearer  ", b"Authorization: ", b"X-API-Key: ")),
    )

    def open(self) -> None:
        self._loop = MeteredLoop(is_virtual=False)
        self._caller = Caller(self._loop)
        self._opened = AsyncExitStack()
        self._loop.run_until_complete(self._open())

    async def _open(self) -> None:
        issuer = await self._opened.enter_async_context(an_issuer())
        issuer.keys = [jwk_of("one", "ES256"), jwk_of("two", "ES256"), {"kty": "oct", "kid": "s", "k": "AAAA"}]
        told = {"auth": "both", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_jwks_url": f"{issuer.url}/jwks"}
        self._gateway = await self._opened.enter_async_context(a_gateway(**told))
        self._key, issued = new_key(tenant="acme", scopes=("read",), name="", days=None, now_ms=0)
        self._gateway.api_keys.take(issued.id.encode(), issued.model_dump_json().encode())

        async def listed() -> list[Any]:
            return issuer.keys

        settings = GatewaySettings(instance="fuzz", **told)  # type: ignore[arg-type]
        keys = IssuerKeys(listed, settings.jwt_allowed, GatewayMetrics(new_registry()), get_logger())
        self._tokens = TokenChecks(keys, settings)

    def close(self) -> None:
        self._loop.run_until_complete(self._opened.aclose())
        close(self._loop)

    def check(self, case: Any) -> None:
        (kind, *how), given_as = case
        payload = _claims_of(how[1]) if kind == "token" else b""
        match kind:
            case "token":
                text = _token(_head_of(how[0]), payload, how[2], how[3])
            case "text":
                text = how[0] * how[1]
            case _:
                text = _spoilt_key(self._key, how[0])
        self._loop.meter.begin_anew()
        with bounded("a turn of the gateway's loop") as meter:
            self._loop.run_until_complete(self._send(text, given_as, payload, kind == "key" and not how[0]))
            meter.held_s = self._loop.meter.held_s

    async def _send(self, text: str, given_as: bytes, payload: bytes, is_the_key: bool) -> None:
        principal = await self._tokens.principal(text)
        if principal is not None:
            _check_principal(principal, payload)
        assert (self._gateway.api_keys.principal(text) is not None) == is_the_key
        raw = text.encode("utf-8", "surrogatepass")
        request = b"GET /v1/step-types HTTP/1.1\r\nHost: x\r\n%b%b\r\n\r\n" % (given_as, raw)
        found = await self._caller.answers(self._gateway.client.server, request, is_head=False, then=FOLLOWING)
        assert found, f"no answer to {request!r}"
        for answer in found:
            check_answer(answer, request, frozenset(), is_head=False)
        works = is_the_key or principal is not None
        assert works or found[0].status in (400, 401, 431), f"{found[0].status} to {request!r}"


def _check_principal(principal: Principal, payload: bytes) -> None:
    """Fail unless a token may open something by what it says."""
    said = json.loads(payload)
    now_s = time.time()
    assert said["iss"] == ISSUER and AUDIENCE in ([said["aud"]] if isinstance(said["aud"], str) else said["aud"]), said
    assert now_s - 40 < float(said["exp"]) < float("inf"), said
    assert float(said.get("nbf") or 0) < now_s + 40, said
    for name in (principal.tenant, said["sub"]):
        assert isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_CLAIM_CHARS, said
    assert principal.tenant == said["tenant"], said


def _head_of(given: Wire) -> bytes:
    named = {"alg": "ES256", "kid": "one"}
    document = given.document
    return Wire(named | document if isinstance(document, dict) else document, given.harm).raw


def _claims_of(given: Wire) -> bytes:
    document = given.document
    return Wire(claims() | document if isinstance(document, dict) else document, given.harm).raw


def _token(head: bytes, payload: bytes, signature: str, how: str) -> str:
    signed = f"{_packed(head, how)}.{_packed(payload, how)}"
    raw = signed.encode("utf-8", "surrogatepass")
    algorithm = jwt.get_algorithm_by_name("ES256")
    made = {
        "right": lambda: algorithm.sign(raw, a_private_key("one", "ES256")),
        "of another": lambda: algorithm.sign(raw, a_private_key("another", "ES256")),
        "nothing": lambda: b"",
        "zeros": lambda: bytes(64),
        "short": lambda: b"\x01" * 63,
        "long": lambda: b"\xff" * 3_000,
        "der": lambda: b"\x30\x45\x02\x20" + b"\x7f" * 60,
        "hmac": lambda: jwt.get_algorithm_by_name("HS256").sign(raw, pem_of("one", "ES256")),
    }[signature]()
    return f"{signed}.{_packed(made, how)}"


def _packed(raw: bytes, how: str) -> str:
    right = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    match how:
        case "padded":
            return base64.urlsafe_b64encode(raw).decode()
        case "standard":
            return base64.b64encode(raw).decode()
        case "spaces":
            return right[:4] + " " + right[4:]
        case "lines":
            return right[:4] + "\x0b" + right[4:]
        case "bad":
            return right + "!" * (1 + len(right) % 4)
        case "not ascii":
            return right[:3] + "é" + right[3:]
        case "more bits":
            return right[:-1] + "_"
    return right


def _spoilt_key(key: str, how: str) -> str:
    return {
        "": key,
        "upper": key.upper(),
        "cut": key[:-1],
        "longer": key + "0",
        "space": key[:30] + " " + key[30:],
        "line": key + "\x0b",
        "nul": key + "\x00",
        "digits": key[:-1] + "\u0663",
        "another id": "anb_" + "0" * 16 + key[20:],
        "no prefix": key[4:],
        "twice": key + key,
        "surrogate": key[:-1] + "\ud800",
    }[how]
