"""Handlers of definitions and step types."""

import orjson
from aiohttp import web

from anabranch.services.gateway import keys
from anabranch.services.gateway.body import media_type_of
from anabranch.services.gateway.problems import unavailable


async def validate(request: web.Request) -> web.Response:
    """`POST /v1/pipelines:validate`: the body is a definition; 200 when it may run, else 422 with everything wrong."""
    media_type = media_type_of(request)
    if not request.app[keys.STEP_TYPES].complete:
        raise unavailable("The step types are still being read.", retry_after_s=1)
    definition = await request.app[keys.READER].definition(await request.app[keys.BODIES].read(request), media_type)
    document = {
        "valid": True,
        "name": definition.name,
        "steps": len(definition.steps),
        "content_hash": definition.content_hash,
    }
    return web.Response(body=orjson.dumps(document), content_type="application/json")


async def list_step_types(request: web.Request) -> web.Response:
    """`GET /v1/step-types`: every type that a step may use, with the JSON Schemas of its input and output."""
    return web.Response(body=request.app[keys.STEP_TYPES].document(), content_type="application/json")
