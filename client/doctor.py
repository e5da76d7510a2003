"""What `anabranch doctor` does: an operator's command, which looks at Kafka, Redis and the record itself."""

from collections.abc import Sequence
from typing import Final

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anabranch.client.commands import FAILED, OK, put
from anabranch.shared.contracts.text import printable
from anabranch.shared.diagnosis.doctor import examine, is_well
from anabranch.shared.diagnosis.findings import Finding, Verdict
from anabranch.shared.record.settings import RecordSettings

_STYLES: Final = {
    Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAULT: "bold red", Verdict.UNKNOWN: "magenta",
}  # fmt: skip


async def doctor(settings: RecordSettings, *, as_json: bool) -> int:
    """Print how every part is and what to do; fail when something keeps runs from going on."""
    findings = await examine(settings)
    if as_json:
        put(orjson.dumps({"is_well": is_well(findings), "findings": findings}).decode())
    else:
        Console(stderr=False).print(_table(findings))
    return OK if is_well(findings) else FAILED


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("check", "", "what was found", "what to do"):
        table.add_column(heading, overflow="fold")
    for each in findings:
        texts = (Text(printable(text)) for text in (each.says, each.do))
        table.add_row(each.check, Text(each.verdict.value, style=_STYLES[each.verdict]), *texts)
    return table
