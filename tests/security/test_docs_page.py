"""The documentation page in a real browser, under its policy and without another site."""

import asyncio
import re
import shutil
from pathlib import Path
from typing import Final

import pytest

from anabranch.services.gateway import documents
from anabranch.services.gateway.openapi import OPERATIONS
from tests.unit.gateway.fakes import Bench

_BROWSER: Final = shutil.which("chromium") or shutil.which("google-chrome")
_HANGS_S: Final = 200.0

pytestmark = [
    pytest.mark.skipif(_BROWSER is None, reason="no Chromium on this machine"),
    pytest.mark.timeout(300),
]


async def shown(gateway: Bench, profile: Path) -> tuple[str, str]:
    """Return the page as a browser has drawn it, and what its console said. No other host has an address."""
    assert _BROWSER is not None
    browser = await asyncio.create_subprocess_exec(
        _BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--virtual-time-budget=20000",  # the browser's own time: it stands still while a file is on its way
        "--enable-logging=stderr", "--dump-dom", str(gateway.client.make_url("/docs")),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_HANGS_S):
            page, said = await browser.communicate()
    finally:
        if browser.returncode is None:
            browser.kill()
            await browser.wait()
    return page.decode(), said.decode(errors="replace")


async def test_the_page_shows_every_operation_under_its_policy(gateway: Bench, tmp_path: Path) -> None:
    """It fetches nothing that the policy forbids, and no other site is there to be asked."""
    page, said = await shown(gateway, tmp_path)
    assert set(re.findall(r'data-path="([^"]+)"', page)) == {path for _, path in OPERATIONS}, said
    assert "Content Security Policy" not in said


async def test_the_policy_is_kept(gateway: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another policy forbids is not shown: the browser really asks it."""
    monkeypatch.setattr(documents, "PAGE_POLICY", documents.PAGE_POLICY.replace("script-src 'self'; ", ""))
    page, said = await shown(gateway, tmp_path)
    assert "data-path" not in page
    assert "Content Security Policy" in said
