"""One HTTP request per attempt."""

import asyncio
import hashlib
from typing import Annotated, Any, Final, Literal

import aiohttp
import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from yarl import URL

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.fetch import open_session, refusal, unreachable
from anabranch.services.steps.step_type import step_type
from anabranch.shared.contracts.durations import parse_duration
from anabranch.shared.contracts.errors import ErrorType, RetryableError, TerminalError
from anabranch.shared.contracts.limits import MAX_STEP_OUTPUT_BYTES

_CHUNK_BYTES: Final = 64 * 1024

Duration = Annotated[float, BeforeValidator(parse_duration, json_schema_input_type=str | float)]


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
    """What was answered. `json` is the body if it says that it is JSON; a text that is not UTF-8 has marks in it."""

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
        async with asyncio.timeout(given.timeout), session.request(given.method, given.url, **_sent(given)) as response:
            return await _answer(given, response)
    except aiohttp.InvalidURL as error:
        raise TerminalError(f"{given.url} is not a URL", error_type="HttpUrlInvalid") from error
    except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError, and says so itself
        if isinstance(error, TimeoutError):
            raise RetryableError(f"{given.method} {given.url} took too long", error_type="HttpTimeout") from error
        raise unreachable(given.method, given.url, error) from error


def _sent(given: Request) -> dict[str, Any]:
    sent: dict[str, Any] = {"headers": dict(given.headers), "allow_redirects": given.follow_redirects}
    if given.query:
        sent["params"] = [(name, str(one)) for name, value in given.query.items() for one in _each(value)]
    if given.json_body is not None:
        sent["data"] = orjson.dumps(given.json_body)
        sent["headers"].setdefault("Content-Type", "application/json")
    elif given.content is not None:
        sent["data"] = given.content.encode()
    return sent


def _each(value: str | int | float | list[str]) -> list[str | int | float]:
    return [*value] if isinstance(value, list) else [value]


async def _answer(given: Request, response: aiohttp.ClientResponse) -> Response:
    if not _is_expected(given, response.status):
        start = await response.content.read(2000)
        raise refusal(given.method, given.url, response.status, response.headers, start.decode(errors="replace"))
    size, digest, raw = await _read(given, response)
    text = raw.decode(response.get_encoding(), errors="replace") if raw is not None else None
    return Response(
        status=response.status,
        url=str(_without_secret(response.url)),
        headers={name.lower(): value for name, value in response.headers.items()},
        size=size,
        sha256=digest,
        body=text,
        json_body=_json(response, raw),
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
                raise TerminalError(
                    f"the body of {given.url} is larger than a step may output ({MAX_STEP_OUTPUT_BYTES} bytes); "
                    "with `body: digest` only its size and digest are output",
                    error_type=ErrorType.PAYLOAD_TOO_LARGE,
                )
    return size, digest.hexdigest(), b"".join(chunks) if given.body == "full" else None


def _is_expected(given: Request, status: int) -> bool:
    expected = given.expect_status
    if expected is None:
        return 200 <= status < 400
    return status in (expected if isinstance(expected, list) else [expected])


def _json(response: aiohttp.ClientResponse, raw: bytes | None) -> Any:
    kind = response.content_type
    if not raw or not (kind == "application/json" or kind.endswith("+json")):
        return None
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:  # it says so, it is not so: the text is there
        return None


def _without_secret(url: URL) -> URL:
    return url.with_user(None) if url.user or url.password else url
