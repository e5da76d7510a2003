"""Golden logs: what a recorded inbox was decided to, under each version of the rules.

`python -m tests.golden.golden_log record` writes the log of today's `RULES_VERSION`, once per version; a kept log is
never written again. `… digest` prints a digest of what today's code makes of random lives, for comparing processes.
"""

import hashlib
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from anabranch.services.orchestrator.core.changelog import take_changes
from anabranch.services.orchestrator.core.decide import RULES_VERSION, Decision
from anabranch.services.orchestrator.core.effects import Append, DropTimer, SetTimer
from anabranch.services.orchestrator.core.partition import Partition
from anabranch.shared.contracts import messages as m
from tests.support.random_runs import live

FOLDER: Final = Path(__file__).parent
LIVES: Final = 24
_MESSAGE: Final[TypeAdapter[m.RunMessage]] = TypeAdapter(m.RunMessage)

Inbox = list[tuple[m.RunMessage, int]]


def path_of(rules: int) -> Path:
    """Return where the log of a version of the rules is kept."""
    return FOLDER / f"rules-{rules}.jsonl"


def decided(inbox: Inbox) -> list[list[str]]:
    """Return, in words, every effect of every record, decided by a partition that knows nothing."""
    partition, words = Partition(), []
    for message, at in inbox:
        decision = partition.decide(message, at)
        partition.commit(decision, at)
        words.append(_words(decision))
    return words


def _words(decision: Decision) -> list[str]:
    ignored = [] if decision.ignored is None else [f"ignored {decision.ignored}"]
    return ignored + [_effect_words(effect) for effect in decision.effects]


def _effect_words(effect: Append | SetTimer | DropTimer) -> str:
    match effect:
        case SetTimer():
            return f"set {effect.timer_id} {effect.due_ms}"
        case DropTimer():
            return f"drop {effect.timer_id}"
        case Append():
            headers = " ".join(f"{name}={value.decode()}" for name, value in effect.headers)
            return f"append {effect.channel} {effect.key} {effect.step_type} {headers} {effect.value.decode()}"


def read(path: Path) -> list[tuple[Inbox, list[list[str]]]]:
    """Return the recorded inboxes, each with what it was decided to."""
    return [_read_one(json.loads(line)) for line in path.read_text().splitlines()]


def _read_one(line: dict[str, Any]) -> tuple[Inbox, list[list[str]]]:
    inbox = [(_MESSAGE.validate_json(record["message"]), record["at"]) for record in line["records"]]
    return inbox, [record["effects"] for record in line["records"]]


def random_inboxes(seeds: Iterable[int]) -> list[Inbox]:
    """Return the inboxes of random lives."""
    return [live(random.Random(seed), largest=6).inbox for seed in seeds]


def record() -> None:
    """Write the log of today's rules, unless there is one."""
    path = path_of(RULES_VERSION)
    if path.exists():
        raise SystemExit(f"{path} is kept: raise RULES_VERSION and record the log of the new rules")
    lines = []
    for inbox in random_inboxes(range(LIVES)):
        records = [
            {"at": at, "message": _MESSAGE.dump_json(message).decode(), "effects": effects}
            for (message, at), effects in zip(inbox, decided(inbox), strict=True)
        ]
        lines.append(json.dumps({"records": records}, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n")


def digest() -> str:
    """Return a digest of everything that random lives lead to: effects, and the changelog as of every record."""
    known = hashlib.sha256()
    for inbox in random_inboxes(range(1_000, 1_040)):
        partition = Partition()
        for offset, (message, at) in enumerate(inbox):
            decision = partition.decide(message, at)
            partition.commit(decision, at)
            known.update(repr((_words(decision), take_changes(partition, offset))).encode())
    return known.hexdigest()


if __name__ == "__main__":
    if sys.argv[1:] == ["digest"]:
        print(digest())
    else:
        record()
