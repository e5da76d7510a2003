"""What the gateway tells of itself: its OpenAPI document, a page that shows it, and the language's schema.

They are the same for everybody, made once and kept packed: a stranger who asks for them costs nothing but bytes.
"""

import gzip
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import orjson
from aiohttp import web

from anabranch.services.gateway import keys
from anabranch.services.gateway.openapi import openapi_document
from anabranch.services.gateway.packing import accepts_gzip
from anabranch.services.gateway.problems import Kind, ProblemError
from anabranch.shared.contracts.spec import pipeline_json_schema

# Scripts from here alone; Swagger UI's own images stand in its style sheet as `data:`.
PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_PAGE: Final = b"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Anabranch</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="operations"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/page.js"></script>
</body>
</html>
"""
_SCRIPT: Final = b'SwaggerUIBundle({url: "openapi.json", dom_id: "#operations", deepLinking: false});\n'
_FILES: Final = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
    "page.js": "text/javascript",
}
_KEPT_BY_BROWSERS: Final = {"Cache-Control": "public, max-age=3600"}


@dataclass(frozen=True, slots=True)
class _Document:
    body: bytes
    packed: bytes
    content_type: str

    def answer(self, request: web.Request, headers: dict[str, str] | None = None) -> web.Response:
        headers = {"Vary": "Accept-Encoding", **(headers or {})}
        if accepts_gzip(request.headers.getall("Accept-Encoding", ())):
            headers["Content-Encoding"] = "gzip"
            return web.Response(body=self.packed, content_type=self.content_type, headers=headers)
        return web.Response(body=self.body, content_type=self.content_type, headers=headers)


def _document(body: bytes, content_type: str) -> _Document:
    return _Document(body, gzip.compress(body, mtime=0), content_type)


@cache
def _openapi(asks_for_keys: bool) -> _Document:
    return _document(orjson.dumps(openapi_document(asks_for_keys=asks_for_keys)), "application/json")


@cache
def _schema() -> _Document:
    return _document(orjson.dumps(pipeline_json_schema()), "application/schema+json")


@cache
def _page() -> _Document:
    return _document(_PAGE, "text/html")


@cache
def _file(name: str) -> _Document:
    return _document(_SCRIPT if name == "page.js" else (_swagger_ui() / name).read_bytes(), _FILES[name])


def _swagger_ui() -> Path:
    """Return the folder of the package's files; the package itself would import Flask."""
    found = importlib.util.find_spec("flask_swagger_ui")
    if found is None or found.origin is None:
        raise FileNotFoundError("flask_swagger_ui is not installed")
    return Path(found.origin).parent / "dist"


async def openapi(request: web.Request) -> web.Response:
    """`GET /openapi.json`."""
    return _openapi(request.app[keys.SETTINGS].asks).answer(request)


async def pipeline_schema(request: web.Request) -> web.Response:
    """`GET /schemas/pipeline.json`: for editors, which have no key; so it tells nothing of the announced types."""
    return _schema().answer(request)


async def page(request: web.Request) -> web.Response:
    """`GET /docs`."""
    return _page().answer(request, {"Content-Security-Policy": PAGE_POLICY})


async def page_file(request: web.Request) -> web.Response:
    """`GET /docs/{asset}`: a file of the page, by its name alone."""
    name = request.match_info["asset"]
    if name not in _FILES:
        raise ProblemError(Kind.NOT_FOUND, "The documentation page has no such file.")
    return _file(name).answer(request, _KEPT_BY_BROWSERS)
