"""docs/cli.md says what the command says."""

import re
from pathlib import Path

import click

from anabranch.client.cli import main

CLI_MD = Path(__file__).parents[3] / "docs" / "cli.md"


def documented() -> dict[str, set[str]]:
    """The options that the page lists, by command."""
    sections = re.split(r"^## `anabranch (\w+)", CLI_MD.read_text(), flags=re.MULTILINE)[1:]
    rows = {
        name: re.findall(r"^\| (`-.*?) \|", text, flags=re.MULTILINE)
        for name, text in zip(sections[::2], sections[1::2], strict=True)
    }
    return {
        name: {flag for row in listed for flag in re.findall(r"--?[a-z][a-z-]*", row)} for name, listed in rows.items()
    }


def test_page_lists_every_option_of_every_command() -> None:
    options = {
        name: {flag for option in command.params if isinstance(option, click.Option) for flag in option.opts}
        for name, command in main.commands.items()
    }
    assert documented() == options
