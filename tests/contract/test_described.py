"""The gateway does what its OpenAPI document says. `make schemathesis` draws more, of a whole stack."""

from pathlib import Path

import pytest

from tests.contract.described import judge
from tests.unit.gateway.fakes import a_gateway


@pytest.mark.timeout(600)  # against hanging: 10 s on an idle machine
async def test_a_drawn_request_is_answered_as_described(tmp_path: Path) -> None:
    """Whatever schemathesis draws, the same each time, with all of its checks."""
    async with a_gateway(max_wait_s=0.2) as gateway:
        url = str(gateway.client.make_url("/")).rstrip("/")
        drawn = ("--phases", "fuzzing,stateful", "--max-examples", "8", "--seed", "9", "--generation-deterministic")
        code, printed = await judge(url, tmp_path, *drawn)
    assert code == 0, printed
