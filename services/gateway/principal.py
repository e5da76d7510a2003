"""Who sends a request, once it is known."""

from dataclasses import dataclass
from typing import Final

from anabranch.shared.contracts.api_keys import Scope


@dataclass(frozen=True, slots=True)
class Principal:
    """Whose runs a request is about, what it may do, and whom it is counted for (nothing: its address)."""

    tenant: str
    scopes: frozenset[Scope]
    client: str = ""

    def may(self, scope: Scope) -> bool:
        """Return whether a route that needs this scope is open to it; `admin` includes the others."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


EVERY_SCOPE: Final = frozenset(Scope)
