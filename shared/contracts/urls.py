"""How a URL is named where people read it: without what only its owner may know."""

import re
from typing import Final

from anabranch.shared.contracts.text import writable

HIDDEN: Final = "***"

# What stands before the host, also where a password has the characters that end one: `http://bob:a/b@host`.
_USER: Final = r"(?:[^/?#\s]*@|[^/?#\s:@]*:(?!\d*(?:[/?#\s]|$))[^\s@]{0,1000}@)?"
_URL: Final = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]{{0,30}}://){_USER}([^\s?#\"'<>`]*)([?#][^\s\"'<>`]*)?")
_CREDENTIAL: Final = re.compile(
    r"([?&;#](?:[\w.-]*(?:token|secret|passw|pwd|signature|credential|api[_-]?key|apikey|session|auth)[\w.-]*"
    r"|sig|key|code|jwt|pass|sid)=)[^&;#\s]*",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """Return a text whose URLs, of any scheme, name no user, no password, no query and no fragment."""
    return _URL.sub(_bare, text) if "://" in text else text


def _bare(match: re.Match[str]) -> str:
    scheme, rest, query = match.groups()
    user = f"{HIDDEN}@" if match.start(2) > match.end(1) else ""
    return f"{scheme}{user}{rest}{f'{query[0]}…' if query else ''}"


def shown_url(url: str, chars: int = 300) -> str:
    """Return how a message names a URL: in one line, of so many characters, and `redacted`."""
    text = redacted(url if "://" in url else url.partition("?")[0])
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in writable(text)[:chars])


def without_credentials(url: str) -> str:
    """Return a URL that still leads somewhere: without user and password, credentials in its query hidden."""
    return _CREDENTIAL.sub(rf"\1{HIDDEN}", re.sub(rf"(//){_USER}", r"\1", url, count=1))
