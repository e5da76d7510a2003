"""What a watched run looks like."""

import io

from rich.console import Console

from anabranch.client.model import Run, Step
from anabranch.client.view import Lines, interesting, run_table, summary

from .fake_gateway import a_run, a_step

NEEDS = {"a": (), "b": ("a",)}


def a_big_run(failed: int = 3, pending: int = 5_000) -> Run:
    steps = {f"s{number}": Step(status="succeeded") for number in range(10_000)}
    steps |= {f"s{number}": Step(status="pending") for number in range(10_000 - pending, 10_000)}
    steps |= {f"s{number}": Step(status="failed") for number in range(100, 100 + failed)}
    return Run(id="r", status="running", pipeline="big", steps=steps)


def drawn(run: Run, rows: int = 40) -> str:
    console = Console(file=io.StringIO(), width=140, force_terminal=False)
    console.print(run_table(run, NEEDS if "a" in run.steps else None, rows=rows))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def lines_of(*runs: Run) -> list[str]:
    console = Console(file=io.StringIO(), width=40)
    with Lines(console) as lines:
        for run in runs:
            lines.show(run)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined,no-any-return]


def test_table_says_what_each_step_waits_for() -> None:
    steps = {"a": a_step("waiting", waiting_on="retry 2 of 3 in 4 s"), "b": a_step("pending")}
    text = drawn(Run.model_validate({"id": "r", **a_run("running", steps=steps)}))
    assert "retry 2 of 3 in 4 s" in text
    assert "waits for a" in text
    assert "0 of 2 steps" in text


def test_large_run_shows_troubles_and_counts_the_rest() -> None:
    run = a_big_run()
    assert interesting(run, list(run.steps), 5) == ["s100", "s101", "s102", "s5000", "s5001"]
    text = drawn(run, rows=5)
    assert "… and 9,995 more steps" in text
    assert len(text.splitlines()) == 9
    assert summary(run) == "5,000 of 10,000 steps    4,997 succeeded, 5,000 pending, 3 failed"


def test_large_run_is_told_in_a_few_lines() -> None:
    told = lines_of(a_big_run(pending=9_000), a_big_run(pending=8_990), a_big_run(failed=60, pending=5_000))
    assert len([line for line in told if "failed" in line and line.startswith("  s1")]) == 50
    assert [line.split(" steps")[0].strip() for line in told if " of " in line] == [
        "1,000 of 10,000",
        "5,000 of 10,000",
    ]


def test_steps_are_told_in_the_order_in_which_they_ended() -> None:
    first, second = a_step(finished_at="2026-01-31T12:00:01Z"), a_step(finished_at="2026-01-31T12:00:02Z")
    run = Run.model_validate({"id": "r", **a_run(steps={"a": second, "b": first})})
    assert [line.split()[0] for line in lines_of(run)] == ["b", "a"]


def test_table_keeps_the_order_of_the_definition() -> None:
    run = Run.model_validate({"id": "r", **a_run(steps={"b": a_step(), "a": a_step()})})
    console = Console(file=io.StringIO(), width=140)
    console.print(run_table(run, {"a": (), "b": ("a",)}))
    assert [line.split()[0] for line in console.file.getvalue().splitlines()[2:4]] == ["a", "b"]  # type: ignore[attr-defined]


def test_long_error_does_not_squeeze_the_names() -> None:
    steps = {"a_step_with_a_name": a_step("failed", error={"type": "E", "message": "x" * 300})}
    assert "a_step_with_a_name  simulate  failed" in drawn(Run.model_validate({"id": "r", **a_run(steps=steps)}))


def test_step_that_waits_says_for_what_and_why() -> None:
    step = a_step("waiting", waiting_on="retry in 2 s", error={"type": "E", "message": "broke"})
    assert "retry in 2 s; E: broke" in drawn(Run.model_validate({"id": "r", **a_run("running", steps={"a": step})}))


def test_markup_in_an_error_is_text() -> None:
    steps = {"a": a_step("failed", error={"type": "E", "message": "[/bold] [red]x"})}
    assert "[/bold] [red]x" in drawn(Run.model_validate({"id": "r", **a_run("failed", steps=steps)}))
