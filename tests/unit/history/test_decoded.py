"""What one loop has decoded the other need not decode, and what neither asks for is forgotten."""

import pytest

from anabranch.services.history import decoded as module
from anabranch.services.history.decoded import DecodedEvents, ReadEvent
from anabranch.shared.contracts.codec import Undecodable
from tests.unit.history.fakes import FakeRecord, run_started


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[bytes | None]:
    """Note what is really decoded."""
    done: list[bytes | None] = []

    def decode(adapter: object, value: bytes | None) -> object:
        done.append(value)
        return original(adapter, value)  # type: ignore[arg-type]

    original = module.decode
    monkeypatch.setattr(module, "decode", decode)
    return done


def a_record(offset: int, run_id: str = "r") -> FakeRecord:
    """Return the record of a run's start."""
    return FakeRecord(value=run_started(run_id=run_id).model_dump_json().encode(), key=b"r", offset=offset)


def read(events: DecodedEvents, record: FakeRecord) -> ReadEvent:
    """Return what must be an event."""
    found = events.of(record)  # type: ignore[arg-type]
    assert isinstance(found, ReadEvent)
    return found


def test_each_record_is_decoded_once_for_both(decodings: list[bytes | None]) -> None:
    """Its fields are made once, too."""
    events = DecodedEvents(are_shared=True)
    first = [read(events, a_record(offset)) for offset in range(3)]
    second = [read(events, a_record(offset)) for offset in range(3)]
    assert all(one is other for one, other in zip(first, second, strict=True))
    assert first[0].fields is second[0].fields
    assert (len(decodings), events._bytes, len(events._kept)) == (3, 0, 0)


def test_without_another_loop_nothing_is_kept(decodings: list[bytes | None]) -> None:
    """Where no record is kept there is one loop."""
    events = DecodedEvents(are_shared=False)
    assert read(events, a_record(0)) is not read(events, a_record(0))
    assert (len(decodings), len(events._kept)) == (2, 0)


def test_another_record_at_the_same_place_is_another(decodings: list[bytes | None]) -> None:
    """As after an election in which the end of the partition was lost."""
    events = DecodedEvents(are_shared=True)
    read(events, a_record(0, "a"))
    assert read(events, a_record(0, "b")).event.run_id == "b"
    assert events._bytes == len(a_record(0, "b").value or b"")


def test_what_is_kept_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """In number and bytes; the oldest go first."""
    size = len(a_record(0).value or b"")
    for limit, value in (("MAX_SHARED_EVENTS", 2), ("MAX_SHARED_EVENT_BYTES", 2 * size)):
        events = DecodedEvents(are_shared=True)
        with monkeypatch.context() as patch:
            patch.setattr(module, limit, value)
            for offset in range(5):
                read(events, a_record(offset))
        assert ([offset for _, offset in events._kept], events._bytes) == ([3, 4], 2 * size)


def test_what_is_no_event_is_told() -> None:
    """To both."""
    events = DecodedEvents(are_shared=True)
    for _ in range(2):
        assert isinstance(events.of(FakeRecord(value=b"{", key=b"r", offset=0)), Undecodable)  # type: ignore[arg-type]
