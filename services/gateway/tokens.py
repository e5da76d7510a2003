"""Bearer tokens of an OIDC issuer: checked against its keys, and remembered until they expire."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt

from anabranch.services.gateway.issuer import IssuerKeys
from anabranch.services.gateway.principal import Principal
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.shared.contracts.api_keys import Scope, hash_of
from anabranch.shared.contracts.bounded import BoundedMemory
from anabranch.shared.contracts.limits import MAX_CLAIM_CHARS, MAX_TOKEN_CHARS

_REMEMBERED: Final = 10_000  # tokens whose principal is known
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})  # others are no access: a logout, an event
_REQUIRED: Final = ("exp", "iss", "aud", "sub")


@dataclass(frozen=True, slots=True)
class _Verified:
    principal: Principal
    until_s: float
    generation: int  # of the issuer's keys


class Tokens:
    """The tokens that work. A signature takes some 50 µs (ES512: 500) and is checked once per token."""

    def __init__(self, keys: IssuerKeys, settings: GatewaySettings, *, now_s: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._settings = settings
        self._algorithms = settings.jwt_allowed
        self._audiences = settings.jwt_audiences
        self._now_s = now_s
        self._verified: BoundedMemory[str, _Verified] = BoundedMemory(max_entries=_REMEMBERED)

    async def principal(self, text: str) -> Principal | None:
        """Return whose token this is, or None. Raises a 503 problem while the issuer's keys are not known."""
        digest = hash_of(text)
        known = self._verified.get(digest)
        if known is None or known.generation != self._keys.generation:
            known = await self._verify(text)
            if known is None:
                return None
            self._verified.put(digest, known)
        return known.principal if self._now_s() < known.until_s else None

    async def _verify(self, text: str) -> _Verified | None:
        try:
            kid, algorithm = self._head_of(text)
            key = await self._keys.key(kid, algorithm)
            if key is None:
                return None
            claims = self._claims_of(text, key, algorithm)
            principal = self._principal_of(claims)
            until_s = float(claims["exp"]) + self._settings.jwt_skew_s
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError):  # the last two: numbers that are none
            return None
        return _Verified(principal, until_s, self._keys.generation)

    def _head_of(self, text: str) -> tuple[str | None, str]:
        """Return the key's id and the algorithm that a token names. Raises `ValueError`, `jwt.PyJWTError`."""
        if len(text) > MAX_TOKEN_CHARS or not text.isascii():
            raise ValueError("no token looks like this")
        header = jwt.get_unverified_header(text)
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise ValueError("the algorithm is not allowed")
        if str(header.get("typ", "JWT")).lower() not in _TYPES:
            raise ValueError("the token is for something else")
        return header.get("kid"), algorithm

    def _claims_of(self, text: str, key: jwt.PyJWK, algorithm: str) -> Mapping[str, Any]:
        return jwt.decode(
            text,
            key,
            algorithms=[algorithm],
            audience=self._audiences,
            issuer=self._settings.jwt_issuer,
            leeway=self._settings.jwt_skew_s,
            options={"require": list(_REQUIRED)},
        )

    def _principal_of(self, claims: Mapping[str, Any]) -> Principal:
        settings = self._settings
        tenant, subject = claim(claims, settings.jwt_tenant_claim), claims["sub"]
        if not (_is_name(tenant) and _is_name(subject)):
            raise ValueError("the token names no tenant, or nobody")
        scopes = scopes_of(claim(claims, settings.jwt_scope_claim), settings.jwt_scope_prefix)
        return Principal(tenant, scopes, f"token:{subject}")


def claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return the claim of this name; a name that begins with `/` is a JSON Pointer. None when there is none."""
    if not name.startswith("/"):
        return claims.get(name)
    found: Any = claims
    for part in name[1:].split("/"):
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


def scopes_of(given: Any, prefix: str) -> frozenset[Scope]:
    """Return the scopes in a claim, text with spaces or a list; what is not ours is passed over."""
    words = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
    ours = {word.removeprefix(prefix) for word in words if isinstance(word, str) and word.startswith(prefix)}
    return frozenset(scope for scope in Scope if scope.value in ours)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_CLAIM_CHARS and value.isprintable()
