"""A request's body, never more of it in memory than a body may have, nor more of all together than has room."""

import asyncio
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.problems import Kind, ProblemError, unavailable
from anabranch.services.gateway.unpacking import NotPackedError, Unpacking
from anabranch.shared.contracts.limits import KIB, MAX_BODY_BYTES, MIB
from anabranch.shared.runtime.listener import say_continue

JSON: Final = "application/json"
YAML: Final = "application/yaml"
_MEDIA_TYPES: Final = {
    "application/json": JSON,
    "text/json": JSON,
    "application/yaml": YAML,
    "application/x-yaml": YAML,
    "text/yaml": YAML,
    "text/x-yaml": YAML,
}


def media_type_of(request: web.Request) -> str:
    """Return JSON or YAML. Raises a 415 problem for anything else, and for a charset that is not UTF-8."""
    given = request.headers.get("Content-Type", "")
    if given == JSON:
        return JSON
    known = _MEDIA_TYPES.get(given.partition(";")[0].strip().lower())
    if known is None or (request.charset or "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
        said = given[:80] or "no Content-Type"
        raise ProblemError(
            Kind.UNSUPPORTED_MEDIA_TYPE,
            f"{said} is not read here: send application/json or application/yaml in UTF-8.",
            headers={"Accept-Post": f"{JSON}, {YAML}"},
        )
    return known


_ENCODINGS: Final = "gzip, x-gzip, deflate"


def unpacking_of(request: web.Request) -> Unpacking | None:
    """Return how to unpack the body, None when it comes as it is. Raises a 415 problem for what is unknown here."""
    given = ", ".join(request.headers.getall("Content-Encoding", ())).strip().lower()
    if given in ("", "identity"):
        return None
    if given in ("gzip", "x-gzip"):
        return Unpacking(is_gzip=True)
    if given == "deflate":
        return Unpacking(is_gzip=False)
    raise ProblemError(
        Kind.UNSUPPORTED_MEDIA_TYPE,
        f"The Content-Encoding {given[:80]!r} is not read here: send the body plain, or in one of {_ENCODINGS}.",
        headers={"Accept-Encoding": _ENCODINGS},
    )


class ClientLeft(Exception):
    """The client went away before its request was whole: nobody's error, and nobody to answer."""


# Of all bodies that are being received. Small ones are let in longer: a few slow large ones do not shut them out.
_RECEIVING_BYTES: Final = 128 * MIB
_LARGE_RECEIVING_BYTES: Final = 64 * MIB
_SMALL_BYTES: Final = 64 * KIB


class Bodies:
    """Receives bodies, each within a time and all of them within so many bytes."""

    def __init__(self, timeout_s: float, metrics: GatewayMetrics) -> None:
        self._timeout_s = timeout_s
        self._metrics = metrics
        self.receiving_bytes = 0

    async def read(self, request: web.Request) -> bytes:
        """Return the whole body.

        Raises `ClientLeft`, and a problem: 413 as soon as the body is known to be too large, 408 when it takes too
        long, 503 when too much is being received, 400 when it is not in the encoding that its headers announce.
        """
        unpacking = unpacking_of(request)
        if (request.content_length or 0) > MAX_BODY_BYTES:
            raise _too_large()
        try:
            if request.content.is_eof():  # it came with its head: there is nothing to wait for, nor to ask for
                return await self._received(request, unpacking)
            async with asyncio.timeout(self._timeout_s):
                await say_continue(request)
                return await self._received(request, unpacking)
        except NotPackedError as error:
            raise ProblemError(Kind.UNREADABLE, "The body is not in the encoding that its headers announce.") from error
        except TimeoutError as error:
            raise ProblemError(
                Kind.TOO_SLOW,
                f"The body was not complete within {self._timeout_s:g} seconds.",
                headers={"Connection": "close"},
            ) from error
        except ConnectionError as error:
            raise ClientLeft from error
        except (web.RequestPayloadError, HttpProcessingError) as error:
            if request.transport is None or request.transport.is_closing():
                raise ClientLeft from error
            raise ProblemError(Kind.UNREADABLE, "The body is not in the encoding that its headers announce.") from error

    async def _received(self, request: web.Request, unpacking: Unpacking | None) -> bytes:
        body = bytearray()
        sent = 0
        try:
            while chunk := await request.content.readany():
                sent += len(chunk)
                if unpacking is not None:
                    chunk = unpacking.unpacked(chunk, MAX_BODY_BYTES + 1 - len(body))
                if sent > MAX_BODY_BYTES or len(body) + len(chunk) > MAX_BODY_BYTES:
                    raise _too_large()
                self.receiving_bytes += len(chunk)
                body += chunk
                self._refuse_if_full(len(body))
        finally:
            self.receiving_bytes -= len(body)
        if unpacking is not None:
            unpacking.end()
        return bytes(body)

    def _refuse_if_full(self, size: int) -> None:
        room = _RECEIVING_BYTES if size <= _SMALL_BYTES else _LARGE_RECEIVING_BYTES
        if self.receiving_bytes > room:
            self._metrics.run_refused("receiving")
            raise unavailable("Too many bodies are being received.", retry_after_s=1)


def _too_large() -> ProblemError:
    return ProblemError(Kind.TOO_LARGE, f"A body may have {MAX_BODY_BYTES} bytes at most.")
