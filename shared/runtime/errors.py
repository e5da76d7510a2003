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


class KafkaRefused(KafkaUnreachable):
    """Kafka is there but not for us: who operates it has to change what the message names."""


class CommitRefused(AnabranchError):
    """The group was rebalanced: these partitions may be another member's. Nothing is lost, records come again."""


class UnusableSettings(AnabranchError):
    """Settings name something that is not there, or do not go together."""
