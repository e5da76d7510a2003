"""Looks at everything an installation is made of, all at once, and says of each part how it is."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from anabranch.shared.diagnosis.findings import Finding, Verdict, unknown
from anabranch.shared.diagnosis.in_kafka import examine_kafka
from anabranch.shared.diagnosis.in_record import examine_record
from anabranch.shared.diagnosis.in_redis import examine_redis
from anabranch.shared.record.settings import RecordSettings

WITHIN_S: Final = 20.0
"""All of it is known by then; what has not answered is a finding."""


async def examine(settings: RecordSettings, *, within_s: float = WITHIN_S) -> list[Finding]:
    """Return the findings, in the order of the parts. Raises nothing of theirs."""
    parts = await asyncio.gather(
        _within(within_s, "Kafka", examine_kafka(settings)),
        _within(within_s, "Redis", examine_redis(settings)),
        _within(within_s, "record", examine_record(settings)),
    )
    return [finding for findings in parts for finding in findings]


def is_well(findings: Sequence[Finding]) -> bool:
    """Return whether runs go on, as far as was seen."""
    return all(each.verdict in (Verdict.OK, Verdict.WARNING) for each in findings)


async def _within(seconds: float, part: str, work: Coroutine[Any, Any, list[Finding]]) -> list[Finding]:
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        return [unknown(part, f"it has not answered within {seconds:g} s", "look at the network between here and it")]
    except Exception as error:  # noqa: BLE001  a doctor does not die of what he finds
        return [unknown(part, f"it could not be looked at: {type(error).__name__}: {error}"[:500], "report this")]
