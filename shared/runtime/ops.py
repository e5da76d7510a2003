"""`/healthz`, `/readyz`, `/metrics`: what every service answers to those who operate it."""

from collections.abc import Callable, Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

Check = Callable[[], bool | str]


class Readiness:
    """Named checks, and what of them does not hold."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}

    def add(self, name: str, check: Check) -> None:
        """Add a check, or replace the one of that name."""
        self._checks[name] = check

    def not_ready(self) -> Mapping[str, str]:
        """Return the checks that do not hold, and why."""
        answers = {name: check() for name, check in self._checks.items()}
        return {
            name: answer if isinstance(answer, str) else "not ready"
            for name, answer in answers.items()
            if answer is not True
        }


def add_ops_routes(app: web.Application, readiness: Readiness, registry: CollectorRegistry) -> None:
    """Add the three routes to an application, except those that it has already."""

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        missing = readiness.not_ready()
        body = {"status": "not ready" if missing else "ready", "not_ready": dict(missing)}
        return web.json_response(body, status=503 if missing else 200)

    async def metrics(request: web.Request) -> web.Response:
        if "application/openmetrics-text" in request.headers.get("Accept", ""):  # it alone has exemplars
            body, content_type = _openmetrics(registry), openmetrics.CONTENT_TYPE_LATEST
        else:
            body, content_type = generate_latest(registry), CONTENT_TYPE_LATEST
        return web.Response(body=body, headers={"Content-Type": content_type})

    present = {resource.canonical for resource in app.router.resources()}
    for path, handler in (("/healthz", healthz), ("/readyz", readyz), ("/metrics", metrics)):
        if path not in present:
            app.router.add_get(path, handler)


def _openmetrics(registry: CollectorRegistry) -> bytes:
    body: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
    return body
