"""Who sends a request, and whose its runs are."""

from aiohttp import web

from anabranch.services.gateway import keys


def client_of(request: web.Request) -> str:
    """Return whom a request is counted for."""
    return request[keys.CLIENT]


def tenant_of(request: web.Request) -> str:
    """Return whom a request's runs belong to."""
    return request.app[keys.SETTINGS].default_tenant
