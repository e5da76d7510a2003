"""One HTTP request per attempt."""

import asyncio
import hashlib
import re
from typing import Any, Final, Literal

import aiohttp
import orjson
from pydantic import BaseModel, ConfigDict, Field

from anabranch.services.steps.charsets import decoded
from anabranch.services.steps.context import StepContext
from anabranch.services.steps.duration import Duration
from anabranch.services.steps.fetch import open_session, refusal, requested
from anabranch.services.steps.step_type import step_type
from anabranch.shared.contracts.errors import ErrorType, RetryableError, TerminalError
from anabranch.shared.contracts.limits import MAX_INTEGER, MAX_NESTING, MAX_STEP_OUTPUT_BYTES
from anabranch.shared.contracts.nesting import is_too_deep
from anabranch.shared.contracts.text import writable
from anabranch.shared.contracts.urls import shown_url, without_credentials

_CHUNK_BYTES: Final = 64 * 1024
_MAX_JSON_NESTING: Final = MAX_NESTING - 1  # it lies in the output
_SURELY_FITS_BYTES: Final = MAX_STEP_OUTPUT_BYTES // 16  # body and `json`, each byte of them escaped as \\u0000
_MAY_BE_TOO_LARGE: Final = re.compile(r"\d{19}")


class Request(BaseModel):
    """What to ask for."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    url: str = Field(pattern="^https?://")
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] = "GET"
    headers: dict[str, str] = {}
    query: dict[str, str | int | float | list[str]] = {}
    json_body: Any = Field(None, alias="json", description="Sent as JSON.")
    content: str | None = Field(None, description="Sent as it is; set Content-Type among the headers.")
    expect_status: int | list[int] | None = Field(None, description="What succeeds; any 2xx or 3xx without it.")
    follow_redirects: bool = True
    timeout: Duration | None = Field(None, gt=0, description="Of this request; the attempt has its own limit.")
    body: Literal["full", "digest"] = Field(
        "full", description="`digest` outputs size and SHA-256 of the body only, however large it is."
    )


class Response(BaseModel):
    """What was answered. `json` is the body if it says that it is JSON, and is; what cannot be decoded has marks in it.

    Headers that came more than once are joined with commas.
    """

    model_config = ConfigDict(populate_by_name=True)

    status: int
    url: str
    headers: dict[str, str]
    size: int
    sha256: str
    body: str | None = None
    json_body: Any = Field(None, alias="json")


@step_type("http", description="Call an HTTP endpoint.", lifespan=open_session)
async def http(given: Request, context: StepContext) -> Response:
    """Send the request; 5xx, 429 and a failed connection may be retried, other unexpected statuses may not."""
    session: aiohttp.ClientSession = context.resource
    try:
        async with (
            asyncio.timeout(given.timeout),
            requested(session, given.method, given.url, **_sent(given)) as response,
        ):
            return await _answer(given, response)
    except TimeoutError as error:
        raise RetryableError(
            f"{given.method} {shown_url(given.url)} took too long", error_type="HttpTimeout"
        ) from error


def _sent(given: Request) -> dict[str, Any]:
    sent: dict[str, Any] = {"headers": dict(given.headers), "allow_redirects": given.follow_redirects}
    if given.query:
        sent["params"] = [(name, str(one)) for name, value in given.query.items() for one in _each(value)]
    try:
        if given.json_body is not None:
            sent["data"] = orjson.dumps(given.json_body)
            sent["headers"].setdefault("Content-Type", "application/json")
        elif given.content is not None:
            sent["data"] = given.content.encode()
    except (UnicodeEncodeError, orjson.JSONEncodeError) as error:
        raise TerminalError(f"the body cannot be sent: {error}", error_type="HttpRequestInvalid") from error
    return sent


def _each(value: str | int | float | list[str]) -> list[str | int | float]:
    return [*value] if isinstance(value, list) else [value]


async def _answer(given: Request, response: aiohttp.ClientResponse) -> Response:
    if not _is_expected(given, response.status):
        raise await refusal(given.method, given.url, response)
    size, digest, raw = await _read(given, response)
    text = decoded(raw, response.charset) if raw is not None else None
    output = Response(
        status=response.status,
        url=without_credentials(str(response.url)),
        headers=_headers(response),
        size=size,
        sha256=digest,
        body=text,
        json_body=_json(response.content_type, text),
    )
    if size > _SURELY_FITS_BYTES and len(output.model_dump_json(by_alias=True)) > MAX_STEP_OUTPUT_BYTES:
        raise _too_large(given.url)
    return output


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    headers: dict[str, list[str]] = {}
    for name, value in response.headers.items():
        headers.setdefault(writable(name.lower()), []).append(writable(value))
    return {name: ", ".join(values) for name, values in headers.items()}


def _too_large(url: str) -> TerminalError:
    return TerminalError(
        f"the answer of {shown_url(url)} is larger than a step may output ({MAX_STEP_OUTPUT_BYTES} bytes); "
        "with `body: digest` only the size and digest of its body are output",
        error_type=ErrorType.PAYLOAD_TOO_LARGE,
    )


async def _read(given: Request, response: aiohttp.ClientResponse) -> tuple[int, str, bytes | None]:
    """Return the size and digest of the body, and the body if it is wanted and fits into an output."""
    size, digest, chunks = 0, hashlib.sha256(), []
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        size += len(chunk)
        digest.update(chunk)
        if given.body == "full":
            chunks.append(chunk)
            if size > MAX_STEP_OUTPUT_BYTES:
                raise _too_large(given.url)
        await asyncio.sleep(0)  # a body that is always there, a bomb, must not keep the loop
    return size, digest.hexdigest(), b"".join(chunks) if given.body == "full" else None


def _is_expected(given: Request, status: int) -> bool:
    expected = given.expect_status
    if expected is None:
        return 200 <= status < 400
    return status in (expected if isinstance(expected, list) else [expected])


def _json(kind: str, text: str | None) -> Any:
    """Return the value of a body that says it is JSON, or None: then the text is there."""
    if not text or not (kind == "application/json" or kind.endswith("+json")):
        return None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:  # it says so, it is not so
        return None
    if is_too_deep(value, _MAX_JSON_NESTING):
        return None
    return _bounded(value) if _MAY_BE_TOO_LARGE.search(text) else value


def _bounded(value: Any) -> Any:
    """Return the value with integers beyond 64 bits as numbers, which larger ones are already."""
    match value:
        case dict():
            return {key: _bounded(each) for key, each in value.items()}
        case list():
            return [_bounded(each) for each in value]
        case int() if abs(value) > MAX_INTEGER:
            return float(value)
        case _:
            return value
