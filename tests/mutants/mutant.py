"""A mutant, and what it takes to see whether a test notices it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
_TESTS_FAILED: Final = 1  # pytest's exit code; any other but 0 means that it could not run them
_WITHIN_S: Final = 300  # a mutant that hangs is noticed too


@dataclass(frozen=True, slots=True)
class Mutant:
    """One guard taken out: `old` stands once in `file` and is replaced by `new`; one of `tests` has to go red."""

    name: str
    file: str
    old: str
    new: str
    tests: str  # what pytest is given, separated by spaces

    def of(self, source: str) -> str:
        """Return the mutated source. Raises `ValueError` unless what it replaces stands there once."""
        count = source.count(self.old)
        if count != 1:
            raise ValueError(f"{self.name}: {self.old!r} stands {count} times in {self.file}, not once")
        return source.replace(self.old, self.new)


class Checkout:
    """A copy of the tracked files, to be broken."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
        for name in listed.stdout.decode().split("\0"):
            if name and (ROOT / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)

    def are_green(self, tests: Iterable[str]) -> bool:
        """Run tests as the checkout stands, and return whether they pass."""
        return self._run(*tests) == 0

    def notices(self, mutant: Mutant) -> bool:
        """Return whether a mutant's tests fail with it. Raises `RuntimeError` when they cannot be run."""
        path = self._folder / mutant.file
        source = path.read_text()
        path.write_text(mutant.of(source))
        try:
            code = self._run("-x", *mutant.tests.split())
        except subprocess.TimeoutExpired:
            return True
        finally:
            path.write_text(source)
        if code not in (0, _TESTS_FAILED):
            raise RuntimeError(f"{mutant.name}: its tests could not be run, pytest ended with {code}")
        return code == _TESTS_FAILED

    def _run(self, *arguments: str) -> int:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(self._folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        ran = subprocess.run(
            command, cwd=self._folder, env=environment, capture_output=True, timeout=_WITHIN_S, check=False
        )
        return ran.returncode
