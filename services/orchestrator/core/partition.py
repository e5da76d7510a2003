"""Everything the core knows about one partition: its runs, the finished ones it still remembers, and its time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from anabranch.services.orchestrator.core.decide import Decision, abandon, decide, refuse
from anabranch.services.orchestrator.core.graph import NO_PIPELINE, compile_pipeline, compiled
from anabranch.services.orchestrator.core.state import Run
from anabranch.services.orchestrator.core.stored import Broken, Stored
from anabranch.services.orchestrator.core.transitions import Ignore
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.errors import ErrorType, StepError
from anabranch.shared.contracts.text import writable

HEAD: Final = -1
"""Stands for the run itself where steps are known by their index."""

SUBMISSION: Final = ".submission"
"""Stands for the submission where records of a run are known by their names."""


@dataclass(slots=True)
class Partition:
    """The state that one partition of the inbox has led to."""

    runs: dict[str, Run] = field(default_factory=dict)
    stored: dict[str, Stored] = field(default_factory=dict)  # runs that were restored, and not decided on since
    broken: dict[str, Broken] = field(default_factory=dict)  # runs that are not understood
    finished: dict[int, dict[str, int]] = field(default_factory=dict)  # keep_s -> run id -> end, oldest first
    at: int = 0  # broker time, ms, of the latest record; never steps back
    changed: dict[str, set[int]] = field(default_factory=dict)  # since the last checkpoint: run id -> steps, HEAD
    written: dict[str, set[int]] = field(default_factory=dict)  # what stands in the changelog of each active run
    left_over: dict[str, tuple[str, ...]] = field(default_factory=dict)  # what stands in there of ended ones: names

    def decide(self, message: m.RunMessage, at: int) -> Decision:
        """Return what the message means. Nothing changes before `commit`."""
        run = self.runs.get(message.run_id)
        if run is None and (self.stored or self.broken):
            stored = self.stored.get(message.run_id)
            if stored is not None and stored.head.quarantined:
                return Decision(None, ignored=Ignore.QUARANTINED)
            run = self.awaken(message.run_id)
            if message.run_id in self.broken:
                return self._end_broken(message.run_id, at)
        if run is not None and run.quarantined:
            return Decision(run, ignored=Ignore.QUARANTINED)
        if run is None and isinstance(message, m.SubmitRun) and self.remembers(message.run_id, at):
            return Decision(None, ignored=Ignore.FINISHED_RUN)
        return decide(run, message, at)

    def submission_of(self, run_id: str) -> m.SubmitRun | None:
        """Return how an active run was submitted."""
        known = self.runs.get(run_id) or self.stored.get(run_id) or self.broken.get(run_id)
        return None if known is None else known.submission

    def definitions_of(self, message: m.InboxMessage) -> Sequence[str]:
        """Return the definitions that have to be compiled before the message is decided.

        Whoever has other things to do meanwhile compiles them in slices; otherwise `decide` does it.
        """
        if type(message) is m.SubmitRun and message.run_id not in self.runs:
            needed = [message.definition]
        elif self.stored:
            ids = {one.run_id: None for one in to_runs(message)}
            needed = [self.stored[run_id].submission.definition for run_id in ids if run_id in self.stored]
        else:
            return ()
        return [definition for definition in needed if compiled(definition) is None]

    def awaken_all(self) -> None:
        """Do for every stored run what is otherwise done when it is first decided on."""
        for run_id in tuple(self.stored):
            self.awaken(run_id)

    def awaken(self, run_id: str) -> Run | None:
        """Compile a stored run; return None when there is none, or when it is not understood."""
        stored = self.stored.pop(run_id, None)
        if stored is None:
            return None
        try:
            run = stored.awaken(compile_pipeline(stored.submission.definition))
        except Exception as error:  # noqa: BLE001  # whatever this version cannot make of the run, it is this run alone
            reason = f"its definition is not understood ({type(error).__name__})"
            self.broken[run_id] = Broken(stored.submission, stored.head, (SUBMISSION, *stored.steps), reason)
            return None
        self.runs[run_id] = run
        self.written[run_id] = {HEAD, *(run.pipeline.index[step] for step in stored.steps)}
        return run

    def _end_broken(self, run_id: str, at: int) -> Decision:
        broken = self.broken[run_id]
        run = Run.begin(broken.submission, NO_PIPELINE, broken.head.started_at)
        run.at, run.seq = broken.head.at, broken.head.seq
        words = StepError.of(ErrorType.ENGINE_ERROR, writable(f"the run cannot be taken over: {broken.reason}"))
        return abandon(run, words, at)

    def commit(self, decision: Decision, at: int) -> None:
        """Take up what was decided."""
        self.at = max(self.at, at)
        run, turn = decision.run, decision.turn
        if run is None or turn is None:
            return
        decision.commit()
        if run.id not in self.runs:
            self._displace(run.id)
        changed = self.changed.get(run.id)
        if changed is None:
            self.changed[run.id] = {HEAD, *turn.changed}
        else:
            changed.update(turn.changed)
        if not turn.ended:
            self.runs[run.id] = run
            return
        self.runs.pop(run.id, None)
        if (broken := self.broken.pop(run.id, None)) is not None:
            self.left_over[run.id] = broken.names
        if (written := self.written.pop(run.id, None)) is not None:
            self.left_over[run.id] = (SUBMISSION, *(run.pipeline.steps[i].id for i in sorted(written - {HEAD})))
        if run.submission.keep_s:
            self.finished.setdefault(run.submission.keep_s, {})[run.id] = self.at

    def _displace(self, run_id: str) -> None:
        """A run begins whose id an earlier one may have had: nothing of that one counts any more."""
        self.changed.pop(run_id, None)
        for ended in self.finished.values():
            if ended.pop(run_id, None) is not None:
                self.left_over.setdefault(run_id, ())

    def abandon(self, message: m.RunMessage, error: Exception, at: int) -> Decision:
        """Return the decision that fails the run of a message on which `decide` raised."""
        # An exception's own words may name addresses or a set's order: they are in the dead letter, not in the run.
        words = StepError.of(
            ErrorType.ENGINE_ERROR, f"deciding {message.type} raised {type(error).__name__}; see the dead letters"
        )
        run = self.runs.get(message.run_id)
        if run is not None:
            return abandon(run, words, at)
        if isinstance(message, m.SubmitRun):
            return refuse(message, words, at)
        return Decision(None, ignored=Ignore.UNKNOWN_RUN)

    def quarantine(self, run_id: str) -> None:
        """Touch the run no more: not even failing it worked."""
        run = self.runs.get(run_id)
        if run is not None:
            run.quarantined = True
            self.changed.setdefault(run_id, set()).add(HEAD)

    def remembers(self, run_id: str, at: int) -> bool:
        """Return whether a run of this id ended so recently that a repeat of its start must not start it again."""
        now = max(self.at, at)
        return any(now < ended[run_id] + 1000 * keep_s for keep_s, ended in self.finished.items() if run_id in ended)

    def forget_expired(self) -> list[str]:
        """Drop the finished runs whose time is over, and return their ids."""
        forgotten: list[str] = []
        for keep_s, ended in self.finished.items():
            expired = []
            for run_id, at in ended.items():
                if self.at < at + 1000 * keep_s:
                    break
                expired.append(run_id)
            for run_id in expired:
                del ended[run_id]
            forgotten += expired
        self.finished = {keep_s: ended for keep_s, ended in self.finished.items() if ended}
        return forgotten


def to_runs(message: m.InboxMessage) -> Iterator[m.RunMessage]:
    """Yield what a record says to each run it concerns."""
    if not isinstance(message, m.LeasesRenewed):
        yield message
        return
    for lease in message.leases:
        yield m.LeaseRenewed(
            run_id=lease.run_id,
            step=lease.step,
            attempt=lease.attempt,
            lease_s=message.lease_s,
            progress=lease.progress,
        )
