"""Who may do what: credentials into a principal, and the scope that its route needs."""

from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from anabranch.services.gateway import keys
from anabranch.services.gateway.api_keys import ApiKeys
from anabranch.services.gateway.client import client_of
from anabranch.services.gateway.guesses import Guesses
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.principal import EVERY_SCOPE, Principal
from anabranch.services.gateway.problems import Kind, ProblemError, unavailable
from anabranch.services.gateway.rate_limit import RateLimits, count
from anabranch.services.gateway.route_classes import RouteClass, class_of, scope_of
from anabranch.services.gateway.tokens import Tokens
from anabranch.shared.contracts.api_keys import PREFIX

_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="anabranch"'}


class Doors:
    """The ways in: API keys, tokens, or both."""

    def __init__(
        self, api_keys: ApiKeys | None, tokens: Tokens | None, limits: RateLimits, metrics: GatewayMetrics
    ) -> None:
        self._api_keys = api_keys
        self._tokens = tokens
        self._guesses = Guesses(limits)
        self._limits = limits
        self._metrics = metrics
        known = [name for name, way in (("an API key", api_keys), ("a bearer token", tokens)) if way is not None]
        self._words = f"This needs {' or '.join(known)} that works."

    async def principal(self, request: web.Request) -> Principal:
        """Return who sends a request. Raises a 401 problem when nobody knows, whatever is wrong, or a 429 problem.

        No credentials at all are no guess: the request is counted like any other of its address.
        """
        given, address = credentials_of(request), client_of(request)
        if given:
            self._guesses.look(address, given)
            principal = await self._open(given)
            if principal is not None:
                self._guesses.worked(address, given)
                return principal
            await self._guesses.failed(address)
        else:
            await count(request, self._limits, self._metrics)
        raise ProblemError(Kind.UNAUTHENTICATED, self._words, headers=_CHALLENGE)

    async def _open(self, given: str) -> Principal | None:
        if self._tokens is not None and (self._api_keys is None or not given.startswith(PREFIX)):
            return await self._tokens.principal(given)
        if self._api_keys is None:
            return None
        if not self._api_keys.complete:
            raise unavailable("The API keys are still being read.", retry_after_s=1)
        return self._api_keys.principal(given)


def authentication(doors: Doors | None, default_tenant: str) -> Middleware:
    """Refuse with 401 who is nobody; without `doors` everybody is the default tenant."""
    anybody = Principal(default_tenant, EVERY_SCOPE)

    @web.middleware
    async def authenticated(request: web.Request, handler: Handler) -> web.StreamResponse:
        if class_of(request) is RouteClass.OPEN:
            return await handler(request)
        principal = anybody if doors is None else await doors.principal(request)
        request[keys.PRINCIPAL] = principal
        if principal.client:
            request[keys.CLIENT] = principal.client
        return await handler(request)

    return authenticated


def permission() -> Middleware:
    """Refuse with 403 who may not; it has been counted by then."""

    @web.middleware
    async def permitted(request: web.Request, handler: Handler) -> web.StreamResponse:
        principal = request.get(keys.PRINCIPAL)
        scope = scope_of(request) if principal is not None else None
        if principal is not None and scope is not None and not principal.may(scope):
            raise ProblemError(Kind.FORBIDDEN, f"This needs the scope {scope.value!r}.")
        return await handler(request)

    return permitted


def credentials_of(request: web.Request) -> str | None:
    """Return the key or token that a request carries, or None. Raises a 400 problem when it carries several."""
    bearers = request.headers.getall("Authorization", ())
    api_keys = request.headers.getall("X-API-Key", ())
    if len(bearers) + len(api_keys) > 1:
        raise ProblemError(Kind.BAD_REQUEST, "Credentials are sent once: as Authorization or as X-API-Key.")
    if api_keys:
        return api_keys[0]
    scheme, _, token = bearers[0].partition(" ") if bearers else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" else None
