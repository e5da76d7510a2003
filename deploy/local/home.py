"""The data directory of a stack: used by one stack at a time, and cleared only when it is ours."""

import os
import shutil
from pathlib import Path
from typing import Self

from anabranch.deploy.local.hold import HeldError, Hold

MARK = "anabranch-data"  # a file that says: made by us, may be cleared by us
HOLDER = "stack.pid"


class HomeError(RuntimeError):
    """The data directory cannot be used."""


def default_home() -> Path:
    """ANABRANCH_HOME, or `.anabranch` in the current directory."""
    return Path(os.environ.get("ANABRANCH_HOME") or ".anabranch").expanduser().absolute()


class Home:
    """Holds a data directory from `hold` to `release`; the kernel releases it when the process dies."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._hold = Hold(self.path / HOLDER, f"the data directory {self.path}")

    def hold(self) -> Self:
        """Take the directory, creating it; raise HomeError naming the pid of the stack that has it."""
        is_new = not self.path.exists() or all(_is_home(entry) for entry in self.path.iterdir())
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._hold.take()
        except HeldError as error:
            raise HomeError(f"{error}; stop that stack, or choose another directory with ANABRANCH_HOME") from error
        if is_new:
            (self.path / MARK).write_text("Data of a local Anabranch stack; `anabranch up --fresh` clears it.\n")
        return self

    def clear(self) -> None:
        """Delete what is in the directory; raise HomeError when it is not one of ours."""
        if not (self.path / MARK).is_file():
            raise HomeError(f"{self.path} was not made by anabranch (it has no file {MARK!r}): not clearing it")
        for entry in self.path.iterdir():
            if entry.name in (MARK, HOLDER) or _is_home(entry):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def release(self) -> None:
        """Let the directory go."""
        self._hold.release()


def _is_home(path: Path) -> bool:
    """Whether it is the directory of a stack, the demo's for instance, inside of another's."""
    return (path / MARK).is_file()
