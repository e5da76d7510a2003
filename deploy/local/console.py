"""Log lines of many processes on one terminal."""

import os
import sys
import zlib
from collections.abc import Mapping
from typing import TextIO

from anabranch.shared.contracts.text import printable

# ANSI foreground colours that are legible on dark and on light ground.
COLOURS = (32, 33, 34, 35, 36, 92, 94, 95, 96)
RESET = "\x1b[0m"
_TAB = "\t"  # of tracebacks


def wants_colour(stream: TextIO, env: Mapping[str, str]) -> bool:
    """Colour only on a terminal, and never under NO_COLOR (no-color.org)."""
    return stream.isatty() and not env.get("NO_COLOR")


class Console:
    """Writes lines with the name of who said them in front."""

    def __init__(self, stream: TextIO | None = None, *, colour: bool | None = None, width: int = 14) -> None:
        self._stream = stream or sys.stdout
        self._colour = wants_colour(self._stream, os.environ) if colour is None else colour
        self._width = width

    def say(self, name: str, line: str) -> None:
        """Write one line of one process."""
        prefix = f"{name:<{self._width}} |"
        if self._colour:
            prefix = f"\x1b[{COLOURS[zlib.crc32(name.encode()) % len(COLOURS)]}m{prefix}{RESET}"
        self.plain(f"{prefix} {printable(line, keep=_TAB)}")

    def plain(self, line: str) -> None:
        """Write a line as it is."""
        try:
            print(line, file=self._stream, flush=True)
        except BrokenPipeError:  # `up | head`: nobody reads on; the log files have it all
            self._stream = open(os.devnull, "w")  # noqa: SIM115, PTH123 - stays open as the terminal did


class Silence(Console):
    """A console for tests and benchmarks; the log files have it all."""

    def plain(self, line: str) -> None:
        """Write nothing."""
