"""How many requests are in hand at once, of one client and in all."""

from collections import Counter

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from anabranch.services.gateway.client import client_of
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.problems import unavailable
from anabranch.services.gateway.route_classes import RouteClass, class_of


def limits(max_requests: int, max_of_client: int, metrics: GatewayMetrics) -> Middleware:
    """Refuse with 503 what would be too many at once; probes and metrics always get through."""
    of_client: Counter[str] = Counter()
    in_hand = 0

    @web.middleware
    async def bounded(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal in_hand
        if class_of(request) is RouteClass.OPEN:
            return await handler(request)
        client = client_of(request)
        if in_hand >= max_requests:
            metrics.turned_away("requests")
            raise unavailable("Too many requests are in hand.", retry_after_s=1)
        if of_client[client] >= max_of_client:
            metrics.turned_away("requests_of_client")
            raise unavailable("Too many requests of this client are in hand.", retry_after_s=1)
        in_hand += 1
        of_client[client] += 1
        try:
            return await handler(request)
        finally:
            in_hand -= 1
            of_client[client] -= 1
            if not of_client[client]:
                del of_client[client]

    return bounded
