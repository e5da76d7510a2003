"""What a run says on a terminal: it is shown, and steers nothing."""

import io
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
import structlog
from rich.console import Console as RichConsole

from anabranch.client import commands
from anabranch.client.model import Fault, Problem, Run
from anabranch.client.pipeline_file import PipelineFile
from anabranch.client.view import Lines, LiveTable, ending, run_table
from anabranch.deploy.local.console import Console
from anabranch.shared.contracts.source import Source
from anabranch.shared.contracts.text import printable
from anabranch.shared.runtime import log

# What terminals have been attacked with; the words around them must survive.
ATTACKS = {
    "clear the screen": "\x1b[2J\x1b[H",
    "a colour": "\x1b[31m",
    "title": "\x1b]0;pwned\x07",
    "title, ST": "\x1b]2;x\x1b\\",
    "clipboard": "\x1b]52;c;cm0gLXJmIC8=\x07",
    "link": "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
    "iTerm file": "\x1b]1337;File=name=YQ==:YQ==\x07",
    "notification": "\x1b]9;boo\x07",
    "DECRQSS": '\x1bP$q"p\x1b\\',
    "answer back": "\x1b[c\x1b[6n\x1b[21t",
    "keys": "\x1b[?1000h",
    "reset": "\x1bc",
    "tmux": "\x1bPtmux;\x1b\x1b]0;x\x07\x1b\\",
    "APC": "\x1b_Gf=100;AAAA\x1b\\",
    "SOS": "\x1bXx\x1b\\",
    "bell": "\x07" * 3,
    "carriage return": "\rrun r succeeded",
    "backspace": "\b" * 20 + "ok",
    "line feed": "\nrun r succeeded",
    "CRLF": "\r\nok",
    "vertical tab": "\v",
    "form feed": "\f",
    "shift out": "\x0e",
    "NUL": "\0",
    "delete": "\x7f",
    "enquiry": "\x05",
    "C1 CSI": "\x9b2J",
    "C1 OSC": "\x9d0;x\x9c",
    "C1 NEL": "\x85ok",
    "bidi override": "\u202egnp.exe\u202c",
    "bidi embedding": "\u202a\u202b\u202d",
    "bidi isolate": "\u2066\u2067\u2068\u2069",
    "marks": "\u200e\u200f\u061c",
    "line separator": "\u2028ok",
    "paragraph": "\u2029ok",
    "zero width": "\u200b\u200c\ufeff",
    "soft hyphen": "\u00ad",
    "tags": "\U000e0001\U000e0041",
    "private": "\ue000",
}
MARKUP = [
    "[red]x[/red]",
    "[link=http://evil]x[/link]",
    "[/]",
    "[/red]",
    "\\[red]",
    "[bold",
    ":smile:",
    "[@click=quit]x[/]",
]
STEERING = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F),
                                   0x2028, 0x2029, *range(0x2066, 0x206A), 0xE0001)]  # fmt: skip


def assert_steers_nothing(shown: str, lines: int | None = None, keep: str = "\n") -> None:
    """Assert that there is nothing in a text but what is seen, in so many lines."""
    assert not [each for each in STEERING if each in shown and each not in keep], repr(shown)
    if lines is not None:
        assert len(shown.splitlines()) == lines, shown


def a_run(evil: str, status: str = "failed") -> Run:
    """Return a run that has it everywhere."""
    error = {"type": f"E{evil}", "message": f"before {evil} after", "details": evil}
    step: Mapping[str, Any] = {
        "uses": f"u{evil}", "status": status, "attempt": 1, "output": {evil: evil}, "error": error,
        "waiting_on": f"w{evil}",
    }  # fmt: skip
    return Run.model_validate({
        "id": "r", "pipeline": f"p{evil}", "status": status, "error": error, "outputs": {evil: [evil]},
        "steps": {f"s{evil}": step, "other": {**step, "status": "waiting"}},
    })  # fmt: skip


def on_terminal(**options: Any) -> RichConsole:
    return RichConsole(file=io.StringIO(), width=300, height=50, **options)


def written(console: RichConsole) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("evil", ATTACKS.values(), ids=ATTACKS)
def test_a_watched_run_steers_no_terminal(evil: str) -> None:
    """Neither its table, nor its lines, nor how it ended, whatever stands where."""
    run = a_run(evil)
    console = on_terminal()
    console.print(run_table(run))
    assert_steers_nothing(written(console))
    console = on_terminal()
    Lines(console).show(run)
    assert_steers_nothing(written(console), lines=2)
    assert "before " in written(console)
    assert_steers_nothing(ending(run), lines=1)


@pytest.mark.parametrize("evil", ATTACKS.values(), ids=ATTACKS)
def test_a_live_table_has_the_escapes_of_its_own_only(evil: str) -> None:
    """On a real terminal the table is the same, whatever the run says, but for the words."""

    def escapes(text: str) -> int:
        console = on_terminal(force_terminal=True)
        table = LiveTable(console, {})
        table.show(a_run(text))
        console.print(table._render())
        shown = written(console)
        assert not [each for each in STEERING if each in shown and each not in "\n\x1b"], repr(shown)
        return shown.count("\x1b")

    assert escapes(evil) == escapes("x")


@pytest.mark.parametrize("text", MARKUP)
def test_markup_is_words(text: str) -> None:
    """What looks like markup is shown as it is, and breaks nothing."""
    for console in (on_terminal(), on_terminal(force_terminal=True, color_system="truecolor")):
        console.print(run_table(a_run(text)))
        Lines(console).show(a_run(text))
        assert written(console).count(text) >= 4
        assert "evil\x1b" not in written(console)


@pytest.mark.parametrize("evil", ATTACKS.values(), ids=ATTACKS)
async def test_what_commands_print_steers_no_terminal(evil: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Ends, outputs, problems and faults; JSON says the same as before."""
    run = a_run(evil)
    commands._tell_end(run)
    shown = capsys.readouterr()
    assert_steers_nothing(shown.out)
    assert_steers_nothing(shown.err, lines=1)
    assert orjson.loads(shown.out) == run.outputs
    commands.put(run.model_dump_json())
    shown = capsys.readouterr()
    assert_steers_nothing(shown.out, lines=1)
    assert Run.model_validate_json(shown.out) == run
    problem = Problem(status=422, title=f"t{evil}", detail=f"d{evil}")
    commands.say(commands.words_of(problem))
    file = PipelineFile("a.yaml", f"name: x{evil}\n", Source(None))
    commands.say(file.described(Fault(pointer=f"/a{evil}", message=f"m{evil}", line=1, column=1)))
    shown = capsys.readouterr()
    assert_steers_nothing(shown.err, lines=4)


@pytest.mark.parametrize("evil", ATTACKS.values(), ids=ATTACKS)
def test_the_log_console_is_steered_by_nobody(evil: str) -> None:
    """A line of a service is one line, with the colour of its name or without."""
    stream = io.StringIO()
    for line in f"before {evil} after".split("\n"):
        Console(stream, colour=False).say("http", line)
    assert_steers_nothing(stream.getvalue(), lines=1 + evil.count("\n"))


@pytest.mark.parametrize("evil", ATTACKS.values(), ids=ATTACKS)
def test_a_log_line_for_people_is_one_line(evil: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the event nor a value of it can fake another line."""
    event: Any = {"event": f"e{evil}", "level": "info", "value": evil, "many": {evil: [evil]}, "at": "now"}
    for processor in (log._bounded, *log._rendering("console")):
        event = processor(structlog.get_logger(), "info", event)
    assert isinstance(event, str)
    assert_steers_nothing(event, lines=1)


def test_what_people_write_is_shown_as_it_is() -> None:
    """Letters of all languages, signs, emoji and spaces are no attack."""
    for text in ("", "größer", "日本語", "العربية", "naïve e\u0301", "a\u00a0b", "😀", "[a] {b} \\n 'c'"):
        assert printable(text) == text
