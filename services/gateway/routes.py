"""The URL table."""

from typing import Final

from aiohttp import web

from anabranch.services.gateway import pipelines, runs

ROUTES: Final = (
    web.post("/v1/runs", runs.submit_run),
    web.get("/v1/runs/{id}", runs.get_run),
    web.post("/v1/pipelines:validate", pipelines.validate),
    web.get("/v1/step-types", pipelines.list_step_types),
)
