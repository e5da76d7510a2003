"""The listening socket."""

import asyncio
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from aiohttp import web

from anabranch.shared.runtime.listener import Listener

_CLIENTS = 400
_KERNELS = Path("/proc/sys/net/core/somaxconn")


@pytest.mark.skipif(
    not _KERNELS.exists() or int(_KERNELS.read_text()) < 2 * _CLIENTS, reason="the kernel keeps fewer, or does not say"
)
async def test_a_crowd_that_comes_in_one_moment_is_let_in() -> None:
    """The loop accepts nobody meanwhile: the kernel keeps them, and lets none try again later."""
    listener = Listener(web.Application())
    await listener.setup()
    try:
        port = await listener.listen("127.0.0.1", 0)
        with ExitStack() as opened:
            for _ in range(_CLIENTS):
                opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            await asyncio.sleep(0)
    finally:
        await listener.cleanup()
