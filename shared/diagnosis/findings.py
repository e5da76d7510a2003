"""What a look at an installation found."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"  # runs go on, and somebody should know
    FAULT = "fault"  # runs do not go on, or will not for long
    UNKNOWN = "unknown"  # it could not be looked at


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and what to do about it; nothing where all is well."""

    check: str
    verdict: Verdict
    says: str
    do: str = ""


def ok(check: str, says: str) -> Finding:
    """Return that all is well."""
    return Finding(check, Verdict.OK, says)


def warning(check: str, says: str, do: str) -> Finding:
    """Return what somebody should know."""
    return Finding(check, Verdict.WARNING, says, do)


def fault(check: str, says: str, do: str) -> Finding:
    """Return what keeps runs from going on."""
    return Finding(check, Verdict.FAULT, says, do)


def unknown(check: str, says: str, do: str) -> Finding:
    """Return that a check could not be made."""
    return Finding(check, Verdict.UNKNOWN, says, do)
