"""The URL table."""

from typing import Final

from aiohttp import web

from anabranch.services.gateway import batches, documents, pipelines, runs

ROUTES: Final = (
    web.post("/v1/runs", runs.submit_run),
    web.post("/v1/runs:batch", batches.submit_batch),
    web.get("/v1/runs/{id}", runs.get_run),
    web.post("/v1/runs/{id}/cancel", runs.cancel_run),
    web.post("/v1/pipelines:validate", pipelines.validate),
    web.get("/v1/step-types", pipelines.list_step_types),
    web.get("/openapi.json", documents.openapi),
    web.get("/schemas/pipeline.json", documents.pipeline_schema),
    web.get("/docs", documents.page),
    web.get("/docs/{asset}", documents.page_file),
)
