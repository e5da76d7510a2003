"""docs/http-api.md says what the gateway does."""

import re
from pathlib import Path

from anabranch.services.gateway.problems import Kind
from anabranch.services.gateway.routes import ROUTES

TEXT = (Path(__file__).parents[3] / "docs" / "http-api.md").read_text()


def test_every_route_is_documented() -> None:
    """By method and path."""
    documented = set(re.findall(r"`(GET|POST) (/[^`?]+)", TEXT))
    documented -= {("GET", "/healthz")}  # and the like: every service has them
    assert documented == {(route.method, route.path) for route in ROUTES}


def test_every_problem_is_documented_with_its_status() -> None:
    """And no other."""
    documented = set(re.findall(r"^\| `([a-z-]+)` \| (\d{3}) \|", TEXT, re.MULTILINE))
    assert documented == {(kind.value[0], str(kind.status)) for kind in Kind}
