"""What the history service can be told."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from anabranch.shared.contracts import groups
from anabranch.shared.contracts.limits import MAX_WAIT_S
from anabranch.shared.record.retention import Keep, Keeping
from anabranch.shared.record.settings import RecordSettings

_DAY_S = 24 * 3600


class HistorySettings(RecordSettings):
    """Settings of `services.history`."""

    active_snapshot_ttl_s: int = Field(
        MAX_WAIT_S + _DAY_S, ge=1, description="Seconds a snapshot stays without any event: longer than any wait."
    )
    history_batch_records: int = Field(2000, ge=1, description="Run events taken between two writes, at most.")
    history_gather_s: float = Field(
        0.02, ge=0, description="Seconds an event of a busy engine waits for others at most: they are read together."
    )
    record_batch_records: int = Field(
        4000, ge=1, description="Run events of one transaction of the record, at most: so many while it catches up."
    )
    record_gather_s: float = Field(
        0.1,
        ge=0,
        description="Seconds events gather for the record: nobody waits for it while Redis answers.",
    )
    history_commit_s: float = Field(
        1.0,
        gt=0,
        description="Seconds between two commits of offsets; a restart projects as much again.",
    )

    record_keep_days: int = Field(90, ge=0, description="Days a run stays in the record after its end; 0 is for ever.")
    record_keep_runs: int = Field(
        0, ge=0, description="Runs of a tenant that stay in the record, the newest; 0 is all. Live ones always stay."
    )
    tenant_record_keep: dict[str, dict[Literal["days", "runs"], Annotated[int, Field(ge=0)]]] = Field(
        {}, description='The same for some tenants, as JSON: `{"acme": {"days": 365, "runs": 1000000}}`.'
    )

    @property
    def keeping(self) -> Keeping:
        """What stays in the record of whose runs."""
        default = Keep(self.record_keep_days, self.record_keep_runs)
        tenants = {name: replace(default, **own) for name, own in self.tenant_record_keep.items()}
        return Keeping(default, tenants)

    @property
    def history_group(self) -> str:
        """The consumer group that shares the run events among all history processes."""
        return groups.history(self.topic_prefix)

    @property
    def record_group(self) -> str:
        """The same for the record."""
        return groups.record(self.topic_prefix)
