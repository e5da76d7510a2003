"""What the orchestrator can be told."""

from pydantic import Field

from anabranch.services.orchestrator.partition_task import Pace
from anabranch.shared.contracts import groups
from anabranch.shared.runtime.settings import Settings


class OrchestratorSettings(Settings):
    """Settings of the orchestrator. None of them changes a decision: those are stamped into the submission."""

    checkpoint_s: float = Field(0.2, gt=0, description="Seconds between two checkpoints of a partition.")
    checkpoint_records: int = Field(5000, ge=1, description="Records after which a partition checkpoints earlier.")
    session_timeout_s: float = Field(8.0, ge=1, description="Seconds without heartbeat after which a member is dead.")

    @property
    def pace(self) -> Pace:
        """How often partition tasks checkpoint."""
        return Pace(checkpoint_s=self.checkpoint_s, checkpoint_records=self.checkpoint_records)

    @property
    def group(self) -> str:
        """The consumer group, and the prefix of the partitions' transactional ids."""
        return groups.orchestrators(self.topic_prefix)
