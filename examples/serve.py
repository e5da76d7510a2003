"""What the examples read, served on the loopback address: a real table, and a real site with real faults in it.

`/airports.csv` is the airport directory of the package airportsdata. Under `/docs/` stand the pages that Python's
documentation generator writes for the package `email`, as `pydoc -w` would: they link to modules that nobody has
written a page for. `/docs/sitemap.txt` answers 503 twice before every answer, as a service behind a proxy does.

    python examples/serve.py [PORT]     serves until Ctrl-C, on port 8090 unless another is given
"""

import asyncio
import importlib.util
import pkgutil
import pydoc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Final

import click
from aiohttp import web

HOST: Final = "127.0.0.1"
PORT: Final = 8090
DOCUMENTED: Final = "email"
REFUSALS: Final = 2


def airports_csv() -> Path:
    """Return where the package airportsdata keeps its table."""
    package = importlib.util.find_spec("airportsdata")
    if package is None or package.origin is None:
        raise SystemExit("the examples read a table of the package airportsdata: pip install 'anabranch[examples]'")
    return Path(package.origin).with_name("airports.csv")


@lru_cache(maxsize=1)
def documented_modules() -> tuple[str, ...]:
    """Return the modules that have a page."""
    package = importlib.import_module(DOCUMENTED)
    return (DOCUMENTED, *(f"{DOCUMENTED}.{module.name}" for module in pkgutil.iter_modules(package.__path__)))


@lru_cache(maxsize=64)
def page_of(module: str) -> str:
    """Return a module's page."""
    found, name = pydoc.resolve(module) or (None, module)
    return str(pydoc.html.page(pydoc.describe(found), pydoc.html.document(found, name)))


def index_page() -> str:
    """Return the page that links to all others."""
    links = "".join(f'<li><a href="{module}.html">{module}</a></li>' for module in documented_modules())
    return f"<!DOCTYPE html><html><head><title>Modules</title></head><body><ul>{links}</ul></body></html>"


def create_app() -> web.Application:
    """Return the server's application."""
    requests = count(1)

    async def airports(_request: web.Request) -> web.StreamResponse:
        return web.FileResponse(airports_csv(), headers={"Content-Type": "text/csv; charset=utf-8"})

    async def index(_request: web.Request) -> web.Response:
        return web.Response(text=index_page(), content_type="text/html")

    async def page(request: web.Request) -> web.Response:
        module = request.match_info["module"]
        if module not in documented_modules():
            raise web.HTTPNotFound(text=f"no page for {module}")
        return web.Response(text=await asyncio.to_thread(page_of, module), content_type="text/html")

    async def sitemap(_request: web.Request) -> web.Response:
        if next(requests) % (REFUSALS + 1):
            raise web.HTTPServiceUnavailable(text="the site map is being built")
        return web.Response(text="".join(f"{module}.html\n" for module in documented_modules()))

    app = web.Application()
    app.add_routes(
        [
            web.get("/airports.csv", airports),
            web.get("/docs/", index),
            web.get("/docs/sitemap.txt", sitemap),
            web.get(r"/docs/{module:[\w.]+}.html", page),
        ]
    )
    return app


@asynccontextmanager
async def served(port: int = 0) -> AsyncIterator[str]:
    """Serve while the context lasts, on a free port unless one is given; yield the base URL."""
    runner = web.AppRunner(create_app(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, port)
        await site.start()
        yield f"http://{HOST}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def main(port: int) -> None:
    """Serve until Ctrl-C."""
    async with served(port) as url:
        click.echo(f"serving {url}/airports.csv and {url}/docs/ until Ctrl-C")
        await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        asyncio.run(main(int(sys.argv[1]) if sys.argv[1:] else PORT))
    except KeyboardInterrupt:
        sys.exit(0)
