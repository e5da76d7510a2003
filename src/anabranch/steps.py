"""What an author of a step service needs: `from anabranch.steps import StepContext, serve, step_type`.

See docs/step-services.md. This is the public path; what lies behind it may move.
"""

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.serve import serve
from anabranch.services.steps.settings import StepServiceSettings
from anabranch.services.steps.step_type import StepType, step_type
from anabranch.shared.contracts.errors import RetryableError, TerminalError

__all__ = [
    "RetryableError",
    "StepContext",
    "StepServiceSettings",
    "StepType",
    "TerminalError",
    "serve",
    "step_type",
]
