"""Ids are derived from what they name."""

from hashlib import blake2b
from uuid import UUID

from anabranch.shared.contracts import ids


def test_run_ids_are_ordered_by_time_and_never_the_same() -> None:
    """UUIDv7: a later one sorts behind an earlier one."""
    made = [ids.new_run_id() for _ in range(1000)]
    assert made == sorted(made)
    assert len(set(made)) == 1000
    assert {UUID(run_id).version for run_id in made} == {7}


def test_run_id_of_a_key_is_the_same_for_ever_and_the_tenants_own() -> None:
    """A repeated submission is the same run, also after an upgrade; tenants cannot meet."""
    assert ids.run_id_for_key("t", "k") == "94f2e101-7c1d-5dea-b8ed-ed75b1fba306"
    assert ids.run_id_for_key("t", "k") != ids.run_id_for_key("u", "k")
    assert ids.run_id_for_key("a:b", "c") != ids.run_id_for_key("a", "b:c")


def test_ids_of_a_runs_parts_name_them() -> None:
    """`<run_id>/<seq>`, `<run_id>/<step>/<attempt>`."""
    assert ids.attempt_id("r", "a", 2) == "r/a/2"
    assert ids.event_id("r", 7) == "r/7"
    assert ids.timer_id("retry", "a", 2) == "retry/a/2"
    assert ids.idempotency_key("r", "a") == "r/a"


def test_traceparent_has_the_runs_trace_and_a_span_of_the_message() -> None:
    """W3C Trace Context: 00-trace-span-flags, and a repeat has the same span."""
    one, two = ids.traceparent("a" * 32, "r/1"), ids.traceparent("a" * 32, "r/2")
    assert one.startswith(f"00-{'a' * 32}-")
    assert one != two
    assert one == ids.traceparent("a" * 32, "r/1")
    assert one == f"00-{'a' * 32}-{blake2b(b'r/1', digest_size=8).hexdigest()}-01"
    assert len(ids.trace_id_of_run(ids.new_run_id())) == 32
