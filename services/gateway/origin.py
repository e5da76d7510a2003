"""Requests that a browser sends for another site: refused where they change something, read where that is allowed."""

from collections.abc import Sequence
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from anabranch.services.gateway import keys
from anabranch.services.gateway.origins import ANY
from anabranch.services.gateway.problems import Kind, ProblemError
from anabranch.services.gateway.route_classes import RouteClass, class_of

_ALLOWED: Final = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE",
    "Access-Control-Allow-Headers": (
        "Authorization, Content-Type, Idempotency-Key, X-API-Key, X-Request-ID, traceparent"
    ),
    "Access-Control-Max-Age": "600",
}
_LONGEST: Final = 512  # characters of an origin that is said back: a scheme, a host's name of 253, a port
_EXPOSED: Final = "Location, Retry-After, RateLimit, RateLimit-Policy, X-Request-ID"


def origin(allowed: Sequence[str]) -> Middleware:
    """Refuse foreign requests that change something, and let the allowed origins read answers."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Origin")
        if given is None and "Sec-Fetch-Site" not in request.headers:
            return await handler(request)  # no browser
        welcome = given is not None and (given in allowed or (ANY in allowed and len(given) <= _LONGEST))
        if allowed:
            request[keys.HEADERS]["Vary"] = "Origin"
        if given is not None and welcome:
            request[keys.HEADERS]["Access-Control-Allow-Origin"] = given
            request[keys.HEADERS]["Access-Control-Expose-Headers"] = _EXPOSED
            if _is_preflight(request):
                return web.Response(status=204, headers=_ALLOWED)
        _refuse_foreign_change(request, given, welcome)
        return await handler(request)

    return guarded


def _is_preflight(request: web.Request) -> bool:
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


def _refuse_foreign_change(request: web.Request, given: str | None, welcome: bool) -> None:
    # A body that is read may change nothing and still costs: only what another site may not do at all is refused.
    if welcome or class_of(request) is not RouteClass.CHANGE:
        return
    if is_foreign(given, request.headers.get("Sec-Fetch-Site"), request.host):
        raise ProblemError(
            Kind.FORBIDDEN, "A page of another site may not do this; its origin would have to be allowed."
        )


def is_foreign(given: str | None, site: str | None, host: str) -> bool:
    """Return whether a browser sends this for another origin.

    `Sec-Fetch-Site` cannot be forged by a page; where it is missing, `Origin` has to name this host (a proxy that ends
    TLS makes the scheme unknown here, so host and port decide).
    """
    if site is not None and site not in ("same-origin", "none"):
        return True
    if given is None or site == "same-origin":
        return False
    return given.partition("://")[2].lower() != host.lower()  # `urlsplit` raises for some of what anybody may send
