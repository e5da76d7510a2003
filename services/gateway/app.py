"""The application: routes, and what stands around every handler."""

import time
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler
from structlog.typing import FilteringBoundLogger

from anabranch.services.gateway import keys
from anabranch.services.gateway.body import Bodies, ClientLeft
from anabranch.services.gateway.intake import Intake
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.pressure import Pressure
from anabranch.services.gateway.problems import Kind, ProblemError, of_http_error
from anabranch.services.gateway.reads import RunReads
from anabranch.services.gateway.routes import ROUTES
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.services.gateway.step_types import StepTypes
from anabranch.services.gateway.submissions import SubmissionReader
from anabranch.services.gateway.waiting import Watches
from anabranch.shared.contracts.ids import new_run_id
from anabranch.shared.contracts.limits import MAX_BODY_BYTES

_UNMATCHED: Final = "unmatched"
_CLIENT_LEFT: Final = 499  # nginx's number for it; no client ever sees it


def create_app(
    *,
    settings: GatewaySettings,
    log: FilteringBoundLogger,
    metrics: GatewayMetrics,
    step_types: StepTypes,
    pressure: Pressure,
    intake: Intake,
    reads: RunReads,
    watches: Watches,
) -> web.Application:
    """Return the application; nothing in it starts or stops anything."""
    app = web.Application(middlewares=[_answered], client_max_size=MAX_BODY_BYTES)
    app[keys.SETTINGS] = settings
    app[keys.LOG] = log
    app[keys.METRICS] = metrics
    app[keys.STEP_TYPES] = step_types
    app[keys.READER] = SubmissionReader(step_types, metrics)
    app[keys.BODIES] = Bodies(settings.body_timeout_s, metrics)
    app[keys.PRESSURE] = pressure
    app[keys.INTAKE] = intake
    app[keys.READS] = reads
    app[keys.WATCHES] = watches
    app.add_routes(ROUTES)
    return app


@web.middleware
async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer problems as problem documents; count, time and (at debug level) log every request."""
    began_s = time.perf_counter()
    response = await _with_problems(request, handler)
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else _UNMATCHED
    request.app[keys.METRICS].answered(route, response.status, time.perf_counter() - began_s)
    request.app[keys.LOG].debug("answered", method=request.method, route=route, status=response.status)
    return response


async def _with_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ProblemError as problem:
        return problem.response(_occurrence())
    except web.HTTPException as error:
        return of_http_error(error).response(_occurrence())
    except ClientLeft:
        return _to_nobody(request)
    except Exception:  # noqa: BLE001  the client learns nothing of our internals, the log all of them
        instance = _occurrence()
        request.app[keys.LOG].error("a request failed", path=request.path, instance=instance, exc_info=True)
        return ProblemError(
            Kind.INTERNAL, "Something went wrong on our side; the log has more under this instance."
        ).response(instance)


def _to_nobody(request: web.Request) -> web.Response:
    """Return the answer that nobody waits for: a client that goes away is no error."""
    request.app[keys.METRICS].client_left()
    return web.Response(status=_CLIENT_LEFT)


def _occurrence() -> str:
    return f"urn:uuid:{new_run_id()}"
