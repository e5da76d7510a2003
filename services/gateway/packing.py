"""Answers go out packed to clients that say they can read it."""

from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from anabranch.services.gateway import keys
from anabranch.shared.contracts.limits import KIB

_WORTH_BYTES: Final = 1 * KIB  # below, a packet is a packet


def packing() -> Middleware:
    """Pack what is large enough with gzip; a run that is sent in pieces goes as it is."""

    @web.middleware
    async def packed(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if "Content-Encoding" in response.headers or not isinstance(response, web.Response):
            return response
        if (response.content_length or 0) >= _WORTH_BYTES:
            added = request[keys.HEADERS]
            added["Vary"] = ", ".join(filter(None, (added.get("Vary"), "Accept-Encoding")))
            if accepts_gzip(request.headers.getall("Accept-Encoding", ())):
                response.enable_compression(web.ContentCoding.gzip)
                _weaken_tag(response)
        return response

    return packed


def _weaken_tag(response: web.Response) -> None:
    """Have the tag say the same of the packed bytes, which a strong one would not (RFC 9110 §8.8.1)."""
    if (tag := response.headers.get("ETag", "")).startswith('"'):
        response.headers["ETag"] = f"W/{tag}"


def accepts_gzip(given: "list[str] | tuple[str, ...]") -> bool:
    """Return whether `Accept-Encoding` names gzip, and not with a weight of nothing (RFC 9110 §12.5.3)."""
    for part in ",".join(given).lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() in ("gzip", "x-gzip"):
            return weight.strip().replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
