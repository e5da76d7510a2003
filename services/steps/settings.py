"""The numbers of a worker, each with the reason for its value."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import Field

from anabranch.shared.contracts.limits import MAX_UNACKNOWLEDGED_BYTES, MIB
from anabranch.shared.runtime.settings import Settings

_STOP_MARGIN_S: Final = 3.0  # of the service's time to stop: closing clients


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How one worker works. Times are seconds unless the name says otherwise."""

    concurrency: int = 64  # handlers at once; a type says more or less, a setting overrides both
    max_unanswered: int = 5_000  # commands whose answer is not yet acknowledged: beyond it nothing more is taken
    max_in_hand_bytes: int = MAX_UNACKNOWLEDGED_BYTES  # of commands and of answers not yet acknowledged: likewise
    grace_s: float = 1.0  # a handler busy for longer is leased: most steps are shorter and pay nothing
    lease_s: float = 30.0  # longer than a broker's restart, shorter than an operator's patience
    commit_s: float = 0.2  # offsets are committed in the background; what is not, is recalled from memory
    poll_s: float = 1.0  # far below max.poll.interval, seldom enough to cost nothing when idle
    pause_after_s: float = 0.1  # full for as long: pause. A shorter stall would only throw fetched records away
    stop_timeout_s: float = 17.0  # below the service's (20 s), which is below the pod's grace period
    give_back_s: float = 3.0  # the end of it: cancel what is left, give its leases back, see that acknowledged
    revoke_timeout_s: float = 8.0  # below the rebalance timeout: overrun it and the group goes on without us
    lately_count: int = 100_000  # attempts; at about 200 bytes each
    lately_s: float = 600.0
    cancellations_count: int = 100_000
    cancellations_s: float = 3600.0  # retention of the control topic
    clock_margin_ms: int = 5_000  # how far this host's clock and the broker's may be apart
    memory_flush_s: float = 0.03  # writes of as long share one round trip
    memory_timeout_s: float = 1.0  # a memory that is slower is as good as none
    memory_retry_s: float = 5.0  # how long an unavailable memory is left alone
    memory_notes: int = 20_000  # notes waiting to be written; beyond it the eldest are dropped
    memory_notes_bytes: int = 16 * MIB  # likewise
    memory_result_bytes: int = 64 * 1024  # larger results are remembered as acknowledged, not byte for byte
    max_alone: int = 3  # a command tried alone as often without a result takes its worker down: no accident any more


class StepServiceSettings(Settings):
    """Settings of a step service, whatever its type."""

    concurrency: int | None = Field(
        None, ge=1, description="Handlers at once in this process; unset: what the step type says."
    )
    lease_s: float = Field(
        30.0, gt=0, description="Seconds a step outlives its worker's silence before another attempt."
    )
    lease_grace_s: float = Field(1.0, gt=0, description="Seconds a handler may be busy before its step is leased.")

    secrets_dir: Path | None = Field(
        None,
        description="Directory with a file per secret, as Kubernetes mounts them: `<tenant>/<NAME>`, "
        "and `<NAME>` for the default tenant.",
    )
    secrets_allow: str = Field(
        "*",
        description="Of the secrets that this service has, those that steps may name: "
        "`API_*, http:GITHUB_TOKEN` are names, after a colon those for one step type.",
    )
    default_tenant: str = Field(
        "default",
        min_length=1,
        description="Whose secrets are those that lie beside the tenants' directories, and `ANABRANCH_SECRET_<NAME>`.",
    )

    def worker(self, *, concurrency: int) -> WorkerSettings:
        """Return the worker's numbers, for a type that says how many handlers may run at once."""
        return WorkerSettings(
            concurrency=self.concurrency or concurrency,
            grace_s=self.lease_grace_s,
            lease_s=self.lease_s,
            stop_timeout_s=max(1.0, self.stop_timeout_s - _STOP_MARGIN_S),
            give_back_s=min(3.0, self.stop_timeout_s / 4),
        )


class ReachSettings(Settings):
    """What `http`, `sql` and `notify` may connect to."""

    http_allow: str = Field(
        "",
        description="Networks, addresses and names that step services may connect to beside the internet: "
        "`10.0.0.0/8,[fd00::1]:443,api.local:8080`. A name stands for whatever address it has.",
    )
