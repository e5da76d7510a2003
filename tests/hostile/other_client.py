"""The other client: its diamonds run all the while, and it says how long each took.

`python -m tests.hostile.other_client URL`: one diamond at a time in one lane, a few side by side in others; it
prints a line per diamond, `{"lane", "at", "seconds", "tries", "fault"}`. A process of its own, so that
nobody's work is in its figures but the engine's.
"""

import asyncio
import json
import sys
import time
from typing import Any, Final
from uuid import uuid4

import aiohttp

from tests.support.diamond import diamond, right_outputs

_LANES: Final = 4  # the first without a pause, the others with one
_PAUSE_S: Final = 0.5
_GIVE_UP_S: Final = 60.0
_WAIT_S: Final = 30


async def main(url: str) -> None:
    """Run diamonds until cancelled."""
    async with aiohttp.ClientSession(url) as session, asyncio.TaskGroup() as lanes:
        for lane in range(_LANES):
            lanes.create_task(_lane(session, lane))


async def _lane(session: aiohttp.ClientSession, lane: int) -> None:
    n = lane
    while True:
        started = time.monotonic()
        tries, fault = await _diamond(session, n, started + _GIVE_UP_S)
        said = {"lane": lane, "at": started, "seconds": time.monotonic() - started, "tries": tries, "fault": fault}
        print(json.dumps(said), flush=True)
        n += _LANES
        if lane:
            await asyncio.sleep(_PAUSE_S)


async def _diamond(session: aiohttp.ClientSession, n: int, until: float) -> tuple[int, str | None]:
    """Submit one until it has ended, with the same key; return how many tries it took, and what was wrong."""
    body = {"definition": diamond("simulate"), "inputs": {"n": n}}
    key, tries, fault = uuid4().hex, 0, ""
    while time.monotonic() < until:
        tries += 1
        try:
            async with session.post(
                f"/v1/runs?wait={_WAIT_S}s", json=body, headers={"Idempotency-Key": key}, timeout=_timeout(until)
            ) as answer:
                fault = await _fault_of(answer, n)
                if fault is None:
                    return tries, None
                await asyncio.sleep(float(answer.headers.get("Retry-After", 0.1)))
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            fault = repr(error)
            await asyncio.sleep(0.1)
    return tries, fault


async def _fault_of(answer: aiohttp.ClientResponse, n: int) -> str | None:
    said: Any = await answer.json(content_type=None)
    if answer.status == 200 and said.get("status") == "succeeded" and said.get("outputs") == right_outputs(n):
        return None
    return f"{answer.status}: {json.dumps(said)[:400]}"


def _timeout(until: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=max(0.1, until - time.monotonic()))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
