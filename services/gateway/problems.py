"""Errors as clients see them: RFC 9457 problem documents."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Any, Final

import orjson
from aiohttp import web

from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.contracts.text import writable

MEDIA_TYPE: Final = "application/problem+json"
_URN: Final = "urn:anabranch:problem:"


class Kind(Enum):
    """Every problem there is: its name behind `urn:anabranch:problem:`, status and title."""

    UNREADABLE = ("unreadable", 400, "The body cannot be read")
    BAD_REQUEST = ("bad-request", 400, "The request is not understood")
    UNAUTHENTICATED = ("unauthenticated", 401, "Not authenticated")
    FORBIDDEN = ("forbidden", 403, "Not allowed")
    NOT_FOUND = ("not-found", 404, "Not found")
    METHOD_NOT_ALLOWED = ("method-not-allowed", 405, "Method not allowed")
    TOO_SLOW = ("too-slow", 408, "The body came too slowly")
    CONFLICT = ("conflict", 409, "Not possible now")
    TOO_LARGE = ("too-large", 413, "The body is too large")
    UNSUPPORTED_MEDIA_TYPE = ("unsupported-media-type", 415, "Media type not supported")
    EXPECTATION_FAILED = ("expectation-failed", 417, "Expectation failed")
    INVALID = ("invalid", 422, "The submission is invalid")
    KEY_REUSED = ("idempotency-key-reused", 422, "The idempotency key was used for another body")
    TOO_MANY = ("too-many-requests", 429, "Too many requests")
    HEAD_TOO_LARGE = ("head-too-large", 431, "The request's head is too large")
    INTERNAL = ("internal", 500, "Internal error")
    UNAVAILABLE = ("unavailable", 503, "Not available now")
    VERSION_NOT_SUPPORTED = ("version-not-supported", 505, "HTTP version not supported")
    OUTCOME_UNKNOWN = ("outcome-unknown", 503, "The run may or may not have been accepted")

    @property
    def urn(self) -> str:
        """The problem's `type`."""
        return _URN + self.value[0]

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.value[1]

    @property
    def title(self) -> str:
        """The same sentence for every problem of the kind."""
        return self.value[2]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong in a body: where, as a JSON Pointer and as line and column, and what."""

    pointer: str
    message: str
    line: int | None = None
    column: int | None = None

    def document(self) -> dict[str, Any]:
        """Return the entry of `errors`; line and column only where they are known."""
        place = {} if self.line is None else {"line": self.line, "column": self.column}
        return {"pointer": self.pointer, "message": self.message, **place}


class ProblemError(AnabranchError):
    """Raised by whatever refuses a request; the middleware answers with it."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        faults: Iterable[Fault] = (),
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.faults = tuple(faults)
        self.headers = dict(headers or {})
        self.members = dict(members or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(retry_after_s)

    def response(self, instance: str) -> web.Response:
        """Return the problem document as an answer; `instance` names this occurrence."""
        body = orjson.dumps(self.document(instance))
        return web.Response(body=body, status=self.kind.status, content_type=MEDIA_TYPE, headers=self.headers)

    def document(self, instance: str) -> dict[str, Any]:
        """Return the problem document; `instance` names this occurrence."""
        document = {
            "type": self.kind.urn,
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": writable(self.detail),  # it may quote a header's bytes
            "instance": instance,
            **self.members,
        }
        if self.faults:
            document["errors"] = [fault.document() for fault in self.faults]
        return document


_OF_STATUS: Final = {
    400: (Kind.BAD_REQUEST, "The request is not HTTP as it should be."),
    404: (Kind.NOT_FOUND, "There is nothing at this path."),
    405: (Kind.METHOD_NOT_ALLOWED, "This path does not take this method."),
    413: (Kind.TOO_LARGE, "The body is larger than a body may be."),
    415: (Kind.UNSUPPORTED_MEDIA_TYPE, "This media type is not read here."),
}


def of_http_error(error: web.HTTPException) -> ProblemError:
    """Return what the framework raised as a problem."""
    kind, detail = _OF_STATUS.get(error.status, (Kind.BAD_REQUEST, HTTPStatus(error.status).phrase))
    kept = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return ProblemError(kind, detail, headers=kept)


def unavailable(detail: str, *, retry_after_s: int | None) -> ProblemError:
    """Return the answer to a request that may work a little later."""
    return ProblemError(Kind.UNAVAILABLE, detail, retry_after_s=retry_after_s)
