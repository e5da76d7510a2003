"""What a `traceparent` says, and what is none (W3C Trace Context §3.2)."""

import pytest

from anabranch.shared.contracts.traces import TraceContext, trace_context_in

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
KNOWN = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("given", "sampled"),
    [
        (KNOWN, True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-ff", True),  # other flags are left aside
        (f"00-{TRACE}-{SPAN}-02", False),
        (f"cc-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", True),
    ],
)
def test_what_is_one(given: str, sampled: bool) -> None:
    """Also of a version that is not known: what follows the flags is left aside."""
    assert trace_context_in(given) == TraceContext(TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "given",
    [
        None, "", "00", f" {KNOWN}", f"{KNOWN} ", f"{KNOWN}\n", f"{KNOWN}-", f"{KNOWN}-more", f"{KNOWN}.more",
        f"ff-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01.more", KNOWN.upper(), KNOWN.replace("4b", "4B"),
        f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE[1:]}-{SPAN}-01", f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0\N{ARABIC-INDIC DIGIT ONE}", f"{KNOWN}, {KNOWN}", "-" * 100_000,
    ],
)  # fmt: skip
def test_what_is_none(given: str | None) -> None:
    """Version 00 has nothing after the flags."""
    assert trace_context_in(given) is None
