"""What each route is for: which limit counts for it, whether another site may not send it, and the scope it needs."""

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final

from aiohttp import web

from anabranch.shared.contracts.api_keys import Scope


class RouteClass(Enum):
    """What a request does."""

    OPEN = "open"  # tells nothing of a tenant: counted for nobody
    READ = "read"
    CHANGE = "change"


# By method and path as in the URL table. What is not in here is judged by its method.
CLASSES: Final = {
    ("POST", "/v1/runs"): RouteClass.CHANGE,
    ("POST", "/v1/runs:batch"): RouteClass.CHANGE,
    ("GET", "/v1/runs"): RouteClass.READ,
    ("GET", "/v1/statistics"): RouteClass.READ,
    ("GET", "/v1/runs/{id}"): RouteClass.READ,
    ("GET", "/v1/runs/{id}/steps/{step}/attempts"): RouteClass.READ,
    ("POST", "/v1/runs/{id}/cancel"): RouteClass.CHANGE,
    ("GET", "/v1/runs/{id}/events"): RouteClass.READ,
    ("GET", "/v1/events"): RouteClass.READ,
    ("POST", "/v1/pipelines:validate"): RouteClass.READ,
    ("GET", "/v1/step-types"): RouteClass.READ,
    ("GET", "/v1/doctor"): RouteClass.READ,
    ("GET", "/openapi.json"): RouteClass.OPEN,
    ("GET", "/schemas/pipeline.json"): RouteClass.OPEN,
    ("GET", "/docs"): RouteClass.OPEN,
    ("GET", "/docs/{asset}"): RouteClass.OPEN,
    ("GET", "/healthz"): RouteClass.OPEN,
    ("GET", "/readyz"): RouteClass.OPEN,
    ("GET", "/metrics"): RouteClass.OPEN,
}

# By method and path as well. A route that is neither in here nor open is for `admin` alone.
SCOPES: Final = {
    ("POST", "/v1/runs"): Scope.SUBMIT,
    ("POST", "/v1/runs:batch"): Scope.SUBMIT,
    ("GET", "/v1/runs"): Scope.READ,
    ("GET", "/v1/statistics"): Scope.READ,
    ("GET", "/v1/runs/{id}"): Scope.READ,
    ("GET", "/v1/runs/{id}/steps/{step}/attempts"): Scope.READ,
    ("POST", "/v1/runs/{id}/cancel"): Scope.OPERATE,
    ("GET", "/v1/runs/{id}/events"): Scope.READ,
    ("GET", "/v1/events"): Scope.READ,
    ("POST", "/v1/pipelines:validate"): Scope.SUBMIT,
    ("GET", "/v1/step-types"): Scope.READ,
    ("GET", "/v1/doctor"): Scope.ADMIN,
}

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
UNMATCHED: Final = "unmatched"


@dataclass(frozen=True, slots=True)
class Route:
    """What is known of a request by its method and path."""

    path: str
    route_class: RouteClass
    scope: Scope | None


_ROUTE: Final = web.RequestKey("route", Route)


def classify(request: web.Request) -> None:
    """Find out what a request is for, before anybody asks."""
    resource = request.match_info.route.resource
    request[_ROUTE] = _route(request.method, UNMATCHED if resource is None else resource.canonical)


@lru_cache(maxsize=256)  # clients may invent methods
def _route(method: str, path: str) -> Route:
    method = "GET" if method == "HEAD" else method
    known = CLASSES.get((method, path))
    if known is None:
        known = RouteClass.READ if method in _SAFE else RouteClass.CHANGE
    return Route(path, known, None if path == UNMATCHED else SCOPES.get((method, path), Scope.ADMIN))


def route_of(request: web.Request) -> str:
    """Return the path as the URL table has it, or `unmatched`."""
    return request[_ROUTE].path


def class_of(request: web.Request) -> RouteClass:
    """Return what a request does; nobody changes anything by a safe method, and any other may."""
    return request[_ROUTE].route_class


def scope_of(request: web.Request) -> Scope | None:
    """Return the scope that a request's route needs; None where there is no route, of which nobody learns more."""
    return request[_ROUTE].scope
