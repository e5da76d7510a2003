"""How Kafka is spoken to: the one place that makes the arguments of aiokafka's clients from the settings.

Passwords and secrets are read from their files when a client is made; a token when it logs in, on every connection.
"""

import asyncio
import base64
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote_plus

import aiohttp
import orjson
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError
from pydantic import SecretStr

from anabranch import __version__
from anabranch.shared.contracts.urls import redacted
from anabranch.shared.runtime.errors import UnusableSettings
from anabranch.shared.runtime.settings import Settings
from anabranch.shared.runtime.tls import load_pair, short, trust

_TOKEN_WITHIN_S: Final = 10.0
_TOKEN_BYTES: Final = 64 * 1024  # of an answer: a token is a kilobyte or two
_RENEW_S: Final = 30.0  # before a token expires: clocks differ, and a login takes a moment
_LIVES_S: Final = 60.0  # a token whose answer does not say how long


def kafka_arguments(settings: Settings) -> dict[str, Any]:
    """Return what every client of aiokafka is given; `UnusableSettings` names the variable to change."""
    return {
        "bootstrap_servers": settings.kafka_bootstrap_servers,
        "client_id": f"{settings.instance}/{__version__}",
        **connection_arguments(settings),
    }


def version_of(client_id: str) -> str:
    """Return the version that a client of ours runs; nothing of another's."""
    return client_id.rpartition("/")[2] if "/" in client_id else ""


def connection_arguments(settings: Settings) -> dict[str, Any]:
    """Return what a single connection to a broker is given, of encryption and login."""
    protocol = settings.kafka_security_protocol
    arguments: dict[str, Any] = {"security_protocol": protocol}
    if protocol.endswith("SSL"):
        arguments["ssl_context"] = _context(settings)
    if protocol.startswith("SASL"):
        arguments |= _login(settings)
    return arguments


def secret_of(value: SecretStr, file: str, variable: str) -> str:
    """Return a secret from its setting or its file; `UnusableSettings` when there is none."""
    secret = value.get_secret_value()
    if file:
        try:
            secret = Path(file).read_text(encoding="utf-8").strip("\r\n")
        except (OSError, ValueError) as error:
            raise UnusableSettings(f"{variable}_FILE: {file} cannot be read ({short(error)})") from error
    if not secret:
        raise UnusableSettings(f"{variable} or {variable}_FILE is needed")
    return secret


def _context(settings: Settings) -> ssl.SSLContext:
    context = trust(settings.kafka_ssl_cafile, "KAFKA_SSL_CAFILE")
    certificate, key = settings.kafka_ssl_certfile, settings.kafka_ssl_keyfile
    if not certificate:
        return context
    load_pair(context, certificate, key, "KAFKA_SSL_CERTFILE, KAFKA_SSL_KEYFILE")
    return context


def _login(settings: Settings) -> dict[str, Any]:
    mechanism = settings.kafka_sasl_mechanism
    if mechanism == "OAUTHBEARER":
        return {"sasl_mechanism": mechanism, "sasl_oauth_token_provider": _provider(settings)}
    if not settings.kafka_sasl_username:
        raise UnusableSettings(f"KAFKA_SASL_USERNAME is needed to log in to Kafka by {mechanism}")
    password = secret_of(settings.kafka_sasl_password, settings.kafka_sasl_password_file, "KAFKA_SASL_PASSWORD")
    return {
        "sasl_mechanism": mechanism,
        "sasl_plain_username": settings.kafka_sasl_username,
        "sasl_plain_password": password,
    }


def _provider(settings: Settings) -> AbstractTokenProvider:
    if settings.kafka_oauth_token_file:
        return TokenFile(settings.kafka_oauth_token_file)
    if not (settings.kafka_oauth_token_url and settings.kafka_oauth_client_id):
        raise UnusableSettings(
            "OAUTHBEARER needs KAFKA_OAUTH_TOKEN_FILE, or KAFKA_OAUTH_TOKEN_URL and KAFKA_OAUTH_CLIENT_ID"
        )
    client = TokenClient(
        url=settings.kafka_oauth_token_url,
        client_id=settings.kafka_oauth_client_id,
        secret=secret_of(
            settings.kafka_oauth_client_secret, settings.kafka_oauth_client_secret_file, "KAFKA_OAUTH_CLIENT_SECRET"
        ),
        scope=settings.kafka_oauth_scope,
        cafile=settings.kafka_ssl_cafile,
    )
    return _ENDPOINTS.setdefault(client, TokenEndpoint(client))


class TokenUnavailable(KafkaConnectionError):  # type: ignore[misc]  # aiokafka is not typed
    """There is no token to log in with now."""


class TokenFile(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka is not typed
    """A token in a file that somebody else renews, as Kubernetes does with those of service accounts."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)

    async def token(self) -> str:
        """Return what the file has now. Raises `TokenUnavailable`."""
        try:
            token = (await asyncio.to_thread(self._file.read_text, "utf-8")).strip()
        except (OSError, ValueError) as error:
            raise TokenUnavailable(f"KAFKA_OAUTH_TOKEN_FILE: {self._file} cannot be read ({short(error)})") from error
        if not token:
            raise TokenUnavailable(f"KAFKA_OAUTH_TOKEN_FILE: {self._file} is empty")
        return token


@dataclass(frozen=True, slots=True)
class TokenClient:
    """Who asks for tokens, and where."""

    url: str
    client_id: str
    secret: str = field(repr=False)
    scope: str = ""
    cafile: str = ""


class TokenEndpoint(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka is not typed
    """A token asked for by client credentials (RFC 6749 §4.4), kept until shortly before it expires."""

    def __init__(self, client: TokenClient) -> None:
        self._client = client
        self._token = ""
        self._until_s = 0.0

    async def token(self) -> str:
        """Return a token that is still good. Raises `TokenUnavailable`."""
        if time.monotonic() >= self._until_s:
            asked_s = time.monotonic()
            answer = await self._ask()
            lives_s = _seconds(answer.get("expires_in"))
            self._token = _token_of(answer, self._client.url)
            self._until_s = asked_s + max(lives_s - _RENEW_S, lives_s / 2)
        return self._token

    async def _ask(self) -> Mapping[str, Any]:
        client = self._client
        form = {"grant_type": "client_credentials"} | ({"scope": client.scope} if client.scope else {})
        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=self._trust()),
                    timeout=aiohttp.ClientTimeout(total=_TOKEN_WITHIN_S),
                ) as session,
                session.post(
                    client.url,
                    data=form,
                    headers={"Accept": "application/json", "Authorization": _basic(client.client_id, client.secret)},
                    allow_redirects=False,  # it would have the secret
                ) as response,
            ):
                body = await response.content.read(_TOKEN_BYTES)
                if response.status != 200:
                    raise _no_token(
                        client.url, f"it answers {response.status}; see KAFKA_OAUTH_CLIENT_ID and its secret"
                    )
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise _no_token(client.url, short(error)) from error
        try:
            answer = orjson.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise _no_token(client.url, "its answer is no JSON object")
        return answer

    def _trust(self) -> ssl.SSLContext:
        context = ssl.create_default_context()  # the endpoint may be a public one
        if self._client.cafile:
            context.load_verify_locations(self._client.cafile)
        return context


_ENDPOINTS: Final[dict[TokenClient, TokenEndpoint]] = {}  # all clients of a process share their tokens


def _basic(client_id: str, secret: str) -> str:
    """Return how a client names itself (RFC 6749 §2.3.1)."""
    return "Basic " + base64.b64encode(f"{quote_plus(client_id)}:{quote_plus(secret)}".encode()).decode()


def _token_of(answer: Mapping[str, Any], url: str) -> str:
    token = answer.get("access_token")
    if not isinstance(token, str) or not token:
        raise _no_token(url, "its answer has no access_token")
    return token


def _seconds(value: Any) -> float:
    try:
        return max(float(value), 0.0)
    except (TypeError, ValueError):
        return _LIVES_S


def _no_token(url: str, why: str) -> TokenUnavailable:
    return TokenUnavailable(f"KAFKA_OAUTH_TOKEN_URL: {redacted(url)} gives no token: {why}")
