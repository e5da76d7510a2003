"""The handler that looks at the installation, for operators who reach only the gateway."""

from typing import Final

import orjson
from aiohttp import web

from anabranch.services.gateway import keys
from anabranch.services.gateway.body import JSON
from anabranch.services.gateway.requests import refuse_query_but
from anabranch.shared.diagnosis.doctor import examine, is_well

_EVERYBODY: Final = ""  # what is found is not of a tenant


async def diagnose(request: web.Request) -> web.Response:
    """`GET /v1/doctor`: how Kafka, Redis, the record and the engine's processes are, and what to do."""
    refuse_query_but(request)
    settings = request.app[keys.SETTINGS]

    async def ask() -> bytes:
        findings = await examine(settings)
        return orjson.dumps({"is_well": is_well(findings), "findings": findings})

    body = await request.app[keys.RECENT_ANSWERS].answer((_EVERYBODY, request.path, ""), ask)
    return web.Response(body=body, content_type=JSON)
