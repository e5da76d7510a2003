"""The command `anabranch`: the local stack, and runs on any gateway."""

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from pydantic import ValidationError

from anabranch import __version__
from anabranch.client import commands
from anabranch.client.api import DEFAULT_URL
from anabranch.client.model import GatewayUnreachableError, GatewayUntrustedError, ProblemError
from anabranch.client.pipeline_file import InputError, PipelineFile, read_inputs, read_pipeline, unreadable
from anabranch.shared.contracts.api_keys import Scope
from anabranch.shared.contracts.source import SourceError
from anabranch.shared.runtime.settings import Settings

if TYPE_CHECKING:
    from anabranch.shared.record.settings import RecordSettings

_FILE: Final = click.Path(exists=True, dir_okay=False, allow_dash=True)


def _milliseconds(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """Return a time as people write it: ISO 8601, in UTC unless it says otherwise."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no time: 2026-01-31, or 2026-01-31T12:00:00+01:00") from error
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


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
@click.option("--observe", is_flag=True, help="Add a Prometheus and a Grafana, if they are installed.")
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
@click.option("--status", multiple=True, help="Of this status; several are any of them.")
@click.option("--pipeline", help="Of this name.")
@click.option("--revision", type=click.IntRange(0), help="Of this revision of it.")
@click.option("--since", metavar="TIME", help="Begun at this time or later, or so long ago: 15m, 7d.")
@click.option("--until", metavar="TIME", help="Begun before.")
@click.option("--label", multiple=True, metavar="NAME=VALUE", help="With this label.")
@click.option("--input", "-i", multiple=True, metavar="NAME=VALUE", help="With this input; JSON of what is no text.")
@click.option("--error-type", help="Ended with an error of this type.")
@click.option("--text", help="In the pipeline's name, the error's message or the beginning of the id.")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="Runs of a page.")
@click.option("--cursor", help="Where the page begins, as the one before has told.")
@click.option("--counts", is_flag=True, help="Count them by status, too.")
@click.option("--all", "all_pages", is_flag=True, help="Every page.")
@click.option("--json", "as_json", is_flag=True, help="Print each as a line of JSON.")
@_url
def runs(*, url: str, all_pages: bool, as_json: bool, counts: bool, **wanted: Any) -> None:
    """Show the runs that are asked for, the newest first."""
    _end_with(commands.runs(url, wanted | {"counts": counts or None}, all_pages=all_pages, as_json=as_json))


@main.command()
@click.argument("run_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print the run and the attempts as JSON.")
@_url
def show(run_id: str, as_json: bool, url: str) -> None:
    """Show the run ID, and every attempt of the steps that had several."""
    _end_with(commands.show_run(url, run_id, as_json=as_json))


@main.command()
@click.option("--pipeline", help="Of this name alone.")
@click.option("--since", metavar="TIME", default="24h", show_default=True, help="Of runs begun since, or so long ago.")
@click.option("--by", type=click.Choice(["pipeline", "step"]), default="pipeline", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@_url
def stats(*, url: str, as_json: bool, **wanted: Any) -> None:
    """Show how long runs or their steps took, and how often they failed."""
    _end_with(commands.statistics(url, wanted, as_json=as_json))


@main.command()
@click.argument("run_id", metavar="ID", required=False)
@click.option("--follow", "-f", is_flag=True, help="Go on as they happen, to the run's end.")
@click.option("--after", default="", metavar="PLACE", help="Begin after this event: its number in the run.")
@click.option("--json", "as_json", is_flag=True, help="Print each as a line of JSON.")
@_url
def events(run_id: str | None, follow: bool, after: str, as_json: bool, url: str) -> None:
    """Show what happened to the run ID, or with --follow and no ID, what happens to all runs from now on."""
    if run_id is None and not follow:
        raise click.UsageError("name a run, or follow all with --follow")
    _end_with(commands.events(url, run_id, after=after, followed=follow, as_json=as_json))


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


@main.command()
@click.argument("run_id", metavar="ID")
@click.option("--at", type=click.IntRange(min=1), metavar="SEQ", help="Show it as it was after this event.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON, and nothing else.")
def replay(run_id: str, at: int | None, as_json: bool) -> None:
    """Rebuild the run ID from Kafka itself, event by event, and compare it with what is stored: for operators.

    Reads KAFKA_BOOTSTRAP_SERVERS and, when it is set, DATABASE_URL. Exit code: 0 equal, 1 different, 2 no such run,
    3 they cannot be read.
    """
    from anabranch.client import replay as of_replay  # noqa: PLC0415 - loads the engine's core, for this command alone

    _end_with(of_replay.replay(_record_settings(), run_id, at=at, as_json=as_json))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON, and nothing else.")
def doctor(as_json: bool) -> None:
    """Look at Kafka, Redis, the record and the engine's processes, and say what is wrong and what to do: for operators.

    Reads KAFKA_BOOTSTRAP_SERVERS, REDIS_URL and, when it is set, DATABASE_URL; changes nothing. Exit code: 0 runs go
    on, 1 something keeps them from it or could not be looked at.
    """
    from anabranch.client import doctor as of_doctor  # noqa: PLC0415 - loads a Kafka client and SQLAlchemy

    _end_with(of_doctor.doctor(_record_settings(), as_json=as_json))


@main.command()
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="The directory to fill.")
@click.option("--since", "since_ms", callback=_milliseconds, metavar="TIME", help="Runs created from then on.")
@click.option("--until", "until_ms", callback=_milliseconds, metavar="TIME", help="Runs created before then.")
@click.option("--tenant", help="This tenant's runs alone.")
def export(out: Path, since_ms: int | None, until_ms: int | None, tenant: str | None) -> None:
    """Write runs, steps, attempts and events from the record itself (DATABASE_URL) as Parquet files: for operators.

    TIME is a date, or a date and time (ISO 8601), in UTC unless it says otherwise.
    """
    if find_spec("pyarrow") is None:
        commands.say("an export needs one more package: pip install 'anabranch[export]'")
        raise SystemExit(commands.FAILED)
    from anabranch.client import export as of_export  # noqa: PLC0415 - an extra, and large

    wanted = of_export.Wanted(since_ms, until_ms, tenant)
    _end_with(of_export.export(_record_settings(), out, wanted))


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


@main.group()
def db() -> None:
    """Bring the tables of the record up to date, or down, in the database itself (DATABASE_URL): for operators."""


@db.command()
@click.argument("revision", default="head")
def upgrade(revision: str) -> None:
    """Bring the database up to REVISION, the newest unless given; the services may go on meanwhile."""
    from anabranch.client import database  # noqa: PLC0415 - loads SQLAlchemy, for these commands alone

    _end_with(database.upgrade(_record_settings(), revision))


@db.command()
@click.argument("revision")
@click.confirmation_option(prompt="What the tables hold that this takes away is gone. Go on?")
def downgrade(revision: str) -> None:
    """Take the database down to REVISION, `base` for nothing at all."""
    from anabranch.client import database  # noqa: PLC0415 - as above

    _end_with(database.downgrade(_record_settings(), revision))


@db.command()
def current() -> None:
    """Show the revision of the database, and which one this version needs."""
    from anabranch.client import database  # noqa: PLC0415 - as above

    _end_with(database.current(_record_settings()))


def _record_settings() -> "RecordSettings":
    from anabranch.shared.record.settings import RecordSettings  # noqa: PLC0415 - as above

    try:
        return RecordSettings()
    except ValidationError as error:
        raise click.UsageError("; ".join(str(fault["msg"]) for fault in error.errors(include_input=False))) from error


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
