"""Says which step types' command topics cannot be written: once when it begins, once when it ends, and in numbers."""

from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from anabranch.services.orchestrator.metrics import OrchestratorMetrics
from anabranch.shared.contracts.topics import TopicNames
from anabranch.shared.runtime.lanes import LaneWatcher


class CommandTopics(LaneWatcher):
    """Watches the lanes. `gone` is called with a step type whose topic was deleted, and what it held with it."""

    def __init__(
        self,
        topics: TopicNames,
        metrics: OrchestratorMetrics,
        logger: FilteringBoundLogger,
        gone: Callable[[str], None],
    ) -> None:
        self._before_type = len(topics.steps(""))
        self._metrics = metrics
        self._logger = logger
        self._gone = gone

    def closed(self, topic: str, reason: str) -> None:
        """The topic does not take a command, for the first time since it last did."""
        self._metrics.topic_unwritable(self._uses(topic), is_so=True)
        self._logger.error(
            "a command topic cannot be written: the steps that need it are held back", uses=self._uses(topic),
            reason=reason,
        )  # fmt: skip

    def opened(self, topic: str) -> None:
        """It does again."""
        self._metrics.topic_unwritable(self._uses(topic), is_so=False)
        self._logger.info("a command topic can be written again", uses=self._uses(topic))

    def refused(self, topic: str) -> None:
        """A command is held back."""
        self._metrics.command_refused(self._uses(topic))

    def gone(self, topic: str) -> None:
        """A topic that was there is not any more."""
        self._logger.error("a command topic was deleted: its commands are sent again", uses=self._uses(topic))
        self._gone(self._uses(topic))

    def _uses(self, topic: str) -> str:
        return topic[self._before_type :]
