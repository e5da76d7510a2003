"""What targets have in common: the way in, and the gateway's reader of submissions."""

from collections.abc import Coroutine
from typing import Any, ClassVar, Final

from hypothesis import strategies as st

from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.problems import ProblemError
from anabranch.services.gateway.reading import Submission
from anabranch.services.gateway.step_types import StepTypes
from anabranch.services.gateway.submissions import SubmissionReader
from anabranch.shared.contracts.limits import MAX_BODY_BYTES
from anabranch.shared.runtime.metrics import new_registry
from tests.fuzz.guard import MeteredLoop, bounded, close
from tests.unit.gateway.fakes import announced

REFUSALS: Final = frozenset({400, 404, 405, 406, 408, 411, 413, 414, 415, 417, 422, 429, 431, 503})
LONGEST_ANSWER: Final = 512 * 1024  # a refusal lists a hundred mistakes at most


class Target:
    """One way in. `name` is what the command line calls it."""

    name: ClassVar[str]
    cases: ClassVar[st.SearchStrategy[Any]]

    def open(self) -> None:
        """Prepare what all cases share."""

    def check(self, case: Any) -> None:
        """Do with a case what would be done with it; raise when that goes wrong."""
        raise NotImplementedError

    def close(self) -> None:
        """Put away what `open` prepared."""


class Reader:
    """The gateway's reader of submissions, on a loop of its own."""

    def __init__(self, types: StepTypes) -> None:
        self._loop = MeteredLoop(is_virtual=False)
        self.knows(types)

    def knows(self, types: StepTypes) -> None:
        """Read with these step types from now on."""
        self._reader = SubmissionReader(types, GatewayMetrics(new_registry()))

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something else done on the gateway's loop."""
        self._loop.meter.begin_anew()
        with bounded("a turn of the gateway's loop") as meter:
            self._loop.run_until_complete(work)
            meter.held_s = self._loop.meter.held_s

    def read(self, body: bytes, media_type: str = "application/json") -> Submission | None:
        """Return the submission, or None when it is refused: what is too large is, before it is read."""
        if len(body) > MAX_BODY_BYTES:
            return None
        self._loop.meter.begin_anew()
        with bounded("a turn of the gateway's loop") as meter:
            try:
                return self._loop.run_until_complete(self._reader.submission(body, media_type))
            except ProblemError as error:
                assert error.kind.status in REFUSALS, error
                size = len(error.response("/").body or b"")  # type: ignore[arg-type]
                assert size <= LONGEST_ANSWER, f"a refusal of {size} bytes"
                return None
            finally:
                meter.held_s = self._loop.meter.held_s

    def close(self) -> None:
        """Stop its threads and processes."""
        close(self._loop)


def known_types() -> StepTypes:
    """Return two step types, as a gateway knows them."""
    types = StepTypes()
    for name in ("simulate", "http"):
        types.announce(announced(name))
    types.complete = True
    return types
