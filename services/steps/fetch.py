"""HTTP for step types: one session for all attempts, whom it may ask, and what of an answer is worth another try."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from anabranch.services.steps.charsets import decoded
from anabranch.services.steps.reach import Reach, connector
from anabranch.services.steps.settings import ReachSettings
from anabranch.shared.contracts.errors import RetryableError, TerminalError
from anabranch.shared.contracts.limits import MAX_WAIT_S
from anabranch.shared.contracts.text import writable
from anabranch.shared.contracts.urls import redacted, shown_url
from anabranch.shared.runtime.tracing import outgoing_headers

_USER_AGENT: Final = "anabranch"
_MAX_CONNECTIONS_PER_HOST: Final = 32
_TRY_AGAIN: Final = frozenset({408, 425, 429})  # RFC 9110 §15.5.9, RFC 8470 §5.2, RFC 6585 §4
_SHOWN_CHARS: Final = 2000  # of a refusal's body: enough for its first sentences
_SHOWN_WITHIN_S: Final = 1.0  # the refusal is known already, its text is worth no more waiting
_MAX_REDIRECTS: Final = 10
# What goes with a request to another origin than the pipeline named; any other header may be a credential.
_HARMLESS: Final = frozenset(
    ("accept", "accept-encoding", "accept-language", "content-language", "content-length", "content-type", "host",
     "range", "transfer-encoding", "user-agent")
)  # fmt: skip
_HOST: Final = re.compile(r"[\w.~!$&'()*+,;=%:-]+")  # RFC 3986 §3.2.2, and names that are still to be encoded
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.1
_FIELD_VALUE: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]*")
_SECONDS: Final = re.compile(r"[0-9]{1,10}")


@asynccontextmanager
async def open_session(resolver: AbstractResolver | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """Open the session that all attempts of a process share; each has its own time limit.

    It reaches the internet and what the setting names. Proxies of the environment would connect for us, unchecked.
    """
    reach = Reach(ReachSettings().http_allow)
    async with aiohttp.ClientSession(
        connector=connector(reach, per_host=_MAX_CONNECTIONS_PER_HOST, resolver=resolver),
        headers={"User-Agent": _USER_AGENT}, timeout=aiohttp.ClientTimeout(total=None), trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),  # steps of different tenants share the session
    ) as session:  # fmt: skip
        yield session


class _Hops:
    """Keeps what was meant for one origin from another that it redirects to, and from all that come after."""

    def __init__(self) -> None:
        self._first: URL | None = None
        self._has_left = False

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        self._first = self._first or request.url
        self._has_left = self._has_left or request.url.origin() != self._first.origin()
        if self._has_left:
            for name in [name for name in request.headers if name.lower() not in _HARMLESS]:
                del request.headers[name]
            if request.url.host != self._first.host and request.body:
                raise TerminalError(
                    f"{request.method} {shown_url(str(self._first))} redirects its body to {request.url.host}, "
                    "for which it was not meant",
                    error_type="HttpRedirectInvalid",
                )
        return await handler(request)


@asynccontextmanager
async def requested(
    session: aiohttp.ClientSession, method: str, url: str, **sent: Any
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send a request and provide its response. What cannot be sent is terminal, a failed connection is not."""
    try:
        async with await _response(session, method, url, sent) as response:
            yield response
    except (aiohttp.ClientError, OSError) as error:
        if isinstance(error, TimeoutError):
            raise
        raise _unreachable(method, url, error) from error


async def refusal(method: str, url: str, response: aiohttp.ClientResponse) -> Exception:
    """Return the error that an unexpected status is: retriable for 5xx, 429 and the like, terminal otherwise."""
    words = f"{method} {shown_url(url)} answered {response.status}"
    details = {"status": response.status, "body": await _start_of(response)}
    if response.status >= 500 or response.status in _TRY_AGAIN:
        after = _retry_after_s(response.headers.get("Retry-After"))
        return RetryableError(words, after=after, error_type="HttpStatusError", details=details)
    return TerminalError(words, error_type="HttpStatusError", details=details)


async def _response(
    session: aiohttp.ClientSession, method: str, url: str, sent: dict[str, Any]
) -> aiohttp.ClientResponse:
    _check(method, url, sent.get("headers", {}))
    if (going_on := outgoing_headers()) and not any(name.lower() in going_on for name in sent.get("headers", {})):
        sent["headers"] = {**sent.get("headers", {}), **going_on}
    try:
        return await session.request(method, url, middlewares=(_Hops(),), max_redirects=_MAX_REDIRECTS, **sent)
    except aiohttp.TooManyRedirects as error:
        raise TerminalError(
            f"{method} {shown_url(url)} redirects without end", error_type="HttpRedirectInvalid"
        ) from error
    except aiohttp.RedirectClientError as error:
        raise TerminalError(
            f"{method} {shown_url(url)} redirects to what is no http URL: {writable(redacted(str(error)))[:200]}",
            error_type="HttpRedirectInvalid",
        ) from error
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
        raise TerminalError(f"{shown_url(url)} is not a URL", error_type="HttpUrlInvalid") from error
    except (ValueError, TypeError) as error:  # of the request: a line break in a header, a host that no name can be
        raise TerminalError(
            f"{method} {shown_url(url)} cannot be sent: {writable(redacted(str(error)))[:500]}",
            error_type="HttpRequestInvalid",
        ) from error


def _check(method: str, url: str, headers: Mapping[str, str]) -> None:
    """Refuse what would not be one request to one host, before anybody is connected to."""
    try:
        host = URL(url).raw_host
    except ValueError as error:
        raise TerminalError(f"{shown_url(url)} is not a URL", error_type="HttpUrlInvalid") from error
    if not host or not _HOST.fullmatch(host):
        raise TerminalError(f"{shown_url(url)} names no host", error_type="HttpUrlInvalid")
    for name, value in headers.items():
        if not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
            raise TerminalError(
                f"{method} {shown_url(url)} cannot be sent: {name[:100]!r} is no header, or its value is none",
                error_type="HttpRequestInvalid",
            )


def _unreachable(method: str, url: str, error: Exception) -> RetryableError:
    """Return the error that a failed connection is: the other side may be back for the next attempt."""
    said = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    return RetryableError(
        f"{method} {shown_url(url)}: {writable(redacted(said))[:500] or type(error).__name__}",
        error_type="HttpConnectionError",
    )


async def _start_of(response: aiohttp.ClientResponse) -> str:
    """Return how the body of a refusal begins, if it comes soon and can be read."""
    try:
        async with asyncio.timeout(_SHOWN_WITHIN_S):
            raw = await response.content.read(_SHOWN_CHARS)
    except (aiohttp.ClientError, OSError):
        return ""
    return decoded(raw, response.charset)


def _retry_after_s(value: str | None) -> float | None:
    """Return the delay that a `Retry-After` header asks for: seconds or a date (RFC 9110 §10.2.3)."""
    if value is None:
        return None
    if _SECONDS.fullmatch(value.strip()):
        return min(float(value), MAX_WAIT_S)
    try:
        after_s = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(0.0, after_s), MAX_WAIT_S)
