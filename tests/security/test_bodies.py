"""Packed bodies: an allow-list, and never more than a body may have."""

import gzip
import zlib
from typing import Any

import pytest

from tests.security.wire import BODY
from tests.unit.gateway.fakes import Bench, announced, problem

LIMIT = 2 * 1024 * 1024


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


async def post(gateway: Bench, body: bytes, encoding: str) -> Any:
    return await gateway.post(body, headers={"Content-Encoding": encoding})


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(BODY, mtime=0)),
        ("x-gzip", gzip.compress(BODY, mtime=0)),
        ("GZIP", gzip.compress(BODY, mtime=0)),
        ("gzip", gzip.compress(BODY[:9], mtime=0) + gzip.compress(BODY[9:], mtime=0)),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
        ("identity", BODY),
        ("", BODY),
    ],
)
async def test_a_body_may_be_packed(gateway: Bench, encoding: str, body: bytes) -> None:
    """In the encodings of the list."""
    assert (await post(gateway, body, encoding)).status == 202


@pytest.mark.parametrize("encoding", ["foo", "br", "zstd", "compress", "gzip, gzip", "gzip, identity", "*"])
async def test_another_encoding_is_415_and_says_which_are_read(gateway: Bench, encoding: str) -> None:
    """As `Accept-Encoding` (RFC 9110 §12.5.3)."""
    answer = await post(gateway, BODY, encoding)
    assert answer.status == 415
    assert answer.headers["Accept-Encoding"] == "gzip, x-gzip, deflate"
    assert (await problem(answer))["type"] == "urn:anabranch:problem:unsupported-media-type"


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
@pytest.mark.parametrize("size", [LIMIT + 1, 200 * LIMIT])
async def test_a_bomb_is_413(gateway: Bench, pack: Any, size: int) -> None:
    """And never unpacked beyond the limit."""
    body = pack(b" " * size)
    answer = await post(gateway, body, "gzip" if pack is gzip.compress else "deflate")
    assert answer.status == 413
    assert gateway.bodies.receiving_bytes == 0


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", BODY),
        ("gzip", gzip.compress(BODY, mtime=0)[:-5]),
        ("gzip", gzip.compress(BODY, mtime=0) + b"x"),
        ("gzip", gzip.compress(b"", mtime=0) * 1000 + gzip.compress(BODY, mtime=0)),
        ("deflate", zlib.compress(BODY)[:-2]),
        ("deflate", zlib.compress(BODY) + b"more"),
        ("deflate", b"\xff"),
    ],
)
async def test_a_body_that_is_not_what_it_says_is_400(gateway: Bench, encoding: str, body: bytes) -> None:
    """Also one that ends too early, or goes on behind its end."""
    answer = await post(gateway, body, encoding)
    assert (answer.status, (await problem(answer))["type"]) == (400, "urn:anabranch:problem:unreadable")


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [("gzip", True), ("br;q=1, GZIP;q=0.5", True), ("gzip;q=0", False), ("deflate", False), ("identity", False)],
)
async def test_a_large_answer_is_packed_for_who_accepts_it(gateway: Bench, accepted: str, packed: bool) -> None:
    """And caches keep both apart."""
    gateway.step_types.announce(announced("more", description="x" * 4000))
    answer = await gateway.client.get("/v1/step-types", headers={"Accept-Encoding": accepted})
    assert answer.headers.get("Content-Encoding") == ("gzip" if packed else None)
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert "more" in [each["name"] for each in (await answer.json())["step_types"]]
