"""How a URL is named where people read it: without what only its owner may know."""

import re
from typing import Any, Final

from anabranch.shared.contracts.text import writable

HIDDEN: Final = "***"

_RUN: Final = re.compile(r"://[^\s\"<>`]*")  # from a scheme's end to where no URL goes on; other URLs may be in it
# What stands before the host, also where a password has the characters that end one: `bob:a/b@host`.
_USER: Final = re.compile(r"[^/?#@]*(?:@[^/?#@]*)*@|[^/?#:@]*:(?!\d*(?:[/?#]|$))[^@]*@")
_QUERY: Final = re.compile(r"[?#]")
_CREDENTIAL: Final = re.compile(
    r"([?&;#](?:[\w.-]*(?:token|secret|passw|pwd|signature|credential|api[_-]?key|apikey|session|auth)[\w.-]*"
    r"|sig|key|code|jwt|pass|sid)=)[^&;#\s]*",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """Return a text whose URLs, of any scheme, name no user, no password, no query and no fragment."""
    return _RUN.sub(_bare, text) if "://" in text else text


def _bare(match: re.Match[str]) -> str:
    shown = [""]
    for url in match[0].split("://")[1:]:
        bare = _USER.sub(f"{HIDDEN}@", url, count=1) if _USER.match(url) else url
        query = _QUERY.search(bare)
        if query:
            shown.append(f"{bare[: query.end()]}…")
            break
        shown.append(bare)
    return "://".join(shown)


def redacted_value(value: Any) -> Any:
    """Return a JSON value, of bounded depth, whose texts are `redacted`."""
    match value:
        case str():
            return redacted(value)
        case dict():
            return {redacted(key): redacted_value(each) for key, each in value.items()}
        case list():
            return [redacted_value(each) for each in value]
        case _:
            return value


def shown_url(url: str, chars: int = 300) -> str:
    """Return how a message names a URL: in one line, of so many characters, and `redacted`."""
    text = redacted(url if "://" in url else url.partition("?")[0])
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in writable(text)[:chars])


def without_credentials(url: str) -> str:
    """Return a URL that still leads somewhere: without user and password, credentials in its query hidden."""
    scheme, separator, rest = url.partition("://")
    user = _USER.match(rest)
    return _CREDENTIAL.sub(rf"\1{HIDDEN}", f"{scheme}{separator}{rest[user.end() if user else 0 :]}")
