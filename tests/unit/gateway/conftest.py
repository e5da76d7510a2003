from collections.abc import AsyncIterator

import pytest

from .fakes import Bench, a_gateway


@pytest.fixture
async def gateway() -> AsyncIterator[Bench]:
    async with a_gateway() as bench:
        yield bench
