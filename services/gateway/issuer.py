"""The public keys of an OIDC issuer: fetched, bounded in time and size, and kept while the issuer is away."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import aiohttp
import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from structlog.typing import FilteringBoundLogger
from yarl import URL

from anabranch.services.gateway.addresses import is_loopback
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.problems import unavailable
from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.contracts.limits import MAX_JWKS_BYTES, MAX_JWKS_KEYS, MAX_RSA_BITS, MIN_RSA_BITS

COOLDOWN_S: Final = 10.0  # between two fetches: whoever invents key ids costs the issuer no more than this
_REFRESH_S: Final = 300.0  # what the issuer withdraws works no longer than this
_WITHIN_S: Final = 5.0  # a fetch, its redirects (none) and its names included

_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_OF_CURVE: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA"}
ALGORITHMS: Final = frozenset({*_RSA, *_OF_CURVE.values()})
"""Those that may be allowed: of pairs of keys only, since whoever could check a shared secret could sign with it."""

_LISTED: Final[TypeAdapter[list[Any]]] = TypeAdapter(list[Any])


class IssuerAway(AnabranchError):
    """The issuer's keys cannot be had."""


class _Jwk(BaseModel):
    """A key as RFC 7517 writes it; what makes a private key of it is not read."""

    model_config = ConfigDict(frozen=True, strict=True)

    kty: str
    kid: str | None = None
    alg: str | None = None
    use: str = "sig"
    crv: str | None = None
    n: str | None = None
    e: str | None = None
    x: str | None = None
    y: str | None = None

    def fits(self) -> tuple[str, ...]:
        """Return the algorithms that the key is for."""
        if self.use != "sig":
            return ()
        fitting = _RSA if self.kty == "RSA" else (_OF_CURVE.get(self.crv or "", ""),)
        return tuple(each for each in fitting if each and self.alg in (None, each))


Keys = dict[tuple[str, str], jwt.PyJWK]


class IssuerKeys:
    """The keys by id and algorithm. `generation` changes whenever they do."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[list[Any]]],
        algorithms: frozenset[str],
        metrics: GatewayMetrics,
        log: FilteringBoundLogger,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.generation = 0
        self._fetch = fetch
        self._algorithms = algorithms
        self._metrics = metrics
        self._log = log
        self._monotonic_s = monotonic_s
        self._listed: list[Any] = []
        self._keys: Keys = {}
        self._asked_s = float("-inf")
        self._asking = asyncio.Lock()

    async def key(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key, asking the issuer when it is new. Raises a 503 problem while no key at all is known."""
        found = self._find(kid, algorithm)
        if found is None:
            await self.refetch()
            found = self._find(kid, algorithm)
        if not self._keys:
            raise unavailable("The keys of the tokens' issuer are not known yet.", retry_after_s=int(COOLDOWN_S))
        return found

    async def follow(self) -> None:
        """Ask for ever, now and then."""
        while True:
            await self.refetch()
            await asyncio.sleep(_REFRESH_S if self._keys else COOLDOWN_S)

    async def refetch(self) -> None:
        """Ask the issuer, unless it was asked a moment ago; while it is away its keys go on working."""
        async with self._asking:
            if self._monotonic_s() - self._asked_s < COOLDOWN_S:
                return
            self._asked_s = self._monotonic_s()
            try:
                listed = await self._fetch()
            except IssuerAway as error:
                self._metrics.issuer_asked("failed")
                self._log.warning("the keys of the tokens' issuer cannot be had", reason=str(error))
                return
            self._metrics.issuer_asked("answered")
            self._take(listed)

    def _take(self, listed: list[Any]) -> None:
        if listed == self._listed:
            return
        self._listed = listed
        self._keys = keys_of(listed, self._algorithms)
        self.generation += 1
        self._log.info("the tokens' issuer has other keys now", keys=sorted({kid[:80] for kid, _ in self._keys}))

    def _find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        if kid is not None:
            return self._keys.get((kid, algorithm))
        fitting = [key for (_, fits), key in self._keys.items() if fits == algorithm]
        return fitting[0] if len(fitting) == 1 else None  # which of several would be a guess


def keys_of(listed: Iterable[Any], algorithms: frozenset[str]) -> Keys:
    """Return the keys that can be used; others say nothing against their neighbours."""
    found: Keys = {}
    for number, each in enumerate(listed):
        try:
            jwk = _Jwk.model_validate(each)
        except ValidationError:
            continue
        for algorithm in jwk.fits():
            key = _key(jwk, algorithm) if algorithm in algorithms else None
            if key is not None:
                found.setdefault((jwk.kid or f"#{number}", algorithm), key)
    return found


def _key(jwk: _Jwk, algorithm: str) -> jwt.PyJWK | None:
    try:
        key = jwt.PyJWK(jwk.model_dump(include={"kty", "crv", "n", "e", "x", "y"}, exclude_none=True), algorithm)
    except (jwt.PyJWTError, ValueError):
        return None
    if isinstance(key.key, RSAPublicKey) and not MIN_RSA_BITS <= key.key.key_size <= MAX_RSA_BITS:
        return None
    return key


class Issuer:
    """Where the keys are: at a URL, or where the issuer's own description says."""

    def __init__(self, issuer: str, jwks_url: str) -> None:
        self._issuer = issuer
        self._jwks_url = jwks_url

    async def keys(self) -> list[Any]:
        """Return the keys as they are listed. Raises `IssuerAway`."""
        timeout = aiohttp.ClientTimeout(total=_WITHIN_S)
        try:
            async with (
                asyncio.timeout(_WITHIN_S),
                aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as http,
            ):
                document = await _json(http, self._jwks_url or await self._described(http))
            listed = _LISTED.validate_python(document.get("keys"), strict=True)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise IssuerAway(str(error).partition("\n")[0] or type(error).__name__) from error
        return listed[:MAX_JWKS_KEYS]

    async def _described(self, http: aiohttp.ClientSession) -> str:
        document = await _json(http, self._issuer.rstrip("/") + "/.well-known/openid-configuration")
        if document.get("issuer") != self._issuer:
            raise IssuerAway("the issuer's description names another issuer")
        return checked_url(str(document.get("jwks_uri")))


async def _json(http: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    body = bytearray()
    async with http.get(url, headers=headers, allow_redirects=False) as response:
        if response.status != 200:
            raise IssuerAway(f"{url} is answered {response.status}")
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_JWKS_BYTES:
                raise IssuerAway(f"{url} is answered with more than {MAX_JWKS_BYTES} bytes")
    document = orjson.loads(body)
    if not isinstance(document, dict):
        raise IssuerAway(f"{url} is not answered with a JSON object")
    return document


def checked_url(text: str) -> str:
    """Return the URL. Raises `ValueError` when keys from there could be anybody's."""
    url = URL(text)
    if not url.host or url.user is not None or not (url.scheme == "https" or _is_local(url)):
        raise ValueError("an issuer's keys come by https, without credentials in the URL (http: from loopback alone)")
    return text


def _is_local(url: URL) -> bool:
    return url.scheme == "http" and is_loopback(url.host or "")
