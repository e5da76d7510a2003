"""Whatever goes wrong is answered as a problem document."""

from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from anabranch.services.gateway import keys
from anabranch.services.gateway.body import ClientLeft
from anabranch.services.gateway.headers import add_security_headers
from anabranch.services.gateway.problems import Kind, ProblemError, of_http_error
from anabranch.services.gateway.request_log import REQUEST_ID, trace_id_said_of
from anabranch.services.gateway.route_classes import RouteClass, class_of
from anabranch.shared.contracts.ids import new_run_id
from anabranch.shared.runtime.listener import EXPECTS, VERSION

_OF_REFUSAL: Final = {
    408: Kind.TOO_SLOW,
    431: Kind.HEAD_TOO_LARGE,
    500: Kind.INTERNAL,
    503: Kind.UNAVAILABLE,
    504: Kind.INTERNAL,
}
_CLIENT_LEFT: Final = 499  # nginx's number for it; no client ever sees it


def problems() -> Middleware:
    """Answer errors as problem documents."""

    @web.middleware
    async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            _refuse_what_is_not_spoken_here(request)
            return await handler(request)
        except ProblemError as problem:
            return problem.response(occurrence())
        except web.HTTPException as error:
            return of_http_error(error).response(occurrence())
        except ClientLeft:
            return _to_nobody(request)
        except Exception:
            instance = occurrence()
            log = request.app[keys.LOG]
            log.error(
                "a request failed", path=request.path, instance=instance, request_id=request.get(keys.REQUEST_ID, ""),
                run_id=request.get(keys.RUN_ID, ""), trace_id=trace_id_said_of(request), exc_info=True,
            )  # fmt: skip
            words = "Something went wrong on our side; the log has more under this instance."
            return ProblemError(Kind.INTERNAL, words).response(instance)

    return answered


def refusal(status: int, detail: str) -> web.Response:
    """Return the answer to what the listener refuses: nothing is known of the request, not even that it is one."""
    problem = ProblemError(
        _OF_REFUSAL.get(status, Kind.BAD_REQUEST), detail, retry_after_s=1 if status == 503 else None
    )
    response = problem.response(occurrence())
    add_security_headers(response.headers)
    response.headers[REQUEST_ID] = new_run_id()
    return response


def _refuse_what_is_not_spoken_here(request: web.Request) -> None:
    version = request.get(VERSION)
    if version is not None and not (version == "1.0" and class_of(request) is RouteClass.OPEN):
        raise ProblemError(
            Kind.VERSION_NOT_SUPPORTED,
            f"HTTP/{version[:16]} is not spoken here: send HTTP/1.1.",
            headers={"Connection": "close"},
        )
    expects = request.get(EXPECTS)
    if expects is not None and expects != "100-continue":
        raise ProblemError(Kind.EXPECTATION_FAILED, "Of expectations only 100-continue is known here.")


def _to_nobody(request: web.Request) -> web.Response:
    """Return the answer that nobody waits for: a client that goes away is no error."""
    request.app[keys.METRICS].client_left()
    return web.Response(status=_CLIENT_LEFT)


def occurrence() -> str:
    """Return what names one occurrence of a problem."""
    return f"urn:uuid:{new_run_id()}"
