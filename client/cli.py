"""The command `anabranch`: the local stack, and runs on any gateway."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import click

from anabranch import __version__
from anabranch.client import commands
from anabranch.client.api import DEFAULT_URL
from anabranch.client.model import GatewayUnreachableError, GatewayUntrustedError, ProblemError
from anabranch.client.pipeline_file import InputError, PipelineFile, read_inputs, read_pipeline, unreadable
from anabranch.shared.contracts.api_keys import Scope
from anabranch.shared.contracts.source import SourceError
from anabranch.shared.runtime.settings import Settings

_FILE: Final = click.Path(exists=True, dir_okay=False, allow_dash=True)

_url = click.option(
    "--url", envvar="ANABRANCH_URL", default=DEFAULT_URL, show_default=True, show_envvar=True, help="The gateway."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print the run as JSON, and nothing else.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="anabranch")
def main() -> None:
    """Run pipelines on Anabranch."""


@main.command()
@click.option("--fresh", is_flag=True, help="Clear the data directory first.")
@click.option("--orchestrators", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Of every step type.")
@click.option("--port", type=int, default=8080, show_default=True, help="The gateway's; gives way when it is taken.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Default: ANABRANCH_HOME, or .anabranch."
)
def up(**options: Any) -> None:
    """Start Kafka, Redis and every service on this machine, until Ctrl-C."""
    _end_with(commands.up(**options))


@main.command()
@click.argument("file", type=_FILE)
@click.option("--input", "-i", "pairs", multiple=True, metavar="NAME=VALUE", help="An input; NAME=@FILE reads a file.")
@click.option("--inputs-file", type=click.Path(exists=True, dir_okay=False), help="Inputs as a YAML or JSON mapping.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="A label of the run.")
@click.option("--idempotency-key", metavar="KEY", help="The same key is the same run, however often it is sent.")
@click.option("--no-watch", is_flag=True, help="Print the run's id and return.")
@_json
@_url
def run(
    *,
    file: str,
    pairs: tuple[str, ...],
    inputs_file: str | None,
    labels: tuple[str, ...],
    idempotency_key: str | None,
    no_watch: bool,
    as_json: bool,
    url: str,
) -> None:
    """Submit the pipeline in FILE (- for standard input) and watch the run.

    Exit code: 0 succeeded, 1 anything else, 2 a wrong pipeline, input or command line.
    """
    pipeline = _read(file)
    try:
        inputs = read_inputs(pipeline, inputs_file, pairs)
    except InputError as error:
        raise click.UsageError(str(error)) from error
    submission = commands.Submission(pipeline, inputs, _labels(labels), idempotency_key)
    _end_with(commands.run(url, submission, watched=not no_watch, as_json=as_json))


@main.command()
@click.argument("run_id", metavar="ID")
@click.option("--watch", is_flag=True, help="Watch it to its end; the exit code is then that of `run`.")
@_json
@_url
def status(run_id: str, watch: bool, as_json: bool, url: str) -> None:
    """Show the run ID: its steps, what they wait for, its outputs."""
    _end_with(commands.status(url, run_id, watched=watch, as_json=as_json))


@main.command()
@click.argument("run_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print the run's id and status as JSON, and nothing else.")
@_url
def cancel(run_id: str, as_json: bool, url: str) -> None:
    """Stop the run ID: nothing new starts, what runs is told to stop.

    Exit code: 0 it is being cancelled, or was before; 1 it ended otherwise, or there is none such.
    """
    _end_with(commands.cancel(url, run_id, as_json=as_json))


@main.command()
@click.argument("file", type=_FILE)
@_url
def validate(file: str, url: str) -> None:
    """Say everything that is wrong with the pipeline in FILE, with line and column.

    Without a gateway the pipeline is checked here, except for its step types. Exit code: 0 valid, 2 not.
    """
    _end_with(commands.validate(url, _read(file)))


@main.group()
def keys() -> None:
    """Make, list and revoke API keys, in Kafka itself (KAFKA_BOOTSTRAP_SERVERS): for operators."""


@keys.command()
@click.option("--tenant", required=True, help="Whose runs the key submits and reads.")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice([each.value for each in Scope]))
@click.option("--name", default="", help="What it is for.")
@click.option("--expires-days", "days", type=click.IntRange(1, 36_500), help="Never, unless given.")
def create(tenant: str, scopes: tuple[str, ...], name: str, days: int | None) -> None:
    """Make a key and print it, this once."""
    if not tenant:
        raise click.UsageError("--tenant is empty")
    from anabranch.client import keys as of_keys  # noqa: PLC0415 - loads a Kafka client, for these commands alone

    _end_with(of_keys.create(Settings(), tenant=tenant, scopes=scopes, name=name, days=days))


@keys.command("list")
def list_keys() -> None:
    """Show every key: its id, tenant, scopes, expiry and last use, never the key itself."""
    from anabranch.client import keys as of_keys  # noqa: PLC0415 - as above

    _end_with(of_keys.show(Settings()))


@keys.command()
@click.argument("key_id", metavar="ID")
def revoke(key_id: str) -> None:
    """Make the key ID stop working, on every gateway, within seconds."""
    from anabranch.client import keys as of_keys  # noqa: PLC0415 - as above

    _end_with(of_keys.revoke(Settings(), key_id))


def _read(path: str) -> PipelineFile:
    try:
        return read_pipeline(path)
    except SourceError as error:
        commands.say(unreadable(path, error))
        raise SystemExit(commands.WRONG) from error


def _labels(pairs: tuple[str, ...]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise click.UsageError(f"--label is name=value, not {pair!r}")
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def _end_with(command: Coroutine[Any, Any, int]) -> None:
    """Run a command and leave with its exit code; what it could not do is told in a sentence."""
    try:
        code = asyncio.run(command)
    except (GatewayUnreachableError, GatewayUntrustedError) as error:
        commands.say(str(error))
        code = commands.FAILED
    except ProblemError as error:
        commands.say(commands.words_of(error.problem))
        code = commands.FAILED
    except KeyboardInterrupt:
        code = commands.INTERRUPTED
    raise SystemExit(code)


if __name__ == "__main__":
    main()
