"""API keys: how they look, and what is kept of them."""

import hashlib
import re
from enum import StrEnum
from typing import Final


class Scope(StrEnum):
    """What a caller may do; `admin` includes the others."""

    SUBMIT = "submit"
    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"


PREFIX: Final = "anb_"  # no token begins like this, and scanners for secrets find it
ID_BYTES: Final = 8
SECRET_BYTES: Final = 32  # 256 bits: nobody guesses them, so that a plain hash of them is enough
_KEY: Final = re.compile(rf"{PREFIX}([0-9a-f]{{{2 * ID_BYTES}}})_[0-9a-f]{{{2 * SECRET_BYTES}}}")


def api_key(key_id: str, secret: str) -> str:
    """Return the text that a client sends."""
    return f"{PREFIX}{key_id}_{secret}"


def key_id_of(text: str) -> str | None:
    """Return the id in a key, or None when it is not one."""
    match = _KEY.fullmatch(text)
    return match[1] if match else None


def hash_of(text: str) -> str:
    """Return what is kept of a key instead of it; a stranger's text may have halves of surrogate pairs."""
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
