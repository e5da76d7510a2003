"""Requests that the parser takes and that somebody in front of this may read otherwise.

Where RFC 9112 leaves a choice, a proxy may have chosen differently, and what is a body to it is a request to us. Such
a request is refused, and its connection closed, before anybody looks at what it wants.
"""

import re
from typing import Final

from aiohttp import HttpVersion11
from aiohttp.http import RawRequestMessage

_SCHEMES: Final = ("http://", "https://")
_HOST: Final = re.compile(r"(?:[\w\-.~!$&'()*+,;=%]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?", re.ASCII)


def why_ambiguous(message: RawRequestMessage) -> str:
    """Return why a request may be read in two ways, "" when there is one way only."""
    if message.method == "CONNECT":
        return "This is no proxy: CONNECT is not spoken here."
    if "Transfer-Encoding" in message.headers:
        if message.headers["Transfer-Encoding"].lower() != "chunked":
            return "Of transfer codings only chunked is read here, alone."
        if message.version != HttpVersion11:
            return "A request of another version than HTTP/1.1 has no Transfer-Encoding."
    return _why_wrong_target(message.path, message.headers.get("Host", ""))


def _why_wrong_target(target: str, host: str) -> str:
    if _HOST.fullmatch(host) is None:
        return "Host is no host with an optional port."
    if "#" in target:
        return "A request's target has no fragment."
    if target.startswith("/") or target == "*":
        return ""
    scheme, separator, rest = target.partition("://")
    if f"{scheme}{separator}".lower() not in _SCHEMES:
        return "A request's target is a path, or an http or https URL."
    authority = re.split("[/?]", rest, maxsplit=1)[0]
    if authority.lower() != host.lower():
        return "A request's target and its Host name two hosts."
    return ""
