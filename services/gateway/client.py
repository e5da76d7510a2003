"""Who sends a request, and whose its runs are."""

from aiohttp import web

from anabranch.services.gateway import keys


def client_of(request: web.Request) -> str:
    """Return whom a request is counted for."""
    return request[keys.CLIENT]


def tenant_of(request: web.Request) -> str:
    """Return whom a request's runs belong to; nothing while that is not known."""
    principal = request.get(keys.PRINCIPAL)
    return principal.tenant if principal is not None else ""


def is_heard(request: web.Request) -> bool:
    """Return whether the client is still there."""
    transport = request.transport
    return transport is not None and not transport.is_closing() and not getattr(request.protocol, "half_closed", False)
