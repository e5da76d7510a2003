"""What the toolkit raises; each carries the driver's error as its cause."""

from anabranch.shared.contracts.errors import AnabranchError


class AppendFailed(AnabranchError):  # noqa: N818  it reads as the event it reports
    """A record was not accepted by Kafka and never will be."""


class RecordTooLarge(AppendFailed):
    """A record is larger than Kafka may be given: nothing was appended."""


class TopicMismatch(AnabranchError):  # noqa: N818
    """A topic exists but is not what the topic table says."""


class KafkaUnreachable(AnabranchError):  # noqa: N818
    """No broker answered in time."""
