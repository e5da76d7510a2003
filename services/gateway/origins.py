"""The origins of a setting."""

from typing import Final
from urllib.parse import urlsplit

from anabranch.shared.contracts.errors import AnabranchError

ANY: Final = "*"


class BadOriginError(AnabranchError, ValueError):
    """A setting names something that is no origin."""


def origins_of(text: str) -> tuple[str, ...]:
    """Return the origins of a list with commas, `https://a.example, http://localhost:3000`; `*` is any."""
    origins = tuple(part.strip() for part in text.split(",") if part.strip())
    for origin in origins:
        parts = urlsplit(origin)
        if origin != ANY and (parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}"):
            raise BadOriginError(f"{origin!r} is no origin: https://host or https://host:port")
    return origins
