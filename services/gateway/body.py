"""A request's body, never more of it in memory than a body may have."""

from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from anabranch.services.gateway.problems import Kind, ProblemError
from anabranch.shared.contracts.limits import MAX_BODY_BYTES

JSON: Final = "application/json"
YAML: Final = "application/yaml"
_MEDIA_TYPES: Final = {
    "application/json": JSON,
    "text/json": JSON,
    "application/yaml": YAML,
    "application/x-yaml": YAML,
    "text/yaml": YAML,
    "text/x-yaml": YAML,
}


def media_type_of(request: web.Request) -> str:
    """Return JSON or YAML. Raises a 415 problem for anything else, and for a charset that is not UTF-8."""
    given = request.headers.get("Content-Type", "")
    if given == JSON:
        return JSON
    known = _MEDIA_TYPES.get(given.partition(";")[0].strip().lower())
    if known is None or (request.charset or "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
        said = given[:80] or "no Content-Type"
        raise ProblemError(
            Kind.UNSUPPORTED_MEDIA_TYPE,
            f"{said} is not read here: send application/json or application/yaml in UTF-8.",
            headers={"Accept-Post": f"{JSON}, {YAML}"},
        )
    return known


async def read_body(request: web.Request) -> bytes:
    """Return the whole body. Raises a 413 problem as soon as it is known to be too large."""
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise _too_large()
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise _too_large() from error
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise ProblemError(Kind.UNREADABLE, "The body is not in the encoding that its headers announce.") from error


def _too_large() -> ProblemError:
    return ProblemError(Kind.TOO_LARGE, f"A body may have {MAX_BODY_BYTES} bytes at most.")
