"""HTTP for step types: one session for all attempts, and what of an answer is worth another try."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp

from anabranch.shared.contracts.errors import RetryableError, TerminalError

_USER_AGENT: Final = "anabranch"
_MAX_CONNECTIONS_PER_HOST: Final = 32
_TRY_AGAIN: Final = frozenset({408, 425, 429})  # RFC 9110 §15.5.9, RFC 8470 §5.2, RFC 6585 §4


@asynccontextmanager
async def open_session() -> AsyncIterator[aiohttp.ClientSession]:
    """Open the session that all attempts of a process share; each has its own time limit."""
    connector = aiohttp.TCPConnector(limit=0, limit_per_host=_MAX_CONNECTIONS_PER_HOST)
    async with aiohttp.ClientSession(
        connector=connector, headers={"User-Agent": _USER_AGENT}, timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),  # steps of different tenants share the session
    ) as session:  # fmt: skip
        yield session


def refusal(method: str, url: str, status: int, headers: Mapping[str, str], text: str) -> Exception:
    """Return the error that an unexpected status is: retriable for 5xx, 429 and the like, terminal otherwise."""
    words = f"{method} {url} answered {status}"
    details = {"status": status, "body": text[:2000]}
    if status >= 500 or status in _TRY_AGAIN:
        after = _retry_after_s(headers.get("Retry-After"))
        return RetryableError(words, after=after, error_type="HttpStatusError", details=details)
    return TerminalError(words, error_type="HttpStatusError", details=details)


def unreachable(method: str, url: str, error: Exception) -> RetryableError:
    """Return the error that a failed connection is: the other side may be back for the next attempt."""
    return RetryableError(f"{method} {url}: {error or type(error).__name__}", error_type="HttpConnectionError")


def _retry_after_s(value: str | None) -> float | None:
    """Return the delay that a `Retry-After` header asks for: seconds or a date (RFC 9110 §10.2.3)."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
