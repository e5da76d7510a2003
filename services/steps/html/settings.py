"""What the `html` step service can be told."""

from pydantic import Field

from anabranch.services.steps.settings import StepServiceSettings
from anabranch.shared.contracts.limits import MIB


class HtmlSettings(StepServiceSettings):
    """Settings of `services.steps.html`."""

    html_memory_bytes: int = Field(512 * MIB, ge=64 * MIB, description="Memory of a process that reads documents.")
    html_cpu_s: int = Field(10, ge=1, description="Seconds of processor time that one document may take.")
