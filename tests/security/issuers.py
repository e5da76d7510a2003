"""An OIDC issuer of the tests: it has keys, signs tokens, and answers over HTTP as it is told."""

import base64
import hashlib
import hmac
import json
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import jwt
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ISSUER = "https://issuer.example/realm"
AUDIENCE = "anabranch"


@cache
def a_private_key(name: str, algorithm: str) -> Any:
    """Return the same key for the same name."""
    curves = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm in curves:
        return ec.generate_private_key(curves[algorithm]())
    return rsa.generate_private_key(public_exponent=65537, key_size=1024 if name == "short" else 2048)


def jwk_of(kid: str, algorithm: str, **members: Any) -> dict[str, Any]:
    """Return the public key as the issuer lists it, without `alg`, as many do."""
    known = jwt.get_algorithm_by_name(algorithm)
    public: dict[str, Any] = json.loads(known.to_jwk(a_private_key(kid, algorithm).public_key()))
    public.pop("key_ops", None)
    return public | {"kid": kid, "use": "sig"} | members


def pem_of(kid: str, algorithm: str) -> bytes:
    """Return the public key as a file has it."""
    public = a_private_key(kid, algorithm).public_key()
    pem: bytes = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def claims(**changed: Any) -> dict[str, Any]:
    """Return the claims of a token that works; None takes one out."""
    now = int(time.time())
    usual = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "tenant": "acme", "scope": "openid submit read",
        "iat": now, "nbf": now, "exp": now + 300,
    }  # fmt: skip
    return {name: value for name, value in (usual | changed).items() if value is not None}


def a_token(kid: str | None = "one", algorithm: str = "ES256", *, headers: Any = None, **changed: Any) -> str:
    """Return a token, signed with the key of this name."""
    named = {} if kid is None else {"kid": kid}
    key = a_private_key(kid or "one", algorithm)
    with warnings.catch_warnings(action="ignore", category=jwt.warnings.InsecureKeyLengthWarning):  # one is meant
        return jwt.encode(claims(**changed), key, algorithm, headers=named | (headers or {}))


def packed(data: Any) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def by_hand(header: Any, secret: bytes | None = None, signature: bytes = b"", **changed: Any) -> str:
    """Return a token that no library signs."""
    signed = f"{packed(header)}.{packed(claims(**changed))}"
    made = signature if secret is None else hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{packed(made)}"


class AnIssuer:
    """What the issuer answers, and how often it was asked."""

    def __init__(self) -> None:
        self.keys: list[Any] = [jwk_of("one", "ES256")]
        self.body: bytes | None = None
        self.status = 200
        self.asked = 0
        self.url = ""
        self.names_itself = ""

    async def jwks(self, _: web.Request) -> web.Response:
        self.asked += 1
        body = json.dumps({"keys": self.keys}).encode() if self.body is None else self.body
        return web.Response(body=body, status=self.status, headers={"Location": "/jwks"} if self.status == 302 else {})

    async def description(self, _: web.Request) -> web.Response:
        return web.json_response({"issuer": self.names_itself or self.url, "jwks_uri": f"{self.url}/jwks"})


@asynccontextmanager
async def an_issuer() -> AsyncIterator[AnIssuer]:
    issuer, app = AnIssuer(), web.Application()
    app.router.add_get("/jwks", issuer.jwks)
    app.router.add_get("/.well-known/openid-configuration", issuer.description)
    async with TestServer(app, host="127.0.0.1") as server:
        issuer.url = str(server.make_url("")).rstrip("/")
        yield issuer
