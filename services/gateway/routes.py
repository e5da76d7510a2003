"""The URL table."""

from typing import Final

from aiohttp import web

from anabranch.services.gateway import attempts, batches, diagnosis, documents, pipelines, runs, searching, streams

ROUTES: Final = (
    web.post("/v1/runs", runs.submit_run),
    web.get("/v1/runs", searching.search_runs),
    web.get("/v1/statistics", searching.read_statistics),
    web.post("/v1/runs:batch", batches.submit_batch),
    web.get("/v1/runs/{id}", runs.get_run),
    web.get("/v1/runs/{id}/steps/{step}/attempts", attempts.get_attempts),
    web.post("/v1/runs/{id}/cancel", runs.cancel_run),
    web.get("/v1/runs/{id}/events", streams.run_events, allow_head=False),
    web.get("/v1/events", streams.all_events, allow_head=False),
    web.post("/v1/pipelines:validate", pipelines.validate),
    web.get("/v1/step-types", pipelines.list_step_types),
    web.get("/v1/doctor", diagnosis.diagnose),
    web.get("/openapi.json", documents.openapi),
    web.get("/schemas/pipeline.json", documents.pipeline_schema),
    web.get("/docs", documents.page),
    web.get("/docs/{asset}", documents.page_file),
)
