"""Topics at start-up: create what is missing, check what exists against the table."""

from collections.abc import Sequence

from anabranch.shared.contracts.topics import Topic
from anabranch.shared.runtime.settings import Settings


async def ensure_topics(settings: Settings, topics: Sequence[tuple[Topic, str]]) -> None:
    """Create the topics that are missing and check the others; `TopicMismatch` says what differs and what to do."""
    raise NotImplementedError
