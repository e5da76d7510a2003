"""The hunt for one target: cases are drawn by Hypothesis until the time is up, findings are shrunk and kept."""

import faulthandler
import hashlib
import logging
import pickle
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from tests.fuzz.guard import HANG_S, TooCostly, limit_memory
from tests.fuzz.targets import TARGETS, Target

FOLDER: Final = Path(".fuzz")
_BATCH: Final = 200  # cases that Hypothesis draws before it is given a new seed
_SHRINK_S: Final = 20.0  # after which the smallest so far has to do


class Hunt:
    """Draws cases for a target from a seed. A finding is known by where it was raised, and told once."""

    def __init__(self, name: str, seed_: int) -> None:
        self._name = name
        self._seed = seed_
        self._target: Target = TARGETS[name]()
        self._tries = 0
        self._until = 0.0
        self._found: dict[str, tuple[float, str, str]] = {}  # by signature: since when, where it is kept, what

    def run(self, seconds: float) -> dict[str, Any]:
        """Hunt for so long; return how many cases were tried, and what was found by where it is kept."""
        silence()
        limit_memory()
        (FOLDER / "current").mkdir(parents=True, exist_ok=True)
        self._until = time.monotonic() + seconds
        self._target.open()
        batch = 0
        while time.monotonic() < self._until:
            self._draw(self._seed * 1_000_000 + batch)
            batch += 1
        (FOLDER / "current" / f"{self._name}.case").unlink(missing_ok=True)
        return {"tries": self._tries, "found": {where: what for _, where, what in self._found.values()}}

    def _draw(self, batch_seed: int) -> None:
        @seed(batch_seed)
        @settings(
            max_examples=_BATCH,
            deadline=None,
            database=DirectoryBasedExampleDatabase(FOLDER / "corpus" / self._name),
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.quiet,
            report_multiple_bugs=False,
            phases=(Phase.reuse, Phase.generate, Phase.shrink),
        )
        @given(TARGETS[self._name].cases)
        def draw(case: Any) -> None:
            self._try(case)

        with suppress(Exception):  # kept already; Hypothesis raises it once more, or says that it came and went
            draw()

    def _try(self, case: Any) -> None:
        if time.monotonic() > self._until + _SHRINK_S or (not self._found and time.monotonic() > self._until):
            return  # let Hypothesis come to its end
        self._tries += 1
        (FOLDER / "current" / f"{self._name}.case").write_bytes(pickle.dumps((self._tries, case)))
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        try:
            self._target.check(case)
        except (Exception, MemoryError) as error:
            if self._is_news(case, error):
                raise
        finally:
            faulthandler.cancel_dump_traceback_later()  # what Hypothesis takes for the next case is not ours

    def _is_news(self, case: Any, error: BaseException) -> bool:
        """Keep a finding; return whether it is to be shrunk (further)."""
        signature = signature_of(error)
        now = time.monotonic()
        since, where, _ = self._found.get(signature, (now, "", ""))
        if now - since > _SHRINK_S:
            return False
        if where:
            for old in FOLDER.joinpath("found").glob(Path(where).stem + ".*"):
                old.unlink(missing_ok=True)
        what = signature_of(error) + ": " + str(error)[:300]
        where = self.keep(case, signature, "".join(traceback.format_exception(error))[-20_000:])
        self._found[signature] = since, where, what
        return not isinstance(error, TooCostly | MemoryError)  # what a case costs differs from time to time

    def keep(self, case: Any, signature: str, words: str) -> str:
        """Write the case and what is known of it; return where the case is."""
        folder = FOLDER / "found"
        folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.blake2b(signature.encode(), digest_size=4).hexdigest()
        path = folder / f"{self._name}-{digest}.case"
        path.write_bytes(pickle.dumps((self._name, self._seed, case)))
        path.with_suffix(".txt").write_text(f"seed {self._seed}\n{case!r}\n\n{words}", errors="backslashreplace")
        return str(path)


def signature_of(error: BaseException) -> str:
    """Return what tells a finding from another: the kind of error, and the last place of ours that it passed."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if ".venv" not in frame.filename]
    last = [f"{Path(frame.filename).name}:{frame.name}" for frame in frames][-2:]
    words = str(error).split(" ")[:4] if isinstance(error, AssertionError) else []
    return " ".join([type(error).__name__, *last, *words])


def silence() -> None:
    """Let nobody log: lines cost more than cases."""
    logging.disable(logging.CRITICAL)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


def replay(path: Path) -> None:
    """Do again what was found, and let it raise."""
    name, seed_, case = pickle.loads(path.read_bytes())
    print(f"{name}, seed {seed_}: {case!r}"[:5000])
    limit_memory()
    target = TARGETS[name]()
    target.open()
    target.check(case)
    target.close()
    print("nothing is wrong with it any more")
