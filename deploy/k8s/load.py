"""Submits runs at a steady rate and follows each to its right end: the load of a trial, in a pod of the cluster.

    python -m anabranch.deploy.k8s.load http://gateway 10

Prints a line of JSON for every run, and when SIGTERM has ended it and every accepted run has been seen to its end, one
with what was answered. A client like any other: it sends an Idempotency-Key, so that it may try again when a connection
breaks, and waits as long as `Retry-After` says. A run that one gateway has accepted may be unknown to the others for a
moment (404): it is asked for again. Exit code 1 when a run did not end right or any other answer was a failure.
"""

import asyncio
import signal
import sys
import time
from collections import Counter
from typing import Any, Final

import aiohttp
import orjson

PATIENCE_S: Final = 240.0
"""From a run's submission: a worker that was killed is missed after its lease, and the next waits for a roll-out."""

_WAIT_S: Final = 20
_AGAIN_S: Final = 0.2
_TEMPORARY: Final = 503
_NOT_YET: Final = ("GET", 404)
_ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})

PIPELINE: Final = {
    "name": "trial",
    "inputs": {"n": {"type": "integer"}},
    "steps": {
        "a": {"uses": "simulate", "with": {"sleep": "20ms", "value": "${{ inputs.n }}"}},
        "b": {"uses": "simulate", "needs": ["a"], "with": {"value": "${{ steps.a.output.value + 1 }}"}},
        "c": {"uses": "simulate", "needs": ["a"], "with": {"value": "${{ steps.a.output.value + 2 }}"}},
        "d": {"uses": "transform", "needs": ["b", "c"],
              "with": {"value": "${{ steps.b.output.value + steps.c.output.value }}"}},
    },
    "outputs": {"sum": "${{ steps.d.output }}"},
}  # fmt: skip


def right_outputs(number: int) -> dict[str, int]:
    """Return what the run of a number must put out."""
    return {"sum": 2 * number + 3}


class Load:
    """All runs of one load, and what was answered."""

    def __init__(self, session: aiohttp.ClientSession, name: str) -> None:
        self._session = session
        self._name = name
        self.answers: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.faults: list[str] = []

    async def one(self, number: int) -> None:
        """Submit a run and see it end; say how."""
        began = time.time()
        end = "was not accepted"
        try:
            async with asyncio.timeout(PATIENCE_S):
                accepted = await self._answer(
                    "POST",
                    "/v1/runs",
                    json={"definition": PIPELINE, "inputs": {"n": number}},
                    headers={"Idempotency-Key": f"{self._name}-{number}"},
                )
                end = f"did not end: {accepted['id']}"
                end = await self._end_of(accepted["id"], number)
        except TimeoutError:
            self.faults.append(f"run {number} {end}")
        self.ends[end if end == "right" else "wrong"] += 1
        self._say({"number": number, "at": began, "took": time.time() - began, "end": end})

    async def _end_of(self, run_id: str, number: int) -> str:
        while True:
            run = await self._answer("GET", f"/v1/runs/{run_id}", params={"wait": f"{_WAIT_S}s"})
            if run["status"] in _ENDED:
                break
        if run["status"] == "succeeded" and run["outputs"] == right_outputs(number):
            return "right"
        self.faults.append(f"{run_id} {run['status']}: {run.get('outputs')} {run.get('error')}")
        return str(run["status"])

    async def _answer(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """Return the answer to a request, tried again for as long as it may be."""
        while True:
            try:
                async with self._session.request(method, path, **request) as response:
                    pause_s = self._noted(method, path, response)
                    if pause_s is None:
                        found: dict[str, Any] = await response.json()
                        return found
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                self.answers[f"{method} {type(error).__name__}"] += 1
                self._say({"at": time.time(), "broken": type(error).__name__})
                pause_s = _AGAIN_S
            await asyncio.sleep(pause_s)

    def _noted(self, method: str, path: str, response: aiohttp.ClientResponse) -> float | None:
        """Count an answer; return how long to wait for another one, None when it is one to keep."""
        later = response.headers.get("Retry-After")
        may_wait = response.status == _TEMPORARY and later is not None
        self.answers[f"{method} {response.status}{' with Retry-After' if may_wait else ''}"] += 1
        if response.ok:
            return None
        if not may_wait and (method, response.status) != _NOT_YET:
            self.faults.append(f"{method} {path}: {response.status}")
        return float(later or _AGAIN_S)

    def summary(self) -> dict[str, Any]:
        """Return what there is to say at the end."""
        return {"answers": self.answers, "ends": self.ends, "faults": self.faults[:50]}

    @staticmethod
    def _say(line: dict[str, Any]) -> None:
        sys.stdout.write(orjson.dumps(line).decode() + "\n")
        sys.stdout.flush()


async def main(url: str, rate: float) -> int:
    """Submit until SIGTERM, then see all runs end; return the exit code."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        load = Load(session, f"load-{time.time():.0f}")
        async with asyncio.TaskGroup() as runs:
            number, began = 0, time.monotonic()
            while not stopping.is_set():
                runs.create_task(load.one(number), name=f"run {number}")
                number += 1
                pause_s = max(0.0, began + number / rate - time.monotonic())
                _, waiting = await asyncio.wait([asyncio.create_task(stopping.wait())], timeout=pause_s)
                for task in waiting:
                    task.cancel()
    Load._say(load.summary())
    return 1 if load.faults else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], float(sys.argv[2]))))
