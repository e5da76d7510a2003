"""Our alerts and recording rules with all their times divided, so that what takes minutes and hours takes seconds.

Divided are the windows, offsets and `for` of every rule, and every threshold of a second or longer: for how long
something has lasted. Shorter thresholds say how late something may be for people, and stay.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

RULES: Final = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules"
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = r"(\d+)([smhd])"
_THRESHOLD: Final = r"(_seconds\)* > )(\d+)(?![\d.])"
_BUCKET: Final = r'(?<=le=")([1-9]\d*\.0)(?=")'


def faster(expr: str, times: int) -> str:
    """Return a query with its times divided. A bucket's bound has to be one of the histogram's again: see the test."""
    expr = re.sub(rf"\[{_DURATION}\]", lambda found: f"[{_divided(*found.groups(), times)}]", expr)
    expr = re.sub(rf"\boffset {_DURATION}", lambda found: f"offset {_divided(*found.groups(), times)}", expr)
    expr = re.sub(_THRESHOLD, lambda found: f"{found[1]}{int(found[2]) / times:g}", expr)
    return re.sub(_BUCKET, lambda found: str(float(found[1]) / times), expr)


def faster_rule(rule: dict[str, Any], times: int) -> dict[str, Any]:
    """Return a rule with its times divided."""
    made = {**rule, "expr": faster(rule["expr"], times)}
    if "for" in rule:
        found = re.fullmatch(_DURATION, rule["for"])
        assert found is not None, rule
        made["for"] = _divided(*found.groups(), times)
    return made


def write_faster_rules(folder: Path, times: int) -> None:
    """Write every file of rules anew."""
    folder.mkdir()
    for path in sorted(RULES.glob("*.yml")):
        groups = [
            {**group, "rules": [faster_rule(rule, times) for rule in group["rules"]]} for group in groups_of(path)
        ]
        (folder / path.name).write_text(yaml.safe_dump({"groups": groups}, sort_keys=False))


def groups_of(path: Path) -> Iterator[dict[str, Any]]:
    """Return the groups of a file."""
    yield from yaml.safe_load(path.read_text())["groups"]


def _divided(count: str, unit: str, times: int) -> str:
    return f"{int(count) * _SECONDS[unit] * 1000 // times}ms"
