"""What each route is for: which limit counts for it, whether another site may not send it, and the scope it needs."""

from enum import Enum
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
    ("GET", "/v1/runs/{id}"): RouteClass.READ,
    ("POST", "/v1/runs/{id}/cancel"): RouteClass.CHANGE,
    ("POST", "/v1/pipelines:validate"): RouteClass.READ,
    ("GET", "/v1/step-types"): RouteClass.READ,
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
    ("GET", "/v1/runs/{id}"): Scope.READ,
    ("POST", "/v1/runs/{id}/cancel"): Scope.OPERATE,
    ("POST", "/v1/pipelines:validate"): Scope.SUBMIT,
    ("GET", "/v1/step-types"): Scope.READ,
}

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
UNMATCHED: Final = "unmatched"


def route_of(request: web.Request) -> str:
    """Return the path as the URL table has it, or `unmatched`."""
    resource = request.match_info.route.resource
    return UNMATCHED if resource is None else resource.canonical


def class_of(request: web.Request) -> RouteClass:
    """Return what a request does; nobody changes anything by a safe method, and any other may."""
    method = "GET" if request.method == "HEAD" else request.method
    known = CLASSES.get((method, route_of(request)))
    if known is None:
        known = RouteClass.READ if method in _SAFE else RouteClass.CHANGE
    return known


def scope_of(request: web.Request) -> Scope | None:
    """Return the scope that a request's route needs; None where there is no route, of which nobody learns more."""
    route = route_of(request)
    if route == UNMATCHED:
        return None
    method = "GET" if request.method == "HEAD" else request.method
    return SCOPES.get((method, route), Scope.ADMIN)
