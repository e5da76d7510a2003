"""The servers of these tests are on this machine, so the steps may reach it."""

import pytest


@pytest.fixture(autouse=True)
def _loopback_may_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANABRANCH_HTTP_ALLOW", "127.0.0.0/8,[::1],localhost")
