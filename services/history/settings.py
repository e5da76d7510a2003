"""What the history service can be told."""

from pydantic import Field

from anabranch.shared.contracts.limits import MAX_WAIT_S
from anabranch.shared.runtime.settings import Settings

_DAY_S = 24 * 3600


class HistorySettings(Settings):
    """Settings of `services.history`."""

    snapshot_ttl_s: int = Field(_DAY_S, ge=1, description="Seconds a snapshot stays in Redis after its run has ended.")
    active_snapshot_ttl_s: int = Field(
        MAX_WAIT_S + _DAY_S, ge=1, description="Seconds a snapshot stays without any event: longer than any wait."
    )
    history_batch_records: int = Field(2000, ge=1, description="Run events taken between two writes, at most.")
    history_gather_s: float = Field(
        0.02, ge=0, description="Seconds an event of a busy engine waits for others at most: they are read together."
    )
    history_commit_s: float = Field(
        1.0,
        gt=0,
        description="Seconds between two commits of offsets; a restart projects as much again.",
    )

    @property
    def history_group(self) -> str:
        """The consumer group that shares the run events among all history processes."""
        return f"{self.topic_prefix}.history"
