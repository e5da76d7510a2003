import orjson

from anabranch.services.history.projection import project
from anabranch.shared.contracts.errors import StepError
from anabranch.shared.contracts.messages import StepChanged
from anabranch.shared.runtime.snapshots import accepted_fields, document, is_whole

from .fakes import AT, LATER, run_ended, run_started, step_succeeded, steps_queued

WHOLE_RUN = (run_started(), steps_queued(2, "a"), step_succeeded(3, "a", output={"x": [1]}), run_ended(4))


def test_document_shows_every_step_of_the_run_in_order_of_the_definition_pending_ones_too() -> None:
    """A step without an event is pending."""
    [change] = project(WHOLE_RUN[:3])
    run = orjson.loads(document("r", change.fields))
    assert run == {
        "id": "r", "pipeline": "p", "revision": None, "tenant": "default", "status": "running", "inputs": {"n": 1},
        "outputs": None, "error": None, "labels": {"a": "b"}, "created_at": AT, "started_at": AT, "finished_at": None,
        "steps": {
            "a": {"uses": "http", "status": "succeeded", "attempt": 1, "queued_at": AT, "started_at": AT,
                  "finished_at": LATER, "output": {"x": [1]}, "error": None, "waiting_on": None, "cached": False},
            "b": {"uses": "sql", "status": "pending", "attempt": 0, "queued_at": None, "started_at": None,
                  "finished_at": None, "output": None, "error": None, "waiting_on": None, "cached": False},
        },
    }  # fmt: skip
    assert list(run["steps"]) == ["a", "b"]


def test_the_end_of_a_run_sets_status_outputs_and_time() -> None:
    """The last event overwrites the status."""
    [change] = project(WHOLE_RUN)
    run = orjson.loads(document("r", change.fields))
    assert (run["status"], run["outputs"], run["finished_at"], change.ended) == (
        "succeeded",
        {"o": 2},
        LATER,
        "succeeded",
    )


def test_events_decided_again_change_nothing() -> None:
    """A repeat has a number that is not above the last one."""
    once, twice = project(WHOLE_RUN), project([*WHOLE_RUN[:3], *WHOLE_RUN[1:]])
    assert twice[0].fields == once[0].fields
    assert (twice[0].first_seq, twice[0].last_seq, twice[0].repeated, twice[0].missing) == (1, 4, 2, 0)


def test_a_gap_is_counted_and_the_rest_projected() -> None:
    """The change knows how many numbers are absent inside it and before it."""
    [change] = project([step_succeeded(5, "a"), run_ended(8)])
    assert (change.missing, change.missing_after(2), change.missing_after(4)) == (2, 4, 2)
    assert orjson.loads(document("r", change.fields))["steps"]["a"]["status"] == "succeeded"


def test_a_change_holds_only_the_fields_of_its_events() -> None:
    """The cost of an event does not grow with the run."""
    project([run_started(steps={f"s{n}": "http" for n in range(5000)})])
    [change] = project([step_succeeded(2, "s7")])
    assert list(change.fields) == [b"step:s7"]


def test_each_run_has_one_change() -> None:
    """Events of runs are interleaved in a partition."""
    changes = project([run_started("x"), run_started("y"), steps_queued(2, "a", run_id="x")])
    assert [(change.run_id, change.last_seq) for change in changes] == [("x", 2), ("y", 1)]


def test_a_retried_step_is_queued_again_without_its_old_times() -> None:
    """StepsQueued overwrites the whole step."""
    failed = StepChanged(
        type="StepRetrying", run_id="r", seq=3, at=AT, step="a", uses="http", status="waiting", attempt=1,
        error=StepError.of("Boom", "no"), waiting_on="a retry in 1s",
    )  # fmt: skip
    [waiting] = project([failed])
    [queued] = project([failed, steps_queued(4, "a", attempt=2)])
    step = orjson.loads(waiting.fields[b"step:a"])
    assert (step["status"], step["error"]["type"], step["waiting_on"]) == ("waiting", "Boom", "a retry in 1s")
    step = orjson.loads(queued.fields[b"step:a"])
    assert (step["status"], step["attempt"], step["error"], step["queued_at"]) == ("queued", 2, None, AT)


def test_an_output_beyond_64_bits_is_kept() -> None:
    """A handler may return such an integer: its digits stay."""
    [change] = project([step_succeeded(3, "a", output=2**70)])
    assert str(2**70).encode() in document("r", change.fields)


def test_a_snapshot_without_its_start_is_still_readable() -> None:
    """The header was lost: what is known is shown."""
    [change] = project([step_succeeded(3, "a"), run_ended(4)])
    run = orjson.loads(document("r", change.fields))
    assert (run["status"], run["pipeline"], list(run["steps"]), run["started_at"]) == ("succeeded", None, ["a"], AT)


def test_steps_that_no_definition_names_stand_in_one_order() -> None:
    """Redis, SQL and events have them in an order each."""
    [change] = project([step_succeeded(3, "b"), step_succeeded(4, "a"), run_ended(5)])
    other = dict(reversed(change.fields.items()))
    assert document("r", other) == document("r", change.fields)
    assert list(orjson.loads(document("r", other))["steps"]) == ["a", "b"]


def test_an_accepted_run_looks_like_one_that_has_begun() -> None:
    """But for its status and the time of its start: both are made of fields in one place."""
    [change] = project(WHOLE_RUN[:1])
    fields = accepted_fields(
        pipeline="p", tenant="default", inputs={"n": 1}, labels={"a": "b"}, created_at=AT,
        steps={"a": "http", "b": "sql"},
    )  # fmt: skip
    begun = document("r", change.fields).replace(b'"running"', b'"accepted"')
    assert document("r", fields) == begun.replace(b'"started_at":"%b"' % AT.encode(), b'"started_at":null')
    assert is_whole(fields)
