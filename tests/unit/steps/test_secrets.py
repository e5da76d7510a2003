"""Secrets reach the handler that was meant, and nobody else."""

import asyncio
import os
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.invoke import invoker
from anabranch.services.steps.secrets import SecretError, ServiceSecrets, with_secrets
from anabranch.services.steps.settings import StepServiceSettings
from anabranch.services.steps.step_type import StepType, step_type
from anabranch.shared.contracts.errors import RetryableError, TerminalError
from anabranch.shared.contracts.hiding import Hiding
from anabranch.shared.contracts.limits import MAX_SECRET_BYTES, MAX_STEP_INPUT_BYTES
from anabranch.shared.contracts.messages import AttemptFailed, RunStep
from anabranch.shared.contracts.secrets import SecretText
from anabranch.shared.runtime import log
from anabranch.shared.runtime.settings import Settings, unknown_names, without_secrets
from tests.support.apart import apart

from .fakes import World, a_command, a_world, running
from .virtual import run

VALUE = "s3cret/t0ken+1"
TEXTS = (SecretText("/key", ("Bearer ", "TOKEN", "")),)


class FakeSecrets:
    """Values by tenant and name."""

    def __init__(self, **values: str) -> None:
        self._values = values

    async def values(self, tenant: str, texts: Sequence[SecretText]) -> dict[str, str]:
        await asyncio.sleep(0.01)
        found = {name: self._values.get(f"{tenant}_{name}") for text in texts for name in text.names}
        if None in found.values():
            raise SecretError("there is no secret", error_type="SecretMissing")
        return {name: value for name, value in found.items() if value is not None}


class Given(BaseModel):
    key: str
    how: str = "output"


class Said(BaseModel):
    said: Any


def leak_type(seen: list[str]) -> StepType[Given, Said]:
    """A step type that tells what it was given, in every way there is."""

    @step_type("echo")
    async def leak(given: Given, context: StepContext) -> Said:
        seen.append(given.key)
        context.heartbeat({"at": given.key, given.key: 1})
        context.log.error(f"called with {given.key}", key=given.key, many=[{"key": given.key}], raw=repr(given))
        match given.how:
            case "output":
                return Said(said=[given.key, {given.key: b64encode(given.key.encode()).decode()}])
            case "terminal":
                raise TerminalError(f"with {given.key}", error_type=given.key, details={given.key: [given.key]})
            case "retryable":
                raise RetryableError(f"with {given.key}", details=given.key)
            case "cancelled":
                raise asyncio.CancelledError(given.key)
            case "cut":
                raise ValueError("x" * 4_080 + given.key)
            case "no json":
                return Said(said={1, given.key, object()})
            case _:
                raise KeyError(given.key) from ValueError(f"of {given.key}")

    return leak


def sent_to_a_leak(how: str, secrets: FakeSecrets | None = None) -> tuple[World, list[str]]:
    """Return a worker that was sent a command with a secret, and what its handler was given."""
    seen: list[str] = []

    async def main() -> World:
        secret = secrets or FakeSecrets(t_TOKEN=VALUE)
        async with running(a_world(serves=leak_type(seen), secrets=secret, grace_s=0.001)) as world:
            world.send(a_command(key=None, how=how).model_copy(update={"secrets": TEXTS}))
            await asyncio.sleep(5)
        return world

    return run(main()), seen


def assert_hidden(shown: object) -> None:
    """Assert that no form of the value is there, nor much of it."""
    for form in (VALUE, "s3cret%2Ft0ken", "s3cret\\/t0ken", "s3cret/t0k", b64encode(VALUE.encode()).decode()[:-2]):
        assert form not in str(shown)


@pytest.mark.parametrize("how", ["output", "terminal", "retryable", "cancelled", "cut", "no json", "anything"])
def test_the_handler_has_the_value_and_nothing_that_is_said_of_the_attempt(
    how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Output, progress, type, text, details and traceback of an error, notes in the memory, and lines of the log."""
    log.configure_logging("test", Settings())
    world, seen = sent_to_a_leak(how)
    assert seen == [f"Bearer {VALUE}"]
    assert world.results.results(), "it was answered"
    for record in world.results.appended:
        assert_hidden(record.value.decode())
    assert_hidden(world.memory.known)
    written = capsys.readouterr().out
    assert "called with Bearer ***" in written
    assert_hidden(written)


def test_a_secret_that_is_not_there_fails_the_step_for_good() -> None:
    """Its handler is not called; the error names the secret."""
    world, seen = sent_to_a_leak("output", FakeSecrets(other_TOKEN=VALUE))
    assert seen == []
    (answer,) = world.results.messages(AttemptFailed)
    assert (answer.error.type, answer.terminal) == ("SecretMissing", True)


def test_a_worker_that_was_given_no_secrets_says_so() -> None:
    """The error names the secret, the step type and the tenant."""

    async def main() -> Any:
        async with running(a_world()) as world:
            world.send(a_command(text=None).model_copy(update={"secrets": (SecretText("/text", ("", "A", "")),)}))
            await asyncio.sleep(1)
        return world.results.messages()[0]

    answer = run(main())
    assert "no secret 'A' for steps of type echo of the tenant 't'" in answer.error.message


def test_text_that_looks_like_a_secret_stays_a_text() -> None:
    """What an input says is given to the handler as it is, whatever secrets there are."""

    async def main() -> Any:
        async with running(a_world(secrets=FakeSecrets(t_TOKEN=VALUE))) as world:
            world.send(a_command(text="${{ secrets.TOKEN }}"))
            await asyncio.sleep(1)
        return world.results.results()

    assert run(main()) == [("AttemptSucceeded", {"text": "${{ secrets.TOKEN }}"})]


def test_a_command_keeps_its_own_input() -> None:
    """What is put into its place is put into a copy."""
    command = a_command_with(key=None)
    texts = (SecretText("/key", ("", "A", "")),)
    assert with_secrets(command.input, texts, {"A": "x"}) == {"key": "x"}
    assert command.input == {"key": None}


def a_command_with(**given: Any) -> RunStep:
    return RunStep(run_id="r", step="s", attempt=1, uses="echo", tenant="t", input=given, timeout_s=1, at_ms=1)


@pytest.mark.parametrize(
    ("given", "at", "expected"),
    [
        ({"a": [None, 1]}, "/a/0", {"a": ["x-v", 1]}), ({"a/b~": None}, "/a~1b~0", {"a/b~": "x-v"}),
        ({"": None}, "/", {"": "x-v"}), (None, "", "x-v"), ({"0": {"01": None}}, "/0/01", {"0": {"01": "x-v"}}),
    ],
)  # fmt: skip
def test_a_secret_is_put_where_its_pointer_says(given: Any, at: str, expected: Any) -> None:
    """Lists and names with odd characters, also none."""
    assert with_secrets(given, [SecretText(at, ("x-", "A", ""))], {"A": "v"}) == expected


def test_many_secrets_make_no_more_than_an_input() -> None:
    """A short definition names a long secret very often."""
    text = SecretText("/a", ("", *("A", "") * 100))
    with pytest.raises(SecretError, match="a step may have") as refusal:
        with_secrets({"a": None}, [text], {"A": "x" * (MAX_STEP_INPUT_BYTES // 100 + 1)})
    assert refusal.value.error_type == "PayloadTooLarge"


# --- where values come from -----------------------------------------------------------------------------------------


def secrets_of(
    directory: Path | None, *, allow: str = "*", tenant: str = "default", **environment: str
) -> ServiceSecrets:
    settings = StepServiceSettings(secrets_dir=directory, secrets_allow=allow, default_tenant=tenant)
    return ServiceSecrets("http", settings, environment)


async def value_of(secrets: ServiceSecrets, name: str, tenant: str = "default") -> str:
    return (await secrets.values(tenant, [SecretText("/a", ("", name, ""))]))[name]


async def test_secrets_are_files_and_variables(tmp_path: Path) -> None:
    """A tenant's own file comes before what is the default tenant's, a file before the environment."""
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "OWN").write_text("own\n")
    (tmp_path / "OWN").write_text("beside")
    (tmp_path / "BESIDE").write_text("beside\r\n")
    names = ("OWN", "BESIDE", "VARIABLE")
    secrets = secrets_of(tmp_path, **{f"ANABRANCH_SECRET_{name}": "variable" for name in names})
    assert [await value_of(secrets, name) for name in names] == ["own", "beside", "variable"]


async def test_secrets_as_kubernetes_mounts_them_are_followed_when_they_change(tmp_path: Path) -> None:
    """A link to a file in a directory that is a link; each attempt reads anew."""
    for version in ("..1", "..2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "api-key").write_text(f"value {version}")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "api-key").symlink_to("..data/api-key")
    secrets = secrets_of(tmp_path)
    assert await value_of(secrets, "api-key") == "value ..1"
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert await value_of(secrets, "api-key") == "value ..2"


@pytest.mark.parametrize("tenant", ["acme", "", ".", "..", "../default", "default/", "a/../default", "ACME\0", "a\nb"])
async def test_a_tenant_has_its_own_secrets_only(tenant: str, tmp_path: Path) -> None:
    """Neither the default tenant's, nor the environment's, nor by a name that is a path."""
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "A").write_text("theirs")
    (tmp_path / "A").write_text("theirs")
    with pytest.raises(SecretError, match="no secret 'A'") as refusal:
        await value_of(secrets_of(tmp_path, ANABRANCH_SECRET_A="theirs"), "A", tenant)
    assert "theirs" not in str(refusal.value)


async def test_two_tenants_have_secrets_of_one_name(tmp_path: Path) -> None:
    """Each its own."""
    for tenant in ("acme", "x.y@z"):
        (tmp_path / tenant).mkdir()
        (tmp_path / tenant / "A").write_text(f"of {tenant}")
    secrets = secrets_of(tmp_path)
    assert [await value_of(secrets, "A", tenant) for tenant in ("acme", "x.y@z")] == ["of acme", "of x.y@z"]


@pytest.mark.parametrize("name", ["../A", "..", "acme/A", "/etc/passwd", "", "a.b", "A\0"])
async def test_no_name_is_a_path(name: str, tmp_path: Path) -> None:
    """A command says what it likes."""
    (tmp_path / "A").write_text("x")
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "A").write_text("x")
    with pytest.raises(SecretError, match="no secret"):
        await value_of(secrets_of(tmp_path / "acme"), name)


@pytest.mark.parametrize(
    ("allow", "name", "is_allowed"),
    [
        ("*", "A", True), ("A", "A", True), ("B", "A", False), ("", "A", False), ("API_*, B", "API_X", True),
        ("API_*", "A", False), ("http:A", "A", True), ("sql:A", "A", False), ("sql:*,http:A", "B", False),
        ("a", "A", False),
    ],
)  # fmt: skip
async def test_a_service_may_be_told_which_of_its_secrets_steps_name(allow: str, name: str, is_allowed: bool) -> None:
    """One that is not allowed is not there."""
    secrets = secrets_of(None, allow=allow, **{f"ANABRANCH_SECRET_{name}": "x"})
    if is_allowed:
        assert await value_of(secrets, name) == "x"
    else:
        with pytest.raises(SecretError, match=f"no secret '{name}'"):
            await value_of(secrets, name)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"\n", "empty"), (b"a\0b", "NUL"), (b"caf\xe9", "UTF-8"),
     (b"x" * (MAX_SECRET_BYTES + 1), "more than")],
)  # fmt: skip
async def test_a_value_that_is_no_text_is_refused_by_its_name(content: bytes, words: str, tmp_path: Path) -> None:
    """Nothing of the value, and no path of the machine, is in the error."""
    (tmp_path / "A").write_bytes(content)
    with pytest.raises(SecretError, match=words) as refusal:
        await value_of(secrets_of(tmp_path), "A")
    assert refusal.value.error_type == "SecretUnreadable"
    assert "'A'" in str(refusal.value)
    assert str(tmp_path) not in str(refusal.value)
    assert "caf" not in repr(refusal.value.__cause__)


@pytest.mark.timeout(60)
async def test_what_is_no_file_is_no_secret(tmp_path: Path) -> None:
    """A directory, a pipe that nobody writes to, a link that leads nowhere."""
    (tmp_path / "D").mkdir()
    os.mkfifo(tmp_path / "P")
    (tmp_path / "L").symlink_to("nowhere")
    for name in ("D", "P", "L"):
        with pytest.raises(SecretError, match="no secret"):
            await value_of(secrets_of(tmp_path), name)


def test_secrets_in_the_environment_are_no_settings_and_go_to_step_services_only() -> None:
    """They are not reported as typing errors; what is no step service does not get them."""
    environment = {"ANABRANCH_SECRET_A": "x", "ANABRANCH_SECRETS_DIR": "/d", "ANABRANCH_HTTP_HOST": "h"}
    assert unknown_names(Settings, environment) == []
    assert without_secrets(environment) == {"ANABRANCH_SECRETS_DIR": "/d", "ANABRANCH_HTTP_HOST": "h"}


async def test_a_handler_in_a_process_of_its_own_says_nothing_either(capfd: pytest.CaptureFixture[str]) -> None:
    """What it logs there is written by the lines' own rules."""
    context = StepContext(
        run_id="r", step="s", attempt=1, tenant="t", deadline=60, clock=lambda: 0, log=log.get_logger()
    )
    context.hiding = Hiding([VALUE])
    async with invoker(apart, 1) as invoke:
        await invoke({"says": f"it is {VALUE}"}, context)
    written = capfd.readouterr().out
    assert "it is ***" in written
    assert_hidden(written)


def test_a_line_of_a_log_shows_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever logs it: the engine, a library, or an error's traceback; also as a number, and where lines are cut."""
    log.configure_logging("test", Settings())
    log.hide_from_logs(Hiding(["hunter2hunter2", "471147114711"]))
    logger = log.get_logger()
    error = ValueError("hunter2hunter2")
    cut = "x" * 3_995 + "hunter2hunter2" * 900
    logger.error("failed", exc_info=error, pin=471147114711, url="http://u:hunter2hunter2@h/", cut=cut)
    written = capsys.readouterr().out
    assert "hunter2" not in written
    assert "4711" not in written
    assert orjson.loads(written)["pin"] == "***"
