"""Secrets as a definition names them: `${{ secrets.NAME }}`. Their values are the step services' alone.

A command says beside its input where secrets belong in it, and never within it: nothing that a client sends, and
nothing that a step outputs, can be taken for the name of one.
"""

import re
from dataclasses import dataclass
from typing import Final

from anabranch.shared.contracts.limits import MAX_NAME_CHARS

SECRETS: Final = "secrets"

_NAME: Final = re.compile(rf"[A-Za-z_][A-Za-z0-9_-]{{0,{MAX_NAME_CHARS - 1}}}")
_REFERENCE: Final = re.compile(r"\s*secrets\s*(?:\.\s*(\w+)|\[\s*(?:'([^'\\]*)'|\"([^\"\\]*)\")\s*\])\s*", re.ASCII)
_DASHED: Final = re.compile(r"\s*secrets\.([\w-]+)\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class SecretText:
    """A text of a command's input that has secrets in it: its place (a JSON Pointer), and what it is made of.

    `parts` are a text as it is, the name of a secret, a text, a name, and so on; it begins and ends with a text.
    """

    at: str
    parts: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The secrets in it."""
        return self.parts[1::2]


def is_secret_name(text: str) -> bool:
    """Return whether a secret may be called so: a text that is also the name of one file."""
    return _NAME.fullmatch(text) is not None


def secret_named(expression: str) -> str | None:
    """Return the secret that an expression is the name of: `secrets.NAME`, `secrets['NAME']`, and nothing else."""
    match = _REFERENCE.fullmatch(expression)
    name = match and (match[1] or match[2] or match[3])
    return name if name and is_secret_name(name) else None


def why_no_secret(expression: str) -> str:
    """Return what is to be said of an expression that names `secrets` where, or as, none can be named."""
    if secret_named(expression) is not None:
        return "; a secret can be named only in the `with` of a step that a step service runs"
    dashed = _DASHED.fullmatch(expression)
    if dashed and "-" in dashed[1] and is_secret_name(dashed[1]):
        return f"; a secret with a dash is secrets['{dashed[1]}']"
    return "; a secret stands alone in its ${{ }}, as secrets.NAME: no expression can see its value"
