"""What the gateway's OpenAPI document says of it holds, for whatever schemathesis draws from it."""

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

_CONFIG: Final = Path(__file__).with_name("schemathesis.toml")
_USED: Final = ["simulate"]  # by every step that is drawn
_WAITS: Final = ["0", "200ms", "1s"]


async def judge(url: str, folder: Path, *options: str) -> tuple[int, str]:
    """Return the exit code of schemathesis, 0 when nothing fails, and what it printed.

    The document says that a step type is a name, and `wait` a duration. Of what could be drawn for them hardly anything
    is taken, so some are named first: else nothing behind is reached.
    """
    async with aiohttp.ClientSession() as session, session.get(f"{url}/openapi.json") as answer:
        document = await answer.json()
    for without_end in [path for path in document["paths"] if path.endswith("/events")]:
        del document["paths"][without_end]  # tests/record/test_streams.py
    for used in _uses(document["components"]["schemas"]):
        used["enum"] = _USED
    document["components"]["parameters"]["wait"]["schema"] = {"enum": _WAITS}
    described = folder / "openapi.json"
    described.write_bytes(orjson.dumps(document))
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"), "--config-file", _CONFIG, "run", described, "--url", url,
        "--checks", "all", "--no-color", *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=folder, env=dict(os.environ),
    )  # fmt: skip
    try:
        printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, printed.decode(errors="replace")


def _uses(schemas: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for schema in schemas.values():
        if "uses" in schema.get("properties", {}) and "with" in schema["properties"]:
            yield schema["properties"]["uses"]
