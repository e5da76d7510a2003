"""What the toolkit raises; each carries the driver's error as its cause."""

from anabranch.shared.contracts.errors import AnabranchError


class AppendFailed(AnabranchError):
    """A record was not accepted by Kafka and never will be."""


class RecordTooLarge(AppendFailed):
    """A record is larger than Kafka may be given: nothing was appended."""


class TopicMismatch(AnabranchError):
    """A topic exists but is not what the topic table says."""


class KafkaUnreachable(AnabranchError):
    """No broker answered in time."""
