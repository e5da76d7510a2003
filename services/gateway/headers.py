"""What stands on every answer for the browsers among the clients."""

from typing import Final

from aiohttp import web
from multidict import CIMultiDict, istr

from anabranch.services.gateway import keys

# No value may depend on the request. A handler that sets one of them itself (the documentation page's policy) wins.
SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-XSS-Protection": "1; mode=block",
    "Strict-Transport-Security": "max-age=63072000; includeSubDomains",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Server": "anabranch",  # the framework would add its version and Python's
}


_ADDED: Final = tuple((istr(name), value) for name, value in SECURITY_HEADERS.items())  # small letters are made once


def add_security_headers(headers: "CIMultiDict[str]") -> None:
    """Add what is not there yet."""
    for name, value in _ADDED:
        headers.setdefault(name, value)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add to an answer, as it begins to be sent, what every one has, and what was collected for this one."""
    response.headers["Server"] = SECURITY_HEADERS["Server"]  # the framework has added its own by now
    response.headers.update(request.get(keys.HEADERS, ()))
    add_security_headers(response.headers)
