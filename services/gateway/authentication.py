"""Who may do what: credentials into a principal, and the scope that its route needs."""

from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from anabranch.services.gateway import keys
from anabranch.services.gateway.api_keys import ApiKeys
from anabranch.services.gateway.principal import EVERY_SCOPE, Principal
from anabranch.services.gateway.problems import Kind, ProblemError, unavailable
from anabranch.services.gateway.route_classes import RouteClass, class_of, scope_of

_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="anabranch"'}


def authentication(api_keys: ApiKeys | None, default_tenant: str) -> Middleware:
    """Refuse with 401 who is nobody, with 403 who may not; without `api_keys` everybody is the default tenant."""
    anybody = Principal(default_tenant, EVERY_SCOPE)

    @web.middleware
    async def authenticated(request: web.Request, handler: Handler) -> web.StreamResponse:
        if class_of(request) is RouteClass.OPEN:
            return await handler(request)
        principal = anybody if api_keys is None else _principal(request, api_keys)
        request[keys.PRINCIPAL] = principal
        if principal.client:
            request[keys.CLIENT] = principal.client
        scope = scope_of(request)
        if scope is not None and not principal.may(scope):
            raise ProblemError(Kind.FORBIDDEN, f"This needs the scope {scope.value!r}.")
        return await handler(request)

    return authenticated


def _principal(request: web.Request, api_keys: ApiKeys) -> Principal:
    given = credentials_of(request)
    if not api_keys.complete:
        raise unavailable("The API keys are still being read.", retry_after_s=1)
    principal = api_keys.principal(given) if given is not None else None
    if principal is None:
        raise ProblemError(Kind.UNAUTHENTICATED, "This needs an API key that works.", headers=_CHALLENGE)
    return principal


def credentials_of(request: web.Request) -> str | None:
    """Return the key that a request carries, or None. Raises a 400 problem when it carries several."""
    bearers = request.headers.getall("Authorization", ())
    api_keys = request.headers.getall("X-API-Key", ())
    if len(bearers) + len(api_keys) > 1:
        raise ProblemError(Kind.BAD_REQUEST, "Credentials are sent once: as Authorization or as X-API-Key.")
    if api_keys:
        return api_keys[0]
    scheme, _, token = bearers[0].partition(" ") if bearers else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" else None
