"""What ought not to happen to the core: deciding that raises or takes long, changelogs that cannot be read."""

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Final

from anabranch.services.orchestrator.core import changelog, decide
from anabranch.services.orchestrator.core.changelog import Change
from anabranch.services.orchestrator.core.decide import Decision
from anabranch.services.orchestrator.core.partition import to_runs
from anabranch.services.orchestrator.core.state import Run
from anabranch.services.orchestrator.core.turn import Budget
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.cel_cost import EVALUATION
from anabranch.shared.contracts.codec import Undecodable, decode
from anabranch.shared.contracts.errors import StepError

from .virtual import host_at_work
from .weather import Weather

if TYPE_CHECKING:
    from .simulation import World

_HARD: Final = 3  # of so many runs, failing one raises


class Drawn(Exception):
    """What deciding a drawn record raises."""


class Raising:
    """Decides, and raises for some records; and for some runs, failing them raises too.

    Whoever decides a record, however often, draws the same for it. A start is drawn by its run: its repeats raise too.
    """

    def __init__(self, random: Random) -> None:
        self._salt = random.getrandbits(64)
        self._one_in = random.choice((0, 0, 0, 40))
        self.untouched: set[str] = set()  # runs that nothing touches any more, or that never begin

    def decide(self, run: Run | None, message: m.RunMessage, at: int) -> Decision:
        """Do as `core.decide.decide` does, or raise."""
        words = message.run_id if isinstance(message, m.SubmitRun) else f"{message.model_dump_json()}{at}"
        if self._one_in and self._draws(words, self._one_in):
            raise Drawn
        return decide.decide(run, message, at)

    def abandon(self, run: Run, error: StepError, at: int) -> Decision:
        """Do as `core.decide.abandon` does, or raise."""
        self._fail(run.id)
        return decide.abandon(run, error, at)

    def refuse(self, message: m.SubmitRun, error: StepError, at: int) -> Decision:
        """Do as `core.decide.refuse` does, or raise."""
        self._fail(message.run_id)
        return decide.refuse(message, error, at)

    def is_hard(self, run_id: str) -> bool:
        """Whether failing the run raises."""
        return bool(self._one_in) and self._draws(f"failing {run_id}", _HARD)

    def _fail(self, run_id: str) -> None:
        if self.is_hard(run_id):
            self.untouched.add(run_id)
            raise Drawn

    def _draws(self, words: str, one_in: int) -> bool:
        digest = blake2b(f"{self._salt}{words}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) % one_in == 0


def charging(weather: Weather, evaluation_s: float) -> Callable[[Budget, int], None]:
    """Return a `Budget.charge` that takes the time of what is evaluated: its process does nothing else meanwhile."""
    charge, s_per_unit = Budget.charge, evaluation_s / EVALUATION

    def charge_and_work(budget: Budget, cost: int) -> None:
        charge(budget, cost)
        host = host_at_work()
        if host is not None and s_per_unit and cost >= EVALUATION:
            host.works_for(cost * s_per_unit)
            weather.count("costly evaluations")

    return charge_and_work


class Harm:
    """Spoils records of one run in a changelog, when a take-over reads it."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.due = 0  # how many runs are still to be harmed
        self.harmed: dict[int, list[str]] = {}  # by partition
        self.buried: set[str] = set()  # of them, those that have no head any more

    def befall(self, partition: int, live: dict[bytes, bytes]) -> None:
        """Harm a run of which nobody has decided more than this changelog says: else its events would be others."""
        if not self.due or self._is_held(partition):
            return
        runs = sorted(self._untold(partition, live))
        if not runs:
            return
        self.due -= 1
        run_id = self._world.random.choice(runs)
        name, change = self._world.random.choice(self._changes(run_id, live))
        self.harmed.setdefault(partition, []).append(run_id)
        if name == "head":
            self.buried.add(run_id)
        self._world.broker.changelogs[partition].spoil(change)
        live[change[0]] = change[1] or b""
        self._world.weather.count(f"harmed changelogs: {name}")

    def _is_held(self, partition: int) -> bool:
        from .processes import OrchestratorProcess

        holders = [
            slot.process for slot in self._world.slots
            if isinstance(slot.process, OrchestratorProcess) and slot.process.host.is_alive
            and partition in slot.process.owner.tasks
        ]  # fmt: skip
        return len(holders) > 1

    def _untold(self, partition: int, live: dict[bytes, bytes]) -> set[str]:
        """Return the runs that stand in the changelog and that no later record of the inbox speaks of."""
        heads = {key.decode() for key, value in live.items() if b"/" not in key and b'"started_at"' in value}
        heads -= {*self.harmed.get(partition, ()), *self._world.raising.untouched}
        value = live.get(changelog.CHECKPOINT_KEY)
        if value is None:
            return set()
        _, checkpoint = changelog.restore({changelog.CHECKPOINT_KEY: value})
        assert checkpoint is not None
        later = self._world.broker.log(self._world.broker.topics.inbox, partition).records[checkpoint.offset :]
        told = {part.run_id for record in later for part in _parts(record.value)}
        return {run_id for run_id in heads - told if not self._world.raising.is_hard(run_id)}

    def _changes(self, run_id: str, live: dict[bytes, bytes]) -> Sequence[tuple[str, Change]]:
        submission = f"{run_id}/.submission".encode()
        changes: list[tuple[str, Change]] = [
            ("unknown step", (f"{run_id}/zz".encode(), b'{"attempt":1}')),
            ("definition", (submission, live[submission].replace(b'\\"steps\\"', b'\\"stops\\"'))),
        ]
        steps = sorted(key for key in live if key.startswith(f"{run_id}/s".encode()))
        changes += [("step", (key, live[key][:-1])) for key in steps[:1]]
        if not self._is_keyed(run_id):  # else a repeat of its start, which nobody can tell any more, starts it again
            changes += [("submission", (submission, b"\xff")), ("head", (run_id.encode(), b"{}"))]
        return changes

    def _is_keyed(self, run_id: str) -> bool:
        return any(each.message.keep_s for each in self._world.submissions if each.message.run_id == run_id)


def _parts(value: bytes | None) -> Iterator[m.RunMessage]:
    message = decode(m.INBOX, value)
    if not isinstance(message, Undecodable):
        yield from to_runs(message)
